"""A process that passes a command's output on to ours, and keeps the end of it: see ``fdh_relay_start`` in the C core."""

from __future__ import annotations

import os
import select

from .native import FDH_MORE, check, ffi, lib
from .process import Process, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bytes of each stream's end that are kept.
KEPT = lib.FDH_RELAY_KEPT


class Relay:
    """Pipes, one for each stream, and what a relay over them needs. ``writers`` are for the processes whose output it is;
    ``targets`` say where it goes (-1: nowhere). The pipes and the memory outlive the relay's process: ``start`` it again
    when it has died. ``close`` it; neither that nor our own end ends the process, which ends when nobody can write any more.
    """

    __slots__ = ("memory", "prefix", "readers", "targets", "title", "writers")

    def __init__(
        self,
        memory: int,
        readers: Sequence[int],
        writers: Sequence[int],
        targets: Sequence[int],
        *,
        prefix: str = "",
        title: str = "",
    ) -> None:
        """Takes ``memory``, ``readers`` and ``writers``. ``prefix`` is written before each line; ``title`` is for ``ps``."""
        self.memory = memory
        self.readers = list(readers)
        self.writers = list(writers)
        self.targets = list(targets)
        self.prefix = prefix
        self.title = title

    @classmethod
    def create(cls, targets: Sequence[int], *, prefix: str = "", title: str = "") -> Relay:
        """With new pipes and memory. ``SystemCallError`` (ENOSYS where there is no such thing)."""
        memory = ffi.new("int *", -1)
        check("memfd_create", lib.fdh_relay_create(memory), "making a relay's memory")
        relay = cls(memory[0], (), (), targets, prefix=prefix, title=title)
        try:
            for _ in targets:
                reader, writer = os.pipe()
                relay.readers.append(reader)
                relay.writers.append(writer)
        except BaseException:
            relay.close()
            raise
        return relay

    def start(self) -> Process:
        """Starts it; only one may run at a time. It is our child, and to be waited for. ``SystemCallError``."""
        order = ffi.new("struct fdh_relay *")
        order.memory_fd = self.memory
        order.n_streams = len(self.readers)
        for place, (reader, target) in enumerate(zip(self.readers, self.targets, strict=True)):
            order.to[place] = target
            getattr(order, "from")[place] = reader
        prefix, title = (ffi.new("char[]", os.fsencode(text)) for text in (self.prefix, self.title))
        order.prefix = prefix if self.prefix else ffi.NULL
        order.title = title if self.title else ffi.NULL
        pid, pidfd = ffi.new("int64_t *"), ffi.new("int *", -1)
        check("clone", lib.fdh_relay_start(order, pid, pidfd), "starting a relay")
        return Process(pid[0], start_time(pid[0]), pidfd[0])

    def last(self, stream: int = 0) -> tuple[bytes, bool]:
        """The end of what a stream has brought so far, at most ``KEPT`` bytes, and whether that is all that was written to it
        before the call. Waits for nothing."""
        buffer = ffi.new("char[]", KEPT)
        size, seen, dropped = ffi.new("size_t *"), ffi.new("uint64_t *"), ffi.new("uint64_t *")
        reader = self.readers[stream]
        result = lib.fdh_relay_read(self.memory, stream, reader, buffer, KEPT, size, seen, dropped)
        check("mmap", result, "reading a relay's memory")
        return bytes(ffi.buffer(buffer, size[0])), result != FDH_MORE

    def release(self) -> None:
        """Closes our writing ends. Idempotent."""
        while self.writers:
            os.close(self.writers.pop())

    def is_written_to(self) -> bool:
        """Whether anybody, we included, could still write to it."""
        poller = select.poll()
        for reader in self.readers:
            poller.register(reader, 0)
        ended = [fd for fd, event in poller.poll(0) if event & select.POLLHUP]
        return len(ended) < len(self.readers)

    def close(self) -> None:
        """Closes all that we hold. Idempotent."""
        self.release()
        while self.readers:
            os.close(self.readers.pop())
        self.memory = lib.fdh_close(self.memory)
