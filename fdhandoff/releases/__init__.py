"""Where releases come from: a file a source, and this small interface between a source and what drives it (``fetcher``).

A source is asked in a process of its own, which the master starts for one look and which ends with it: it may import what it
likes, take its time, and die. One that is not in this package plugs in by an entry point of the group ``fdhandoff.releases``,
whose name is the word before the colon in ``--watch WORD:WHERE``: docs/how-to/releases/custom.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import Any

GROUP = "fdhandoff.releases"
OURS = {
    "file": "file",
    "symlink": "symlink",
    "http": "http",
    "https": "http",
    "git": "git",
    "github": "github",
    "pypi": "pypi",
}  # and the modules that have them
_TAG_MAX = 64
_TAG_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")


class SourceError(Exception):
    """Why there is no release, in one sentence. It is asked again at the next look, which is ``wait`` seconds away at least:
    for a source that was told to be asked less often."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class Refused(SourceError):
    """The release is there, and is not to be run: it fails its verification, or can't be unpacked safely."""


class Broken(SourceError):
    """The release was fetched whole and can't be used: another try would end as this one did. It has failed, and is not fetched
    again before it changes."""


@dataclass(frozen=True)
class Settings:
    """What the operator chose. ``size_max``: bytes, of what is fetched and again of what is unpacked; ``verify``: how it is to
    be verified, as said; ``unverified``: whether that was waived; ``say``: a line for the log."""

    size_max: int
    verify: str = ""
    unverified: bool = False
    say: Callable[[str], object] = print


@dataclass(frozen=True)
class Found:
    """A release that the source has now. ``identity`` is the same as long as the release is, and another when it changes;
    ``tag`` is what people call it. ``state`` is given to the next look; ``place`` is set by a source whose releases are where
    they are to be run already, and need not be fetched. ``quiet``: paths that are looked at instead of the source, for as
    long as ``stat`` says the same of them."""

    identity: str
    tag: str
    state: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    quiet: tuple[str, ...] = ()


class Source:
    """``where`` is what the operator wrote behind the source's name. What goes wrong is a ``SourceError`` or ``OSError``."""

    #: Whether it comes from another machine: then it must be verified, or that be waived.
    remote = True

    def __init__(self, where: str, settings: Settings) -> None:
        self.where = where
        self.settings = settings

    def look(self, state: Mapping[str, Any]) -> Found:
        """What there is now. ``state``: what the last look left, empty at the first."""
        raise NotImplementedError

    def fetch(self, found: Found, into: Path) -> Path:
        """Puts the release into the empty directory ``into``, verified as ``settings.verify`` says: the file or directory in
        it that is the release."""
        raise NotImplementedError

    def settle(self, found: Found, release: Path) -> None:
        """Finishes the release where it is to stay, for what can't be moved. Nobody knows of it before that is done."""


def split(text: str) -> tuple[str, str]:
    """``--watch``'s word and where. A URL is its own where."""
    word, colon, rest = text.partition(":")
    if word in ("http", "https"):
        return word, text
    if not colon or not word or not rest:
        raise SourceError(f"{text!r} is no source: say file:PATH, symlink:PATH, or another one's name and a colon")
    return word, rest


def options_in(where: str, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """``WHAT?NAME=VALUE&NAME=VALUE``: what, and the values that are named."""
    what, _, rest = where.partition("?")
    values = {}
    for part in rest.split("&") if rest else ():
        name, equals, value = part.partition("=")
        if name not in names or not equals or not value or name in values:
            raise SourceError(f"{part!r} of {where!r} is no setting: there are {', '.join(f'{one}=' for one in names)}")
        values[name] = value
    return what, values


def make(text: str, settings: Settings) -> Source:
    """The source that ``--watch`` names."""
    word, where = split(text)
    if word in OURS:
        found: type[Source] = import_module(f".{OURS[word]}", __name__).SOURCE
        return found(where, settings)
    from importlib.metadata import entry_points

    points = {point.name: point for point in entry_points(group=GROUP)}
    if word not in points and where.startswith("//"):
        fetched: type[Source] = import_module(".bucket", __name__).SOURCE  # where fsspec gets at
        return fetched(text, settings)
    if word not in points:
        names = ", ".join([*OURS, *sorted(points)])
        raise SourceError(
            f"there is no source {word!r}: there are {names}, s3:// and what else fsspec knows, and those that packages add"
        )
    try:
        made: Source = points[word].load()(where, settings)
    except ImportError as error:
        raise SourceError(f"the source {word!r} can't be loaded: {error}") from None
    return made


def tag_of(text: str) -> str:
    """``text`` as what people call a release, and a directory can be called."""
    tag = "".join(letter if letter in _TAG_LETTERS else "-" for letter in text).lstrip(".-")[:_TAG_MAX]
    if not tag:
        raise SourceError(f"{text!r} can't name a release")
    return tag
