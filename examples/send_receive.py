"""The two functions everybody starts with: ``send`` gives the listeners away, ``receive`` takes them.

    python examples/send_receive.py /tmp/clock/handoff.sock first        # binds 127.0.0.1:8000, and serves
    python examples/send_receive.py /tmp/clock/handoff.sock              # takes over, and serves; the first one ends
    curl telnet://127.0.0.1:8000                                         # asks what time it is, and who says so

There is no Service here: what it does by itself (signals, starting a successor, probation, the pidfile, the service
manager) is left out, so that the exchange itself can be seen.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

import fdhandoff


def serve(listener: socket.socket, gate: fdhandoff.Gate, ended: threading.Event) -> None:
    """Accepts while the gate is open; what is in the queue when it closes is the next owner's."""

    def answer(connection: socket.socket, _: object) -> None:
        with connection:
            connection.sendall(f"{time.strftime('%X')}, says process {os.getpid()}\n".encode())

    with fdhandoff.AcceptLoop([listener], gate, answer, batch=1) as loop:
        while not ended.is_set():
            loop.run()
            ended.wait(0.05)  # the gate is closed: for good, or until the service comes back because the new side died


def main() -> None:
    path = sys.argv[1]
    gate = fdhandoff.Gate()
    if sys.argv[2:] == ["first"]:
        listeners = {"clock": socket.create_server(("127.0.0.1", 8000))}
        served = 0
    else:
        # When this returns, every listener has come and is what it should be. The old process serves on.
        takeover = fdhandoff.receive(path)
        listeners = dict(takeover.listeners.items())
        served = int(takeover.state or b"0")
        takeover.ready()  # returns when this process is the owner: the old one accepts nothing any more
        served = int(takeover.state or b"0")  # the final state, made after the old gate had closed
    print(f"process {os.getpid()} serves; {served} were served before", flush=True)

    ended = threading.Event()
    threading.Thread(target=serve, args=(listeners["clock"], gate, ended)).start()

    def final_state() -> bytes:
        return str(served + gate.counters.accepted).encode()

    # Waits for a successor, as long as it takes. Between its ready and the commit it closes the gate, so that at any
    # moment exactly one process accepts. If the successor fails, the error says so, and this process serves on: then call
    # it again.
    while True:
        try:
            handed = fdhandoff.send(path, listeners, gate=gate, on_commit=final_state)
            break
        except fdhandoff.HandoffError as error:
            print(f"process {os.getpid()} serves on: {error}", flush=True)
    print(f"process {os.getpid()} handed over to {handed.peer}", flush=True)
    ended.set()
    gate.wait(30)  # whoever is inside gets an answer


if __name__ == "__main__":
    main()
