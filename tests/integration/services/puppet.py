"""A server that answers questions about itself, line by line, and does what ``config.json`` says."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from fdhandoff import HandoffError, Service

STARTED = time.monotonic()
DIRECTORY = Path(sys.argv[1])
CONFIG = json.loads((DIRECTORY / "config.json").read_text())
RELEASE = CONFIG.get("release", "")
MISBEHAVE = CONFIG.get("misbehave", "")
OPTIONS = ("probation", "ready_timeout", "takeover_timeout", "grace", "pidfile", "command", "same_pid")


def tell(*words: object) -> None:
    os.write(1, f"{os.getpid()} {' '.join(map(str, words))}\n".encode())


def misbehave(moment: str) -> None:
    """``exit0``, ``exit1``, ``kill``, ``hang``, ``raise`` at ``moment``."""
    when, _, how = MISBEHAVE.partition(":")
    if when != moment:
        return
    tell("misbehaves", how)
    if how.startswith("exit"):
        os._exit(int(how[4:]))
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    if how == "raise":
        raise RuntimeError("a bad release")


def make_service() -> Service:
    options = {key: CONFIG[key] for key in OPTIONS if key in CONFIG}
    return Service(
        "puppet",
        path=CONFIG.get("path", str(DIRECTORY / "handoff.sock")),
        log=lambda line: tell("log", line),
        **options,
    )


def listen(service: Service) -> None:
    for name, address in CONFIG["listeners"].items():
        sock = service.listen(name, address)
        where = sock.getsockname()
        if isinstance(where, bytes):
            where = "@" + where[1:].decode()
        tell("listens", name, json.dumps(where).replace(" ", ""))
        if sock.type & 0xF == socket.SOCK_DGRAM:
            threading.Thread(target=datagrams, args=(service, name, sock), daemon=True).start()


def hook_everything(service: Service) -> None:
    vetoes = CONFIG.get("veto", [])
    for when in ("before", "after"):
        for step in (
            "ready",
            "upgrade",
            "offer",
            "commit",
            "rollback",
            "drain",
            "stop",
            "SIGHUP",
            "SIGTERM",
            "SIGUSR1",
        ):

            def hook(when: str = when, step: str = step) -> None:
                tell("hook", when, step)
                if f"{when} {step}" in vetoes:
                    raise ValueError("not today")

            if (when, step) != ("before", "rollback"):
                getattr(service, when)(step, hook)


def datagrams(service: Service, name: str, sock: socket.socket) -> None:
    """Reads only while it is the owner."""
    while not service.owner:
        time.sleep(0.01)
    sock.settimeout(0.05)
    while not service.gate.closed:
        try:
            data, sender = sock.recvfrom(4096)
        except (TimeoutError, BlockingIOError):
            continue
        except OSError:
            return
        if sender:
            sock.sendto(b"%d %d %s %s" % (service.generation.number, os.getpid(), name.encode(), data), sender)


def talk(service: Service, connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as stream:
        for line in stream:
            words = line.decode().split()
            try:
                answer = ANSWERS[words[0]](service, *words[1:])
            except HandoffError as error:
                answer = f"{type(error).__name__} {error.serving} {error}"
            connection.sendall(str(answer).encode() + b"\n")
            if service.draining:
                return


def _upgrade(service: Service) -> str:
    handed = service.upgrade()
    return f"handed {handed.generation.number} {handed.peer.pid}"


def _write(service: Service, name: str, text: str) -> str:
    os.write(service.files[name], text.encode())
    return "written"


def _slow(_: Service, seconds: str) -> str:
    time.sleep(float(seconds))
    return "slept"


ANSWERS = {
    "who": lambda service: f"{service.generation.number} {os.getpid()} {RELEASE}",
    "upgrade": _upgrade,
    "fds": lambda service: len(os.listdir("/proc/self/fd")) - 1,
    "threads": lambda service: threading.active_count(),
    "environment": lambda service: json.dumps(dict(os.environ), sort_keys=True),
    "cwd": lambda service: f"{os.getcwd()} {os.environ.get('PWD')}",
    "state": lambda service: service.state.decode() or "empty",
    "status": lambda service: json.dumps(service.status()),
    "files": lambda service: ",".join(service.files) or "none",
    "came": lambda service: ",".join(service.listeners.names) or "none",
    "write": _write,
    "slow": _slow,
    "stop": lambda service: service.stop() or "stopping",
}


def adopt(service: Service) -> None:
    """Files: those that came are kept as ``keep`` says, or made anew."""
    for name in CONFIG.get("files", []):
        if name in service.files:
            assert service.files[name] >= 0
        else:
            service.adopt(name, os.open(DIRECTORY / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))


def main() -> None:
    tell("started", RELEASE)
    misbehave("start")
    with make_service() as service:
        hook_everything(service) if CONFIG.get("hooks") else None
        service.on_state(lambda: b"%d:%d" % (service.generation.number, service.gate.counters.accepted))
        listen(service)
        adopt(service)
        misbehave("boot")
        if MISBEHAVE == "commit:stop":
            session = service.takeover._conversation.session
            session.observe(lambda _, step, __: os.kill(os.getpid(), signal.SIGSTOP) if step == "got COMMIT" else None)
        service.ready()
        tell("ready", service.generation.number, "orphaned" if service.orphaned else "")
        if CONFIG.get("watch_old"):
            threading.Thread(target=lambda: tell("old ended", service.wait_old()), daemon=True).start()
        misbehave("ready")

        def serve(connection: socket.socket, _: object) -> None:
            threading.Thread(target=talk, args=(service, connection), daemon=True).start()

        tell("ends", service.serve(serve))
        report = service.drain()
        tell("drained", report.finished, report.forced)
    tell("closed")


if __name__ == "__main__":
    main()
