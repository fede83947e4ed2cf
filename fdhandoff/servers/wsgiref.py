"""wsgiref, upgraded without a failed request: this module's ``make_server`` in place of ``wsgiref.simple_server.make_server``.

It answers each request on a connection of its own, as it always does.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ..adapting import service_name
from .socketserver import serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def make_server(
    host: str,
    port: int,
    app: Any,
    server_class: type[WSGIServer] = WSGIServer,
    handler_class: type[WSGIRequestHandler] = WSGIRequestHandler,
    **handoff: Any,
) -> Server:
    """As ``wsgiref.simple_server.make_server``; nothing is bound before ``serve_forever()``. ``handoff``: ``grace``
    and the ``handoff_…`` keywords, as for ``fdhandoff.servers.socketserver.serve``. The application
    finds the ``Service`` as ``environ["fdhandoff"]``."""
    handoff["handoff_name"] = handoff.get("handoff_name") or service_name(None, "wsgiref")
    return Server((host, port), app, server_class, handler_class, handoff)


class Server:
    """What stands for wsgiref's server until it serves."""

    def __init__(self, address: tuple[str, int], app: Any, server_class: Any, handler_class: Any, handoff: Any) -> None:
        self.server_address = address
        self._app = app
        self._classes = binding_nothing(server_class, self.get_app), _one_request(handler_class)
        self._handoff = handoff

    def serve_forever(self) -> None:
        """Until a newer generation serves, or until it is told to stop. Raises what ``Service`` raises."""
        server_class, handler_class = self._classes
        serve(server_class, self.server_address, handler_class, **self._handoff)

    def get_app(self) -> Any:
        return self._app

    def set_app(self, app: Any) -> None:
        self._app = app

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def binding_nothing(base: Any, application: Callable[[], Any]) -> Any:
    """wsgiref's server, or one made of it, that takes what ``serve`` gives it, and the application when it is asked for."""

    class Wsgi(base):  # type: ignore[misc]
        service: Any

        def get_app(self) -> Any:
            return application()

        @cached_property
        def base_environ(self) -> dict[str, Any]:
            self.setup_environ()  # which wsgiref does where it binds
            made: dict[str, Any] = self.__dict__["base_environ"]
            made["fdhandoff"] = self.service
            return made

    Wsgi.__name__ = Wsgi.__qualname__ = base.__name__
    return Wsgi


def _one_request(base: Any) -> Any:
    class Handler(base):  # type: ignore[misc]
        def handle_one_request(self) -> None:
            base.handle(self)

    Handler.__name__ = Handler.__qualname__ = base.__name__
    return Handler
