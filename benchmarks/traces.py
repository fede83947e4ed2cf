"""What happened to the connections on which something went wrong: what was on the wire, what the server did, and when it was
told to, joined by time. Packets come from the loopback interface, the server's calls from strace; both need root's rights.

As a program: writes the packets of one port to a file until its standard input ends.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .measure import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

_ETH_P_IP, _PACKET_OUTGOING = 0x0800, 4
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 26, 35, 33
_SNAP = 256
_RECORD = struct.Struct("=QHH")
_FLAGS = ((0x02, "SYN"), (0x01, "FIN"), (0x04, "RST"))
#: How much of a connection's last moments is told.
_PACKETS, _CALLS, _SECONDS, _AFTER = 8, 6, 5.0, 0.05
_CALLED = "close,shutdown,exit_group,accept,accept4"
_SIGNALS = "SIGTERM,SIGQUIT,SIGUSR1,SIGINT,SIGKILL"


class Line(NamedTuple):
    at: float  # seconds of the wall clock
    text: str


class Traces:
    """Around one row; ``before`` each swap is told which processes will end in it."""

    def __init__(self, port: int) -> None:
        if os.geteuid() or shutil.which("strace") is None:
            raise SystemExit("traces need root's rights and strace: leave --traces out, or apt-get install strace")
        self.port = port
        self._temporary = tempfile.TemporaryDirectory(
            prefix="fdhandoff-traces-"
        )  # as long as there is something to tell
        self.folder = Path(self._temporary.name)
        self.events: list[Line] = []
        self._straces: list[subprocess.Popen[bytes]] = []
        self._family: dict[str, int] = {}  # process and generation
        self._capture = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(port), str(self.folder / "packets")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        assert self._capture.stdout is not None
        if not select.select([self._capture.stdout], [], [], 30.0)[0] or not self._capture.stdout.readline():
            self.close()
            raise SystemExit("no packets of the loopback interface are to be had: leave --traces out")

    def say(self, text: str) -> None:
        self.events.append(Line(time.time(), text))

    def before(self, generation: int, pids: list[int]) -> None:
        family = [str(one) for pid in pids for one in descendants(pid)]
        self._family.update(dict.fromkeys(family, generation))
        number = len(self._straces)
        words = ["strace", "-f", "-yy", "-ttt", "-e", f"trace={_CALLED}", "-e", f"signal={_SIGNALS}"]
        words += ["-o", str(self.folder / f"calls-{number}"), *(word for pid in family for word in ("-p", pid))]
        said = self.folder / f"said-{number}"
        with open(said, "wb") as file:
            tracer = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self._straces.append(tracer)
        # It says of each that it is attached; whoever has ended meanwhile is of no interest.
        give_up = time.monotonic() + 10.0
        while (
            said.read_bytes().count(b"attached") < len(family) and tracer.poll() is None and time.monotonic() < give_up
        ):
            time.sleep(0.01)

    def close(self) -> None:
        for one in self._straces:
            if one.poll() is None:
                one.terminate()
            one.wait(30)
        self._capture.communicate(timeout=30)

    def tell(self, title: str, at: float, client: int) -> str:
        """Of the connection that had the client's port, what happened up to ``at``, in milliseconds before it."""
        wire = [line for line in self._wire(client) if line.at <= at + _AFTER]
        begun = max((line.at for line in wire if line.text == "→ SYN"), default=at - _SECONDS) - 0.001
        packets = [line for line in wire if begun <= line.at][-_PACKETS:]
        answered = [found[1] for line in packets if (found := re.search(r"app (\d+)", line.text))]
        generation = int(answered[-1]) if answered else 0
        calls = [line for line in self._calls(client, generation) if begun <= line.at <= at + _AFTER][-_CALLS:]
        named = re.compile(rf"\bgeneration {generation or ''}\b")
        since = min(packets[0].at if packets else at, at - 2.5)
        events = [line for line in self.events if since <= line.at <= at + _AFTER and named.search(line.text)]
        lines = sorted({*packets, *calls, *events})
        table = "\n".join(f"{(line.at - at) * 1000:10.2f} ms  {line.text}" for line in lines)
        return f"{title}\nclient port {client}, server port {self.port}; → to the server, ← to the client\n\n{table}\n"

    def _wire(self, client: int) -> Iterator[Line]:
        for at, packet in read_packets(self.folder / "packets"):
            text = describe(packet, client, self.port)
            if text:
                yield Line(at, text)

    def _calls(self, client: int, generation: int) -> Iterator[Line]:
        """strace's lines about this connection, and the signals and ends of the generation's processes (0: of all)."""
        mark = f"127.0.0.1:{client}]"
        for path in sorted(self.folder.glob("calls-*")):
            for text in path.read_text(errors="replace").splitlines():
                found = re.match(r"(\d+) +(\d+\.\d+) (.*)", text)
                if found is None:
                    continue
                pid, at, call = found.groups()
                ends = call.startswith(("--- SIG", "exit_group", "+++ killed"))
                ends = ends and self._family.get(pid) in ((generation,) if generation else self._family.values())
                if mark in call or ends:
                    yield Line(float(at), f"· process {pid}: {_short(call)}")


def _short(call: str) -> str:
    call = re.sub(r"<TCP(v6)?:\[[^\]]*\]>", "", call)
    return re.sub(r" \{si_signo=\w+, si_code=\w+, (si_pid=\d+).*?\}", r" from \1", call)


def descendants(pid: int) -> list[int]:
    found = [pid]
    for place in Path(f"/proc/{pid}/task").glob("*/children") if os.path.isdir(f"/proc/{pid}/task") else ():
        try:
            children = place.read_text().split()
        except OSError:
            continue  # that thread has ended
        found += [one for child in children for one in descendants(int(child))]
    return found


# --- packets ------------------------------------------------------------------------------------------------


def describe(packet: bytes, client: int, server: int) -> str:
    """A packet of the connection in words; empty for another's, and for one that only acknowledges."""
    size = int.from_bytes(packet[2:4], "big")
    tcp = packet[(packet[0] & 15) * 4 :]
    source, target = struct.unpack_from(">HH", tcp)
    if {source, target} != {client, server}:
        return ""
    head = (tcp[12] >> 4) * 4
    flags = [name for bit, name in _FLAGS if tcp[13] & bit]
    count = size - (packet[0] & 15) * 4 - head
    if not flags and not count:
        return ""
    said = [*flags, *([f"{count} bytes{_content(tcp[head:])}"] if count else [])]
    return f"{'→' if target == server else '←'} {', '.join(said)}"


def _content(data: bytes) -> str:
    """What an HTTP head is about."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if data.startswith(b"app "):
        return f": {data[:12].decode('latin-1').rstrip()}"
    if not re.match(r"HTTP/|GET |POST ", lines[0]):
        return ""
    more = [line for line in lines[1:] if line.lower().startswith("connection:")]
    generation = [body[:12].decode("latin-1").rstrip()] if body.startswith(b"app ") else []
    return ": " + "; ".join([lines[0], *more, *generation])


def read_packets(path: Path) -> Iterator[tuple[float, bytes]]:
    data = path.read_bytes()
    place = 0
    while place + _RECORD.size <= len(data):
        at, size, _ = _RECORD.unpack_from(data, place)
        place += _RECORD.size
        yield at / 1e9, data[place : place + size]
        place += size


def _filter(port: int) -> tuple[bytes, Any]:
    """A classic BPF program: IPv4, TCP, from or to this port."""
    code = [
        (0x30, 0, 0, 9),  # protocol
        (0x15, 0, 6, socket.IPPROTO_TCP),
        (0xB1, 0, 0, 0),  # the head's length
        (0x48, 0, 0, 0),  # source
        (0x15, 2, 0, port),
        (0x48, 0, 0, 2),  # target
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    return struct.pack("@HP", len(code), ctypes.addressof(program)), program


def capture(port: int, path: str) -> None:
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as sock,
        open(path, "wb") as file,
    ):
        option, program = _filter(port)
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
        del program  # the kernel has its own
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.bind(("lo", _ETH_P_IP))
        print("begun", flush=True)
        while True:
            ready, _, _ = select.select([sock, 0], [], [])
            if 0 in ready:
                return
            data, rest, _, address = sock.recvmsg(_SNAP, 64)
            if address[2] == _PACKET_OUTGOING or not rest:
                continue  # each is seen twice
            seconds, nanoseconds = struct.unpack_from("@qq", rest[0][2])
            file.write(_RECORD.pack(seconds * 1_000_000_000 + nanoseconds, len(data), 0) + data)


if __name__ == "__main__":
    capture(int(sys.argv[1]), sys.argv[2])
