"""granian, which has no option for a listener that it is given."""

from granian import Granian
from granian.net import SocketHolder


class Server(Granian):
    def _init_shared_socket(self):
        self._ssp, self._sso, self._sfd = None, None, 3
        self._shd = SocketHolder(3, False, self.backlog)


if __name__ == "__main__":
    Server("asgi:app", interface="asgi", log_enabled=False).serve()
