"""Threaded servers whose handlers give their state: a conversation in lines, in which a number of bytes may follow.

``name NAME``, ``take COUNT`` and so many bytes, anything else; each answer is a line with generation, name, and how often the
client has spoken. By ``rfile`` (``stream``), by ``request.recv`` (``bare``), or begun by an HTTP request (``http``).
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, StreamRequestHandler, ThreadingTCPServer
from typing import Any

from fdhandoff.servers.socketserver import serve


class Talk:
    server: Any
    facts: dict[str, Any]

    def answer(self, text: str) -> bytes:
        self.facts["said"] += 1
        return f"{self.server.service.generation.number} {self.facts['name']} #{self.facts['said']}: {text}\n".encode()

    def heard(self, line: str) -> bytes:
        if line.startswith("name "):
            self.facts["name"] = line[5:]
        return self.answer(line)

    def state(self) -> bytes | None:
        return json.dumps(self.facts).encode()

    def resume(self, state: bytes) -> None:
        self.facts = json.loads(state)
        self.talk()

    def handle(self) -> None:
        self.facts = {"name": "nobody", "said": 0}
        self.talk()

    def talk(self) -> None:
        raise NotImplementedError


class Stream(Talk, StreamRequestHandler):
    wbufsize = -1
    timeout = 60

    def talk(self) -> None:
        while True:
            if size := self.facts.get("take"):  # read before the connection moved, perhaps
                text = self.rfile.read(size).decode()
                said = self.answer(text)
                self.facts["take"] = 0
            elif line := self.rfile.readline().decode().rstrip("\n"):
                word, _, count = line.partition(" ")
                if word == "take":
                    self.facts["take"] = int(count)
                    continue
                said = self.heard(line)
            else:
                return
            self.wfile.write(said)
            self.wfile.flush()


class Bare(Talk, BaseRequestHandler):
    def handle(self) -> None:
        self.facts = {"name": "nobody", "said": 0, "rest": ""}
        self.talk()

    def talk(self) -> None:
        while data := self.request.recv(4096).decode():
            self.facts["rest"] += data
            while True:
                line, end, rest = self.facts["rest"].partition("\n")
                word, _, count = line.partition(" ")
                if not end or (word == "take" and len(rest) < int(count)):
                    break
                size = int(count) if word == "take" else 0
                self.facts["rest"] = rest[size:]
                self.request.sendall(self.answer(rest[:size]) if size else self.heard(line))


class Http(Talk, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    facts: Any = None
    handle = BaseHTTPRequestHandler.handle
    talk = Stream.talk

    def state(self) -> bytes | None:
        return None if self.facts is None else super().state()

    def do_GET(self) -> None:
        if "Upgrade" in self.headers:
            self.send_response(101)
            self.send_header("Upgrade", "lines")
            self.end_headers()
            self.close_connection = True
            Talk.handle(self)
            return
        body = f"app {self.server.service.generation.number} 0".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    kind, port, path = sys.argv[1:]
    handler: Any = {"stream": Stream, "bare": Bare, "http": Http}[kind]
    server = ThreadingHTTPServer if kind == "http" else ThreadingTCPServer
    serve(server, ("127.0.0.1", int(port)), handler, handoff_path=path, handoff_probation=0.0, grace=20)


if __name__ == "__main__":
    main()
