"""Django, upgraded without a failed request: ``python -m fdhandoff.servers.django runserver …`` in place of
``python manage.py runserver …``, and ``python -m fdhandoff.servers.django PROJECT.wsgi [ADDRESS:PORT]`` for the project's WSGI
application.

A connection that waits for its next request moves to the new generation.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import socketserver
import sys
from functools import partial
from typing import TYPE_CHECKING

try:
    from django.core import management
    from django.core.management.commands import runserver
    from django.core.servers import basehttp
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs Django: pip install 'django>=5' ({error})") from None

from ..adapting import named, service_name, split
from ..errors import HandoffError
from .socketserver import serve
from .wsgiref import binding_nothing

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Unpack

    from ..adapting import Handoff

_SETTINGS = "DJANGO_SETTINGS_MODULE"


def run(
    addr: str,
    port: int,
    wsgi_handler: Any,
    ipv6: bool = False,
    threading: bool = True,
    on_bind: Callable[[int], object] | None = None,
    server_cls: type[basehttp.WSGIServer] = basehttp.WSGIServer,
    *,
    grace: float | None = 30.0,
    **handoff: Unpack[Handoff],
) -> None:
    """As ``django.core.servers.basehttp.run``, until a newer generation serves, or until it is told to stop; what is inside
    then may take ``grace`` seconds (``None``: for ever). The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s.
    Views find the ``Service`` as ``request.META["fdhandoff"]``. Raises what ``Service`` raises."""
    base = type("WSGIServer", (socketserver.ThreadingMixIn, server_cls), {}) if threading else server_cls

    class Server(binding_nothing(base, lambda: wsgi_handler)):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, ipv6=ipv6, **options)

    if on_bind is not None:
        on_bind(port)
    serve(
        Server,
        (addr, port),
        basehttp.WSGIRequestHandler,
        grace=grace,
        announce=_announce,
        **named(handoff, service_name(os.environ.get(_SETTINGS, ""), "django")),
    )


def _announce() -> None:
    """Each answer of Django's, also one under way, says when the connection ends with it."""
    handler: Any = basehttp.ServerHandler
    cleanup_headers = handler.cleanup_headers

    def announcing(self: Any) -> None:
        cleanup_headers(self)
        request = self.request_handler
        if request.ends():
            self.headers["Connection"] = "close"
            request.close_connection = True

    handler.cleanup_headers = announcing


def main() -> None:
    """``manage.py`` and its commands, with ``run`` in the place of Django's; or the application of a module."""
    try:
        ours, words = split(sys.argv[1:])
        sys.path.insert(0, os.getcwd())
        if words and re.fullmatch(r"\w+(\.\w+)+(:\w+)?", words[0]):
            _serve_application(words, ours)
        else:
            _serve_project(words, ours)
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _serve_application(words: list[str], ours: dict[str, Any]) -> None:
    module, _, name = words[0].partition(":")
    host, _, port = (words[1] if len(words) > 1 else "127.0.0.1:8000").rpartition(":")
    if len(words) > 2 or not port.isdigit():
        raise ValueError("say PROJECT.wsgi [ADDRESS:PORT]")
    application = getattr(importlib.import_module(module), name or "application")
    ours.setdefault("handoff_name", service_name(module, "django"))
    host = host.strip("[]")
    run(host or "127.0.0.1", int(port), application, ipv6=":" in host, **ours)


def _serve_project(words: list[str], ours: dict[str, Any]) -> None:
    """By the project's own ``manage.py``, where there is one, since that knows the settings."""
    runserver.run = partial(run, **ours)
    management.load_command_class = partial(_loaded, management.load_command_class)
    if words[:1] == ["runserver"] and "--noreload" not in words:
        words = [*words, "--noreload"]  # the reloader is for development, and would be one process more
    sys.argv = ["manage.py", *words]
    if _SETTINGS not in os.environ and os.path.exists("manage.py"):
        runpy.run_path("manage.py", run_name="__main__")
    else:
        management.execute_from_command_line(sys.argv)


def _loaded(load: Callable[[str, str], Any], app_name: str, name: str) -> Any:
    """Django's command; ``ValueError`` for a ``runserver`` whose server is another than ``run``."""
    command = load(app_name, name)
    if name == "runserver" and "--noasgi" not in sys.argv and not _is_cores(type(command)):
        raise ValueError(
            f"runserver is {app_name}'s here, which serves by itself: use python -m fdhandoff.servers.daphne "
            "PROJECT.asgi:application, or PROJECT.wsgi in the place of runserver"
        )
    return command


def _is_cores(command: Any) -> bool:
    """Whether the server of this ``runserver`` is core's, as with that of staticfiles."""
    if not issubclass(command, runserver.Command) or not issubclass(command.server_cls, basehttp.WSGIServer):
        return False
    # What was put in the place of core's serves, unless it does something around that.
    code = getattr(command.inner_run, "__code__", None)
    return command.inner_run is runserver.Command.inner_run or code is None or "inner_run" in code.co_names


if __name__ == "__main__":
    main()
