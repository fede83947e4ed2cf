"""granian, which has no option for a listener that it is given; a certificate and its key are for TLS."""

import sys
from pathlib import Path

from granian import Granian
from granian.net import SocketHolder


class Server(Granian):
    def _init_shared_socket(self):
        self._ssp, self._sso, self._sfd = None, None, 3
        self._shd = SocketHolder(3, False, self.backlog)


if __name__ == "__main__":
    certificate, key = (*map(Path, sys.argv[1:]), None, None)[:2]
    Server("asgi:app", interface="asgi", log_enabled=False, ssl_cert=certificate, ssl_key=key).serve()
