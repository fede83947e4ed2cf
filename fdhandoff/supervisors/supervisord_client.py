"""Asking supervisord, as its own ``supervisorctl`` does: by XML-RPC, where its configuration says that it answers."""

from __future__ import annotations

import base64
import configparser
import http.client
import os
import socket
import urllib.parse
import xmlrpc.client

from ..errors import NOBODY, OLD, HandoffError, PathError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: Where supervisorctl looks for a configuration, the package's own places last.
CONFIGURATIONS = (
    "supervisord.conf",
    "etc/supervisord.conf",
    "/etc/supervisord.conf",
    "/etc/supervisor/supervisord.conf",
)
_DEFAULT_SERVER = "http://localhost:9001"
_ANSWER_SECONDS = 30.0
_LOG_BYTES = 2000

_BAD_NAME, _ALREADY_STARTED = 10, 60
# States of a process, by its own numbers.
STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL = 0, 10, 20, 30, 40, 100, 200


class Server:
    """Where supervisord answers, and who asks."""

    __slots__ = ("password", "url", "user")

    def __init__(self, url: str, user: str = "", password: str = "") -> None:
        self.url = url
        self.user = user
        self.password = password

    @classmethod
    def from_file(cls, path: str, environ: Mapping[str, str]) -> Server:
        """What ``[supervisorctl]`` in ``path`` says (empty: the first configuration that there is). ``PathError`` when there is
        none, or it makes no sense."""
        found = path or next(filter(os.path.isfile, CONFIGURATIONS), "")
        if not found:
            raise PathError(
                f"supervisord's configuration is in none of {', '.join(CONFIGURATIONS)}: say --supervisord-conf FILE",
                path="",
            )
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
        try:
            with open(found, encoding="utf-8") as file:
                parser.read_file(file)
        except OSError as error:
            raise PathError(
                f"supervisord's configuration {found} can't be read: {error.strerror}", path=found
            ) from None
        except (configparser.Error, UnicodeDecodeError) as error:
            raise PathError(f"{found} is no configuration of supervisord: {_line(error)}", path=found) from None
        known = {"here": os.path.dirname(os.path.abspath(found)), **{f"ENV_{key}": one for key, one in environ.items()}}

        def said(option: str, otherwise: str = "") -> str:
            text = parser.get("supervisorctl", option, fallback=otherwise).strip()
            try:
                return text % known
            except (KeyError, TypeError, ValueError):
                raise PathError(f"{found}: {option}={text} can't be expanded", path=found) from None

        return cls(said("serverurl", _DEFAULT_SERVER), said("username"), said("password"))


class Program:
    """What supervisord says of one of its programs."""

    __slots__ = ("name", "pid", "reason", "state", "word")

    def __init__(self, name: str, state: int, word: str, pid: int, reason: str) -> None:
        self.name = name
        self.state = state
        self.word = word
        self.pid = pid
        self.reason = reason


class Supervisord:
    """One supervisord. Each method asks once, and raises ``HandoffError`` when the answer is no or there is none."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._rpc = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=_Transport(server), allow_none=True)

    def program(self, name: str) -> Program:
        info = self._ask("getProcessInfo", name)
        reason = str(info.get("spawnerr") or info.get("description") or "")
        return Program(name, int(info["state"]), str(info["statename"]), int(info["pid"]), reason)

    def start(self, name: str) -> None:
        """Returns when its process is there; ``program`` tells what becomes of it."""
        self._ask("startProcess", name, False)

    def last_words(self, name: str) -> str:
        """The last line of its log, which is often why it ended; empty where there is none."""
        try:
            text = str(self._ask("readProcessStdoutLog", name, -_LOG_BYTES, 0))
        except HandoffError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def _ask(self, method: str, name: str, *more: object) -> Any:
        try:
            return getattr(self._rpc.supervisor, method)(name, *more)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == _ALREADY_STARTED:
                return True
            if fault.faultCode == _BAD_NAME:
                raise HandoffError(
                    f"supervisord knows no program {name!r}: supervisorctl update, if its configuration is new"
                ) from None
            raise HandoffError(f"supervisord could not start {name!r}: {fault.faultString}", serving=NOBODY) from None
        except xmlrpc.client.ProtocolError as error:
            why = (
                "it wants another user or password" if error.errcode == 401 else f"HTTP {error.errcode} {error.errmsg}"
            )
            raise HandoffError(f"supervisord at {self._server.url} refuses: {why}", serving=OLD) from None
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise PathError(
                f"supervisord does not answer at {self._server.url}: {getattr(error, 'strerror', None) or _line(error)}",
                path=self._server.url,
            ) from None

    def close(self) -> None:
        self._rpc("close")()


class _Transport(xmlrpc.client.Transport):
    """HTTP over whatever the server's URL names."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        if server.user:
            word = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
            self._headers = [("Authorization", f"Basic {word}")]

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        if self._connection[1] is None:
            self._connection = host, _connection(self._server.url)
        connection = self._connection[1]
        assert connection is not None
        return connection


def _connection(url: str) -> http.client.HTTPConnection:
    if url.startswith("unix://"):
        return _UnixConnection(url.removeprefix("unix://"))
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise Unsupported(f"supervisord is said to answer at {url!r}: that is neither unix:// nor http://")
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_ANSWER_SECONDS)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
