"""A protocol of lines by Twisted's adapter: each is answered with the generation before it, and a drain says so."""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver

from fdhandoff.servers import twisted


class Lines(LineReceiver):
    def lineReceived(self, line: bytes) -> None:
        self.sendLine(b"%d %b" % (service.generation.number, line))


def leave(protocol: Lines) -> None:
    protocol.sendLine(b"come again")
    protocol.transport.loseConnection()


port, path = sys.argv[1:]
service = twisted.listen(
    Factory.forProtocol(Lines),
    f"127.0.0.1:{port}",
    leave=leave,
    handoff_path=path,
    handoff_probation=0.5,
)
reactor.run()
