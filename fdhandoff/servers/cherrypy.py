"""CherryPy, upgraded without a failed request: ``quickstart(root, …)`` in place of ``cherrypy.quickstart(root, …)``.

Its applications are served by cheroot with its adapter; the rest of its engine goes on as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import cherrypy
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs CherryPy: pip install 'cherrypy>=18.10' ({error})") from None

from ..adapting import service_name
from .cheroot import Server

if TYPE_CHECKING:
    from typing import Any


def quickstart(root: Any = None, script_name: str = "", config: Any = None, **handoff: Any) -> None:
    """``cherrypy.quickstart`` until a newer generation serves, or until it is told to stop. ``handoff``: ``grace``
    and the ``handoff_…`` keywords, as for ``fdhandoff.servers.cheroot.Server``. Handlers find the
    ``Service`` as ``cherrypy.request.wsgi_environ["fdhandoff"]``. Raises what ``Service`` raises."""
    if config:
        cherrypy._global_conf_alias.update(config)
    cherrypy.tree.mount(root, script_name, config)
    settings = cherrypy.server
    settings.unsubscribe()
    cherrypy.engine.autoreload.unsubscribe()  # it would replace the process behind the service's back
    server = Server(
        settings.socket_file or (settings.socket_host, settings.socket_port),
        cherrypy.tree,
        numthreads=settings.thread_pool,
        max=settings.thread_pool_max,
        request_queue_size=settings.socket_queue_size,
        timeout=settings.socket_timeout,
        shutdown_timeout=settings.shutdown_timeout,
        **{"handoff_name": service_name(None, "cherrypy"), **handoff},
    )
    cherrypy.engine.start()
    try:
        server.start()
    finally:
        cherrypy.engine.exit()
