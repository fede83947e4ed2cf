"""A web server's releases with traps in the process that looks for them and fetches them: at each edge it tells a test where
it is, and waits until it may go on. ``TRAP`` in the environment is the test's socket: see ``trapped``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdhandoff.releases import fetcher, unpacking, verification
from fdhandoff.releases.http import HttpSource

from .trapped import around, stand

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fdhandoff.releases import Found


class TrappedSource(HttpSource):
    """What is fetched breaks in two at ``half``. At the last ``name`` it gets a release's; at those before it is unpacked."""

    def __init__(self, where: str, settings: Any) -> None:
        super().__init__(where, settings)
        around(fetcher, "_tidy", "tidy", "")
        around(verification.Verification, "check", "verify", "")
        around(unpacking._Root, "file", "unpack", "")
        around(os, "sync", "sync", "")
        around(Path, "rename", "name", "")
        around(fetcher, "_fetch", "", "named")
        original = self._client.download

        def download(url: str, *arguments: Any) -> Iterator[bytes]:
            for part in original(url, *arguments):
                middle = len(part) // 2
                yield part[:middle]
                if url == where:
                    stand("half")
                yield part[middle:]

        self._client.download = download  # type: ignore[method-assign, assignment]

    def look(self, state: Mapping[str, Any]) -> Found:
        stand("look")
        found = super().look(state)
        stand("looked")
        return found
