"""werkzeug's server, upgraded without a failed request: ``run_simple(host, port, app)`` in place of
``werkzeug.serving.run_simple(…)``. Flask's is the same: ``fdhandoff.servers.flask``.

It answers each request on a connection of its own, as it always does, and says so: ``Connection: close``.
"""

from __future__ import annotations

from functools import cached_property
from http.server import HTTPServer
from typing import TYPE_CHECKING

try:
    from werkzeug import serving
    from werkzeug.middleware.shared_data import SharedDataMiddleware
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs werkzeug: pip install 'werkzeug>=3.1' ({error})") from None

from ..adapting import named, service_name, taken, with_service
from .socketserver import serve

# What only the reloader and the debugger use, which are refused.
_DEVELOPMENT = frozenset({"use_evalex", "extra_files", "exclude_patterns", "reloader_interval", "reloader_type"})

if TYPE_CHECKING:
    import ssl
    from typing import Any

    Context = ssl.SSLContext | tuple[str, str | None] | str | None


def run_simple(
    hostname: str,
    port: int,
    application: Any,
    use_reloader: bool = False,
    use_debugger: bool = False,
    *,
    threaded: bool = True,
    processes: int = 1,
    request_handler: type[serving.WSGIRequestHandler] | None = None,
    static_files: dict[str, str | tuple[str, str]] | None = None,
    passthrough_errors: bool = False,
    ssl_context: Context = None,
    grace: float | None = 30.0,
    **options: Any,
) -> None:
    """``werkzeug.serving.run_simple`` until a newer generation serves, or until it is told to stop; what is inside then may
    take ``grace`` seconds (``None``: for ever). The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. The
    application finds the ``Service`` as ``environ["fdhandoff"]``. Raises what ``Service`` raises; ``ValueError`` for the
    reloader and the debugger, which are for development, and for ``processes``; ``TypeError`` for a keyword that there is not.
    """
    if use_reloader or use_debugger:
        raise ValueError("the reloader and the debugger are for development: use werkzeug itself for that")
    if processes > 1:
        raise ValueError("processes are the master's: fdhandoff-cli run --workers N -- …")
    ours = named(taken(options), service_name(None, "werkzeug"))
    for name in options.keys() - _DEVELOPMENT:
        raise TypeError(f"run_simple() got an unexpected keyword argument {name!r}")
    if static_files:
        application = SharedDataMiddleware(application, static_files)
    context = _context(ssl_context)
    handler = request_handler or serving.WSGIRequestHandler
    base: Any = serving.ThreadedWSGIServer if threaded else serving.BaseWSGIServer

    class Server(base):  # type: ignore[misc]
        """werkzeug's, that binds nothing."""

        service: Any

        def __init__(self, address: Any, handler: Any, *, bind_and_activate: bool) -> None:
            HTTPServer.__init__(self, address, handler, bind_and_activate)
            self.host, self.port = hostname, port
            self.passthrough_errors = passthrough_errors
            self.ssl_context = context
            self._server_version = f"Werkzeug/{_version()}"

        @cached_property
        def app(self) -> Any:
            return with_service(application, self.service)

    class Handler(handler):  # type: ignore[misc, valid-type]
        if threaded and "protocol_version" not in vars(handler):
            protocol_version = "HTTP/1.1"  # for answers in chunks

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError) as dropped:
                self.close_connection = True
                self.connection_dropped(dropped)

    path = hostname.removeprefix("unix://")
    serve(
        Server,
        (hostname, port) if path == hostname else path,
        Handler,
        grace=grace,
        ssl_context=context,
        **ours,
    )


def _context(what: Context) -> ssl.SSLContext | None:
    if isinstance(what, tuple):
        return serving.load_ssl_context(*what)
    if what == "adhoc":
        return serving.generate_adhoc_ssl_context()
    return what  # type: ignore[return-value]


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("werkzeug")
