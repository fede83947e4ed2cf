"""What a release is called: said on the command line, where a symbolic link leads to, or what is in its files."""

from __future__ import annotations

import hashlib
import os

from ..master.options import parse_release, release_of
from .arguments import Parser, checked
from .outcome import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_HASH = "hash:"
_LETTERS = 16  # of a digest: no two releases of one service share them by chance


def add_release(parser: Parser) -> None:
    parser.add_argument(
        "--release", metavar="TEXT", action="append", type=checked(_said),
        help="what the release is called: a text, link:PATH for where a symbolic link leads to, or hash:FILE for what is in it "
        "(may be repeated for more files); as in --release link:/srv/app/current",
    )  # fmt: skip


def _said(text: str) -> str:
    if text == _HASH:
        raise ValueError(f"{_HASH} names no file")
    return text if text.startswith(_HASH) else parse_release(text)


def release_named(said: Sequence[str] | None) -> str:
    """Empty where nothing was said. ``UsageError`` where that can't be known."""
    texts = [text for text in said or () if not text.startswith(_HASH)]
    files = [text.removeprefix(_HASH) for text in said or () if text.startswith(_HASH)]
    if len(texts) + bool(files) > 1:
        raise UsageError("say one --release: a text, a link, or files")
    try:
        return _digest(files) if files else release_of(texts[0]) if texts else ""
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"the release is to be read from {error.filename}: {error.strerror}") from None


def _digest(files: Sequence[str]) -> str:
    """Of the files' names and contents, in the order in which they were said."""
    whole = hashlib.sha256()
    for path in files:
        one = hashlib.sha256()
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                one.update(part)
        whole.update(f"{os.path.basename(path)}\0".encode("utf-8", "surrogateescape") + one.digest())
    return f"sha256:{whole.hexdigest()[:_LETTERS]}"
