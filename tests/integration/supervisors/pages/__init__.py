"""The how-to pages, followed to the letter on a machine of their own."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..systemd import Bed

DOCS = Path(__file__).resolve().parents[4] / "docs"


class Block:
    """A fenced block: its language, its text, the line where it begins."""

    def __init__(self, language: str, text: str, line: int) -> None:
        self.language = language
        self.text = text
        self.line = line

    @property
    def path(self) -> str:
        """The file that it shows, by the comment in its first line, or the second behind ``#!``."""
        for line in self.text.splitlines()[:2]:
            found = re.fullmatch(r"[#;] (/\S+|Containerfile|\S+\.yaml)", line)
            if found:
                return found[1]
        return ""


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)


def follow(page: str, bed: Bed) -> None:
    """As a reader does: files that are shown and not there are made, those that are there are compared; commands are run, and
    what is shown behind them is what they say, ``…`` being anything."""
    said = ""
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.language == "sh":
            # Into a file: what it leaves in the background must not hold a pipe of ours open.
            log = bed.shared / "said"
            with log.open("w") as file:
                done = subprocess.run(
                    ["nsenter", "-t", str(bed.leader), "-a", "bash", "-euo", "pipefail", "-c", block.text],
                    stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=120, check=False,
                )  # fmt: skip
            said = log.read_text()
            assert done.returncode == 0, f"{where}: {block.text}ended with {done.returncode}: {said}"
        elif block.language == "text":
            pattern = ".*".join(map(re.escape, block.text.rstrip("\n").split("…")))
            assert re.search(f"^{pattern}$", said, re.MULTILINE), (
                f"{where}: {block.text!r} was to be said, not {said!r}"
            )
        elif block.path:
            there = bed.inside("cat", block.path, check=False)
            if there.returncode:
                write(bed, block.path, block.text)
            else:
                assert there.stdout == block.text, f"{where}: {block.path} is something else"
        elif block.language != "console":  # which is for where this machine is not
            raise AssertionError(f"{where}: nobody knows what this is for")


def write(bed: Bed, path: str, text: str) -> None:
    made = bed.shared / "made"
    made.write_text(text, encoding="utf-8")
    there = shlex.quote(path)
    mode = "755" if text.startswith("#!") else "644"
    bed.inside("sh", "-c", f'mkdir -p "$(dirname {there})" && install -m {mode} {shlex.quote(str(made))} {there}')
