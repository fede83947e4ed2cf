"""A server of one's own that can be watched: ``watched.py PORT PATH JSON``, where ``JSON`` has more of ``Service``'s options.
It answers each connection once; ``/hold`` when the client says one byte more."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Any

from fdhandoff import Service

if TYPE_CHECKING:
    from fdhandoff.connection import CountedSocket


def main() -> None:
    port, path, options = sys.argv[1:]
    with Service("watched", path=path, grace=20, **{"probation": 0.5, **json.loads(options)}) as service:
        service.listen("main", f"127.0.0.1:{port}")

        def answer(connection: CountedSocket, _: Any) -> None:
            threading.Thread(target=reply, args=(connection,), daemon=True).start()

        def reply(connection: CountedSocket) -> None:
            with connection:
                connection.settimeout(20)
                try:
                    asked = connection.recv(4096)
                    if b"/hold" in asked:
                        connection.recv(1)
                    body = b"app %d %d" % (service.generation.number, service.generation.pid)
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
                    )
                except OSError:
                    return  # the client has hung up

        service.ready()
        service.serve(answer)
        service.drain()


if __name__ == "__main__":
    main()
