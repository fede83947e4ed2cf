"""Channel: 10,000 listeners to another process, in microseconds for all, until its last acknowledgement.

``frames`` are the protocol's own, of 252 descriptors with a real payload made before the clock starts; each is acknowledged,
and never more than the protocol's window is under way. ``messages`` also makes and reads every entry, ``send and receive``
is the whole conversation: describing each listener, verifying each on arrival, ready, commit. The limit is a bare C loop of
``sendmsg`` and ``recvmsg`` with 253 each and one acknowledgement at the end. Beside it: ``multiprocessing.reduction``."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from multiprocessing import reduction
from typing import TYPE_CHECKING

import fdhandoff
from fdhandoff.deadline import FOREVER
from fdhandoff.inventory import entry_of
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import Ack, Items
from fdhandoff.protocol.session import ITEMS_PER_FRAME, WINDOW
from fdhandoff.system.channel import Channel, wait
from fdhandoff.system.fds import close_all

from .measure import Row, in_child, join, run_c, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_ALL = 10_000
_ACK = frames.HEADER.size


class Frames:
    """Descriptors and bytes through ``Channel``; payloads are neither made nor read while it runs."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds
        entry = entry_of("listener00000", fds[0])
        self.frames = []
        for first in range(0, len(fds), ITEMS_PER_FRAME):
            own = fds[first : first + ITEMS_PER_FRAME]
            self.frames.append((frames.encode(Items(first=first, entries=[entry] * len(own)), len(own)), own))

    def send(self, channel: Channel) -> None:
        under_way, acknowledged = 0, 0
        ack_size = len(frames.encode(Ack(items=0)))
        owed = 0
        for data, own in self.frames:
            while under_way + len(own) > WINDOW:
                owed += _receive(channel)
                while owed >= ack_size:
                    owed -= ack_size
                    under_way -= len(self.frames[acknowledged][1])
                    acknowledged += 1
            channel.send([(data, len(own))], own, FOREVER)
            under_way += len(own)
        while acknowledged < len(self.frames):
            owed += _receive(channel)
            acknowledged += owed // ack_size
            owed %= ack_size

    def receive(self, channel: Channel) -> list[int]:
        fds: list[int] = []
        sizes = [len(data) for data, _ in self.frames]
        ends, position, got = 0, 0, 0
        while position < len(sizes):
            arrived = channel.receive()
            if arrived is None:
                wait((channel.fileno(),), (), FOREVER)
                continue
            got += len(arrived[0])
            fds += arrived[1]
            while position < len(sizes) and got >= ends + sizes[position]:
                ends += sizes[position]
                position += 1
                channel.send([(frames.encode(Ack(items=len(fds))), 0)], (), FOREVER)
        return fds


def _receive(channel: Channel) -> int:
    while True:
        arrived = channel.receive()
        if arrived is not None:
            assert arrived[0], "the other side ended"
            return len(arrived[0])
        wait((channel.fileno(),), (), FOREVER)


class Messages:
    """Every entry is made from the descriptor's description and read again on arrival; nothing is looked at twice."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds
        entry = entry_of("listener00000", fds[0])
        self.entries = [entry] * len(fds)

    def send(self, channel: Channel) -> None:
        acknowledged = position = 0
        decoder = frames.Decoder()
        while acknowledged < len(self.fds):
            n = min(ITEMS_PER_FRAME, len(self.fds) - position)
            if n and position + n - acknowledged <= WINDOW:
                message = Items(first=position, entries=self.entries[position : position + n])
                own = self.fds[position : position + n]
                channel.send([(frames.encode(message, n), n)], own, FOREVER)
                position += n
                continue
            arrived = channel.receive()
            if arrived is None:
                wait((channel.fileno(),), (), FOREVER)
                continue
            decoder.feed(*arrived)
            for ack, _ in decoder.messages():
                assert isinstance(ack, Ack)
                acknowledged = ack.items

    def receive(self, channel: Channel) -> list[int]:
        fds: list[int] = []
        decoder = frames.Decoder()
        while len(fds) < len(self.fds):
            arrived = channel.receive()
            if arrived is None:
                wait((channel.fileno(),), (), FOREVER)
                continue
            decoder.feed(*arrived)
            for _, own in decoder.messages():
                fds += own
                channel.send([(frames.encode(Ack(items=len(fds))), 0)], (), FOREVER)
        return fds


class Reduction:
    """``multiprocessing.reduction``: one descriptor for one call, as ``send_handle`` and ``recv_handle`` do it."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def send(self, channel: Channel) -> None:
        channel.socket.setblocking(True)
        pid = os.getpid()
        for fd in self.fds:
            reduction.send_handle(channel.socket, fd, pid)
        channel.socket.setblocking(False)

    def receive(self, channel: Channel) -> list[int]:
        channel.socket.setblocking(True)
        fds = [reduction.recv_handle(channel.socket) for _ in self.fds]
        channel.socket.setblocking(False)
        return fds


class SendFds:
    """``socket.send_fds`` and ``recv_fds`` in a loop, 252 each, one acknowledgement at the end."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def send(self, channel: Channel) -> None:
        channel.socket.setblocking(True)
        for first in range(0, len(self.fds), ITEMS_PER_FRAME):
            socket.send_fds(channel.socket, [b"x"], self.fds[first : first + ITEMS_PER_FRAME])
        assert channel.socket.recv(1)
        channel.socket.setblocking(False)

    def receive(self, channel: Channel) -> list[int]:
        channel.socket.setblocking(True)
        fds: list[int] = []
        while len(fds) < len(self.fds):
            fds += socket.recv_fds(channel.socket, 1, ITEMS_PER_FRAME)[1]
        channel.socket.send(b"x")
        channel.socket.setblocking(False)
        return fds


def _listeners() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(_ALL):
            yield os.dup(listener.fileno())


class Pair:
    """One kind of sender here, its receiver in a child."""

    def __init__(self, way: Callable[[list[int]], Any], fds: list[int]) -> None:
        ours, theirs = socket.socketpair()
        self._received, done = os.pipe()  # so that a turn begins when the last one's descriptors are closed
        self._way = way(fds)

        def receiver() -> None:
            ours.close()
            close_all(fds)
            with theirs:
                channel = Channel(theirs)
                while not wait((theirs.fileno(),), (), FOREVER) or theirs.recv(1, socket.MSG_PEEK):
                    close_all(self._way.receive(channel))
                    os.write(done, b".")

        self._child = in_child(receiver)
        theirs.close()
        os.close(done)
        self._channel = Channel(ours)

    def turn(self) -> float:
        before = time.perf_counter_ns()
        self._way.send(self._channel)
        took = (time.perf_counter_ns() - before) / 1000
        assert os.read(self._received, 1) == b"."
        return took

    def close(self) -> None:
        self._channel.close()
        os.close(self._received)
        join(self._child)


def _whole(fds: list[int], turns: int) -> list[float]:
    """From ``receive``'s call to its return, in the child; a fresh path each time."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns + 1):
            path = f"{folder}/{turn}"
            reader, writer = os.pipe()

            def taker(path: str = path, writer: int = writer) -> None:
                close_all(fds)
                while not os.path.exists(path):
                    time.sleep(0.001)
                before = time.perf_counter_ns()
                takeover = fdhandoff.receive(path, timeout=60)
                took = time.perf_counter_ns() - before
                assert len(takeover.listeners) == len(fds)
                takeover.ready()
                os.write(writer, str(took / 1000).encode())

            child = in_child(taker)
            fdhandoff.send(path, fds, timeout=60)
            join(child)
            if turn:
                samples.append(float(os.read(reader, 100)))
            os.close(reader)
            os.close(writer)
    return samples


def run(turns: int) -> list[Row]:
    fds = list(_listeners())
    kinds = {"frames": Frames, "send_fds": SendFds, "messages": Messages, "reduction": Reduction}
    pairs: dict[str, Pair] = {}
    try:
        for name, kind in kinds.items():
            pairs[name] = Pair(kind, fds)
        ways: dict[str, Callable[[], float]] = {name: pair.turn for name, pair in pairs.items()}
        samples = take_turns({"bare": lambda: statistics.median(run_c("channel", 3, _ALL, 253)["bare"]), **ways}, turns)
        whole = _whole(fds, max(3, turns // 3))
    finally:
        for pair in reversed(pairs.values()):  # the later children have the earlier pairs' ends, too
            pair.close()
        close_all(fds)
    bare = Row("C: bare loop of 253", samples["bare"], "us")
    peer = Row("multiprocessing.reduction", samples["reduction"], "us", against=bare, inverse=True)
    return [
        bare,
        Row("frames through the channel", samples["frames"], "us", against=bare, inverse=True, at_least=0.8),
        Row("frames, beside multiprocessing", samples["frames"], "us", against=peer, inverse=True, at_least=10),
        Row("socket.send_fds of 252", samples["send_fds"], "us", against=bare, inverse=True),
        peer,
        Row("messages through the channel", samples["messages"], "us", against=peer, inverse=True),
        Row("send and receive, all of it", whole, "us", against=peer, inverse=True),
    ]
