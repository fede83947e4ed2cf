"""What the adapters for servers have in common: the options of the handoff beside the server's own, and the service's name."""

from __future__ import annotations

import os
import sys

from .deadline import parse_duration
from .listener import check_name
from .system.environment import HEALTH, HEALTH_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from typing import Any

    from .service import Service

    Read = Callable[[str], Any]

PREFIX = "--handoff-"
_OPTIONS: dict[str, Read] = {"name": str, "path": str, "probation": parse_duration}
#: What ``Service`` itself reads from the environment, so that no adapter need know it.
_SETTINGS = {"health": HEALTH, "health-file": HEALTH_FILE}

HELP = """\
  --handoff-name NAME            the service's name (made of the application's)
  --handoff-path PATH            the handoff path (NAME/handoff.sock in the runtime directory)
  --handoff-health ADDRESS       answer HTTP there: /ready is 200 while the service is to get traffic, else 503
  --handoff-health-file FILE     a file that is there while /ready would be 200
  --handoff-probation DURATION   how long this process stays to take the service back from a successor that dies (5s)
"""


def split(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Ours, as keywords of an adapter's ``run`` (``handoff_name`` …), and the server's own; what a ``Service`` reads from the
    environment goes there. ``ValueError`` for what makes no sense."""
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
        name, equals, value = word[len(PREFIX) :].partition("=")
        if name not in _OPTIONS and name not in _SETTINGS:
            raise ValueError(
                f"there is no option {PREFIX}{name}: there are "
                f"{', '.join(PREFIX + one for one in (*_OPTIONS, *_SETTINGS))}"
            )
        if not equals:
            if not words:
                raise ValueError(f"{PREFIX}{name} wants a value")
            value = words.pop(0)
        if name in _SETTINGS:
            os.environ[_SETTINGS[name]] = value
        else:
            ours[f"handoff_{name}"] = _OPTIONS[name](value)
    return ours, rest


def address_of(host: str, port: int) -> str:
    """As ``Service.listen`` wants it; an empty ``host`` means all addresses."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listeners_of(service: Service, name: str, address: str) -> list[socket.socket]:
    """What whoever started us passed, whatever our own options say; else the listener ``name`` at ``address``."""
    return list(service.listeners) if service.inherited else service.listen_all(name, address)


def service_name(application: Any, server: str) -> str:
    """Of a service that was given none: by the application where it is named by text, else by the program."""
    text = application if isinstance(application, str) else os.path.basename(sys.argv[0])
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return check_name(safe.strip("-.") or server)


def with_service(application: Any, service: Service) -> Any:
    """A WSGI application that finds the service as ``environ["fdhandoff"]``."""

    def handed(environ: dict[str, Any], start_response: Any) -> Any:
        environ["fdhandoff"] = service
        return application(environ, start_response)

    return handed
