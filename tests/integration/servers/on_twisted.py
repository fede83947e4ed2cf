"""twisted.web by its adapter; answers name the generation: ``/slow/…``, ``/big``, anything else at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slow import pauses
from twisted.internet import endpoints, reactor  # noqa: F401 - endpoints take the inherited listeners for themselves
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from fdhandoff.servers import twisted


class Answer(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> Any:
        size = len(request.content.read())
        body = f"app {service.generation.number} {size}".encode()
        if request.path == b"/big":
            return body + b" " * 500_000
        if not request.path.startswith(b"/slow/"):
            return body
        request.setHeader(b"content-length", b"%d" % len(body))
        go_on(pauses(request.path[6:].decode()), lambda: (request.write(body), request.finish()))
        return NOT_DONE_YET

    render_POST = render_GET


def go_on(left: Iterator[float], end: Callable[[], object]) -> None:
    pause = next(left, None)
    if pause is None:
        end()
    else:
        reactor.callLater(pause, go_on, left, end)


port, path, *files = sys.argv[1:]
site: Any = Site(Answer(), timeout=60)
if files:
    from twisted.internet.ssl import PrivateCertificate
    from twisted.protocols.tls import TLSMemoryBIOFactory

    options = PrivateCertificate.loadPEM("".join(Path(file).read_text() for file in files)).options()
    site = TLSMemoryBIOFactory(options, False, site)
service = twisted.listen(site, f"127.0.0.1:{port}", handoff_path=path, handoff_probation=0.5, grace=20)
reactor.run()
