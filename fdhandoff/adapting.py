"""What the adapters for servers have in common: the options of the handoff beside the server's own, and the service's name."""

from __future__ import annotations

import os
import sys

from .deadline import parse_duration
from .listener import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from typing_extensions import TypedDict

    from .service import GuessedName, Service

    Read = Callable[[str], Any]

    class Handoff(TypedDict, total=False):
        """The handoff's own keywords, of every adapter."""

        handoff_name: str  # the service's (default: made of the application's, or the program's)
        handoff_path: str  # its handoff path (default: below the runtime directory)
        handoff_probation: float  # seconds in which it takes the service back from a successor that dies (5)
        handoff_health: str  # the address at which /ready is 200 while the service is to get traffic, else 503
        handoff_health_file: str  # a file that is there while /ready would be 200
        handoff_pre_stop_delay: float  # seconds between that turning false and the drain


PREFIX = "--handoff-"
# As ``Service`` calls them, without the dashes of the command line.
_OPTIONS: dict[str, Read] = {
    "name": str, "path": str, "probation": parse_duration, "health": str, "health_file": str,
    "pre_stop_delay": parse_duration,
}  # fmt: skip

HELP = """\
  --handoff-name NAME            the service's name (made of the application's)
  --handoff-path PATH            the handoff path (NAME/handoff.sock in the runtime directory)
  --handoff-health ADDRESS       answer HTTP there: /ready is 200 while the service is to get traffic, else 503
  --handoff-health-file FILE     a file that is there while /ready would be 200
  --handoff-pre-stop-delay TIME  how long connections are still accepted when that has turned false, before a stop (0)
  --handoff-probation DURATION   how long this process stays to take the service back from a successor that dies (5s)
"""


def split(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Ours, as keywords of an adapter's ``run`` (``handoff_name`` …), and the server's own. ``ValueError`` for what makes no
    sense."""
    ours: dict[str, Any] = {}
    rest: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        if not word.startswith(PREFIX):
            rest.append(word)
            continue
        option, equals, value = word[len(PREFIX) :].partition("=")
        name = option.replace("-", "_")
        if name not in _OPTIONS or "_" in option:
            options = ", ".join(PREFIX + one.replace("_", "-") for one in _OPTIONS)
            raise ValueError(f"there is no option {PREFIX}{option}: there are {options}")
        if not equals:
            if not words:
                raise ValueError(f"{PREFIX}{option} wants a value")
            value = words.pop(0)
        ours[f"handoff_{name}"] = _OPTIONS[name](value)
    return ours, rest


def taken(keywords: dict[str, Any]) -> dict[str, Any]:
    """Ours among ``keywords``, which loses them."""
    return {name: keywords.pop(name) for name in list(keywords) if name.startswith("handoff_")}


def named(handoff: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same keywords, with the service's name where they do not say it."""
    return {**handoff, "handoff_name": handoff.get("handoff_name") or name}


def settings(handoff: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Of an adapter's keywords (``Handoff``): ``Service``'s. ``name``: the service's where they do not say it. ``TypeError``
    for one that there is not."""
    found: dict[str, Any] = {"name": name}
    for keyword, value in handoff.items():
        option = keyword.removeprefix("handoff_")
        if option not in _OPTIONS:
            ours = ", ".join(f"handoff_{one}" for one in _OPTIONS)
            raise TypeError(f"there is no keyword {keyword!r} here: the handoff's are {ours}")
        found[option] = value
    return {**found, "name": found["name"] or name}


def address_of(host: str, port: int) -> str:
    """As ``Service.listen`` wants it; an empty ``host`` means all addresses."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dual(address: str) -> str:
    """``address``, which has IPv4's clients, too, where it is ``[::]``: as with servers that leave that to the system."""
    if not address.startswith("[::]:") or "v6only" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}v6only=0"


def listeners_of(service: Service, name: str, address: str) -> list[socket.socket]:
    """What whoever started us passed, whatever our own options say; else the listener ``name`` at ``address``. All addresses
    are two sockets, as asyncio has it: with one for both families IPv4's clients would come from ``::ffff:…``."""
    if service.inherited:
        return list(service.listeners)
    if not address.startswith(":"):
        return service.listen_all(name, address)
    from socket import has_dualstack_ipv6  # there is IPv6, that is

    hosts = ("0.0.0.0", "[::]") if has_dualstack_ipv6() else ("0.0.0.0",)  # noqa: S104 - as was asked for
    return [sock for host in hosts for sock in service.listen_all(name, f"{host}{address}")]


def connections_at(listeners: Sequence[socket.socket], pids: Callable[[], Collection[int]]) -> Callable[[], int]:
    """For ``Service.observes``: what the kernel says of the connections that these processes have."""
    from .system.connections import count, unix_connections_of

    named: list[tuple[int, Any]] = [(one.family, one.getsockname()) for one in listeners]

    def counted() -> int:
        found, total = pids(), 0
        for family, name in named:
            if isinstance(name, tuple):
                total += count(name[1], found, family)
            else:
                total += len(unix_connections_of(os.fsencode(name), found))
        return total

    return counted


def service_name(application: Any, server: str) -> GuessedName:
    """Of a service that was given none: by the application where it is named by text, else by the program."""
    from .service import GuessedName

    text = application if isinstance(application, str) else os.path.basename(sys.argv[0])
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return GuessedName(check_name(safe.strip("-.") or server))


def with_service(application: Any, service: Service) -> Any:
    """A WSGI application that finds the service as ``environ["fdhandoff"]``."""

    def handed(environ: dict[str, Any], start_response: Any) -> Any:
        environ["fdhandoff"] = service
        return application(environ, start_response)

    return handed
