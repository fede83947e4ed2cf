"""A small server as a process of its own: it owns a service, or takes one over, and hands it over to whoever comes.

Started by ``tests.support.cast`` with its orders as JSON; it reports on its standard output, one JSON object a line, and hears
commands on its standard input. It answers each connection with its pid.
"""

from __future__ import annotations

import contextlib
import encodings.ascii  # noqa: F401 - another user may not read where it lies
import json
import os
import resource
import selectors
import signal
import socket
import sys
import threading
from typing import Any

import fdhandoff
from fdhandoff import Gate, receive, send  # all of it now, for the same reason
from fdhandoff.system.channel import Channel


def report(event: str, **more: Any) -> None:
    os.write(1, json.dumps({"event": event, **more}).encode() + b"\n")


class Server:
    """Accepts through the gate: when it is closed nothing is accepted any more. Answers with the pid."""

    def __init__(self, listener: socket.socket, gate: Gate) -> None:
        self.listener, self.gate = listener, gate
        listener.setblocking(False)
        self.wake_read, self.wake_write = socket.socketpair()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self.wake_read, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self.wake_read:
                        return
                    if not self.gate.enter():
                        # Between ready and commit, or handed over: the connections stay in the queue.
                        threading.Event().wait(0.002)
                        continue
                    try:
                        connection, _ = self.listener.accept()
                    except BlockingIOError:
                        pass
                    else:
                        with connection, contextlib.suppress(OSError):
                            connection.sendall(b"%d\n" % os.getpid())
                    self.gate.leave()

    def stop(self) -> None:
        self.wake_write.send(b"x")
        self.thread.join()
        self.wake_read.close()
        self.wake_write.close()


class Actor:
    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.path: str = orders["path"]
        self.role = "owner"
        self.server: Server | None = None
        self.extra: list[socket.socket] = []
        self._prepare()

    def _prepare(self) -> None:
        if self.orders.get("storm"):  # every system call may be interrupted
            signal.signal(signal.SIGUSR1, lambda number, frame: None)
            signal.siginterrupt(signal.SIGUSR1, True)
        if self.orders.get("tiny"):
            plain = Channel.__init__

            def small(channel: Channel, sock: socket.socket) -> None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel makes the least possible of it
                plain(channel, sock)

            Channel.__init__ = small  # type: ignore[method-assign]
        for _ in range(self.orders.get("extra", 0)):
            self.extra.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.extra[-1].bind(("127.0.0.1", 0))

    def on_step(self, before: str, step: str, after: str) -> None:
        trap = self.orders.get("trap")
        if trap and (trap["role"], trap["state"]) == (self.role, after) and before != after:
            if trap["victim"] == self.role:
                os.kill(os.getpid(), signal.SIGKILL)
            self.orders["trap"] = None
            if trap.get("fork"):
                child = os.fork()
                if not child:
                    signal.pause()
                report("forked", pid=child)
            report("trapped", state=after, step=step)
            sys.stdin.readline()  # the other one is dead when this returns

    def take(self) -> socket.socket:
        self.role = "taker"
        if "nofile" in self.orders:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.orders["nofile"],) * 2)
        if "soft" in self.orders:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.orders["soft"], max(self.orders["soft"], 4096)))
        if "uid" in self.orders:
            os.setgroups([])
            os.setgid(self.orders["uid"])
            os.setuid(self.orders["uid"])
        takeover = receive(self.path, timeout=self.orders.get("timeout", 10), on_step=self.on_step)
        report("taken", state=len(takeover.state), names=list(takeover.listeners.names))
        if self.orders.get("wait_before_ready"):
            sys.stdin.readline()
        takeover.ready(self.orders.get("ready", 20))
        if self.orders.get("give_back"):
            try:
                takeover.abort("it can't serve after all", self.orders.get("patience", 30.0))
            except fdhandoff.Unconfirmed as error:
                report("unconfirmed", serving=error.serving)
                sys.exit(0)
            except fdhandoff.PeerGone as error:
                report("kept", serving=error.serving)
            else:
                report("gave back")
                sys.exit(0)
        report("owner", orphaned=takeover.orphaned, strict=takeover.strict, generation=takeover.generation.number)
        listener = takeover.listeners["main"]
        if takeover.counters_fd >= 0:
            os.close(takeover.counters_fd)
        for name, sock in takeover.listeners.items():
            if name != "main":
                sock.close()
        takeover.close()
        return listener

    def bind(self) -> socket.socket:
        if "unix" in self.orders:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(self.orders["unix"])
            listener.listen()
            report("bound", port=0)
            return listener
        listener = socket.create_server(("127.0.0.1", self.orders.get("port", 0)))
        report("bound", port=listener.getsockname()[1])
        return listener

    def live(self) -> None:
        if self.orders.get("take"):
            listener = self.take()
        else:
            listener = self.bind()
        self.role = "owner"
        gate = Gate()
        self.server = Server(listener, gate)
        report("serving")
        while self.offer(listener, gate):
            pass
        self.server.stop()
        report("ending")
        if self.orders.get("linger"):
            sys.stdin.readline()

    def offer(self, listener: socket.socket, gate: Gate) -> bool:
        """One offer; whether this process still serves after it."""
        try:
            handed = send(
                self.path,
                {"main": listener, **{f"extra{index}": sock for index, sock in enumerate(self.extra)}},
                gate=gate,
                state=b"s" * self.orders.get("state", 0),
                ready_timeout=self.orders.get("ready_timeout", 20),
                serving_timeout=self.orders.get("serving_timeout", 20),
                probation=self.orders.get("probation", 0),
                on_commit=(lambda: b"f" * self.orders["final"]) if "final" in self.orders else None,
                mode=self.orders.get("mode", 0o600),
                allow_uids=self.orders.get("allow_uids", ()),
                on_step=self.on_step,
            )
        except fdhandoff.HandoffError as error:
            report("failed", error=type(error).__name__, serving=error.serving, sentence=str(error))
            return error.serving == "old"
        report("handed", pid=handed.peer.pid, generation=handed.generation.number)
        return False


def main() -> None:
    actor = Actor(json.loads(sys.argv[1]))
    try:
        actor.live()
    except fdhandoff.HandoffError as error:
        report("failed", error=type(error).__name__, serving=error.serving, sentence=str(error))
        sys.exit(3)


if __name__ == "__main__":
    main()
