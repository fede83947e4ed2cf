"""CherryPy, upgraded without a failed request: ``quickstart(root, …)`` in place of ``cherrypy.quickstart(root, …)``.

Its applications are served by cheroot with its adapter, by CherryPy's own settings; the rest of its engine goes on as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import cherrypy
    from cherrypy._cpwsgi_server import CPWSGIServer
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs CherryPy: pip install 'cherrypy>=18.10' ({error})") from None

from ..adapting import service_name, settings
from .cheroot import Server

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..adapting import Handoff

_Configured: Any = CPWSGIServer


def quickstart(
    root: Any = None,
    script_name: str = "",
    config: Any = None,
    *,
    grace: float | None = 30.0,
    **handoff: Unpack[Handoff],
) -> None:
    """``cherrypy.quickstart`` until a newer generation serves, or until it is told to stop; what is inside then may take
    ``grace`` seconds (``None``: for ever). The ``handoff_…`` keywords are ``fdhandoff.adapting.Handoff``'s. Handlers find the
    ``Service`` as ``cherrypy.request.wsgi_environ["fdhandoff"]``. Raises what ``Service`` raises; ``ValueError`` for a
    ``server.instance``."""
    if config:
        cherrypy._global_conf_alias.update(config)
    if cherrypy.server.instance is not None:
        raise ValueError(
            "server.instance: the server is made here; say what it is to be by the other settings of server"
        )
    cherrypy.tree.mount(root, script_name, config)
    cherrypy.server.unsubscribe()
    cherrypy.engine.autoreload.unsubscribe()  # it would replace the process behind the service's back
    server = _Server({**settings(handoff, service_name(None, "cherrypy")), "grace": grace})
    cherrypy.engine.start()
    try:
        server.start()
    finally:
        cherrypy.engine.exit()


class _Server(_Configured, Server):  # type: ignore[misc]
    """CherryPy's own server, which knows ``cherrypy.server``'s settings, on top of the adapter instead of cheroot's."""

    def __init__(self, handoff: dict[str, Any]) -> None:
        _Configured.__init__(self, cherrypy.server)  # which calls the adapter's
        self._handoff = handoff
