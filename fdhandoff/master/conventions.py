"""The ways of other tools to tell a program of its listeners, for servers that know one of those and not ``LISTEN_FDS``; and
the way of servers that can't be told of any: they bind the addresses themselves, with SO_REUSEPORT."""

from __future__ import annotations

from ..system.environment import FIRST_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

NGINX = "nginx"
EINHORN = "einhorn"
SERVER_STARTER = "server-starter"
REUSEPORT = "reuseport"
CONVENTIONS = (NGINX, EINHORN, SERVER_STARTER, REUSEPORT)

_OURS_ALONE = ("NGINX", "EINHORN_FD_COUNT", "SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION")


def strip(environ: dict[str, str]) -> None:
    """What such a tool told *us*, who may run under one, is not for our children."""
    for name in [name for name in environ if name in _OURS_ALONE or name.startswith("EINHORN_FD_")]:
        del environ[name]


def variables(conventions: Collection[str], addresses: Sequence[str], generation: int) -> dict[str, str]:
    """For a child that finds the listeners of these ``addresses`` from descriptor 3 on."""
    fds = range(FIRST_FD, FIRST_FD + len(addresses))
    found: dict[str, str] = {}
    if NGINX in conventions and addresses:
        found["NGINX"] = "".join(f"{fd};" for fd in fds)
    if EINHORN in conventions:
        found["EINHORN_FD_COUNT"] = str(len(addresses))
        found.update({f"EINHORN_FD_{place}": str(fd) for place, fd in enumerate(fds)})
    if SERVER_STARTER in conventions:
        found["SERVER_STARTER_PORT"] = ";".join(
            f"{_starter_address(address)}={fd}" for address, fd in zip(addresses, fds, strict=True)
        )
        found["SERVER_STARTER_GENERATION"] = str(generation)
    return found


def _starter_address(address: str) -> str:
    """Server::Starter names a Unix socket by its bare path, and knows no kinds."""
    for kind in ("unix:", "udp:"):
        address = address.removeprefix(kind)
    return address
