"""The program that looks at a source once and, where there is something new, fetches it. It is a child of the master's: what it
reads is the question, one JSON object on descriptor 0; what it writes is a few JSON objects, one a line, on descriptor 3, the
last with ``result``. See docs/decisions/0025-releases.md.

Whatever is in the directory of releases and is not in the question's ``keep`` is removed first: the rest of one that died, and
what is not kept any longer.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import sys
from pathlib import Path

from . import Found, Refused, Settings, SourceError, make

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1
ANSWER_FD = 3
_UNFINISHED = ".unfinished-"
_SENTENCE_MAX = 2000


def main() -> int:
    os.set_inheritable(ANSWER_FD, False)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with open(ANSWER_FD, "w", encoding="ascii") as out:

        def tell(**what: Any) -> None:
            out.write(json.dumps({"schema": SCHEMA, **what}) + "\n")
            out.flush()

        try:
            with open(0, "rb", closefd=False) as file:
                question = json.load(file)
            if question.get("schema") != SCHEMA:
                raise SourceError(
                    f"the question has the schema {question.get('schema')!r}, and this release knows {SCHEMA}"
                )
            tell(**_answer(question, lambda text: tell(event="said", text=text[:_SENTENCE_MAX])))
        except Refused as error:
            tell(result="refused", error=_one_line(str(error)))
        except SourceError as error:
            tell(result="failed", error=_one_line(str(error)))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            tell(result="failed", error=_one_line(f"{where}{error.strerror or error}"))
        except Exception as error:  # a source from elsewhere may raise anything; one sentence is all that leaves us
            tell(result="failed", error=_one_line(f"{type(error).__name__}: {error}"))
    return 0


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_SENTENCE_MAX]


def _answer(question: dict[str, Any], say: Any) -> dict[str, Any]:
    settings = Settings(
        size_max=question["size_max"], verify=question["verify"], unverified=question["unverified"], say=say
    )
    source = make(question["source"], settings)
    if source.remote and not settings.verify and not settings.unverified:
        raise SourceError(
            "what comes from another machine is verified before it runs: say --verify, or waive it by --insecure-skip-verify"
        )
    directory = Path(question["directory"])
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceError(f"another service fetches into {directory}: each needs one of its own") from None
        _tidy(directory, {*question["keep"]})
        found = source.look(question["state"])
        facts = {
            "identity": found.identity,
            "tag": found.tag,
            "state": dict(found.state),
            "quiet": [[path, signature(path)] for path in found.quiet],
        }
        if found.place:
            return {"result": "found", "place": found.place, **facts}
        if found.identity in question["known"]:
            return {"result": "found", "place": "", **facts}
        return {"result": "found", **facts, **_fetch(source, found, directory)}


def signature(path: str) -> list[Any]:
    """What the master compares, by which it knows that there is nothing to look for."""
    real = os.path.realpath(path)
    facts = os.stat(real)
    return [real, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _fetch(source: Any, found: Found, directory: Path) -> dict[str, Any]:
    """Whole or not at all: it gets its name when it is complete, and on the disk."""
    unfinished = directory / f"{_UNFINISHED}{os.getpid()}"
    unfinished.mkdir(mode=0o755)
    try:
        release: Path = source.fetch(found, unfinished)
        if release.parent != unfinished or not (release.is_file() or release.is_dir()):
            raise SourceError(f"the source left no release: {release}")
        for entry in list(unfinished.iterdir()):
            if entry != release:
                _remove(entry)
        name, count = found.tag, 1
        while (directory / name).exists():
            count += 1
            name = f"{found.tag}-{count}"
        os.sync()
        unfinished.rename(directory / name)
    finally:
        if unfinished.exists():
            _remove(unfinished)
    return {"tag": name, "place": str(directory / name / release.name), "fetched": True}


def _tidy(directory: Path, keep: set[str]) -> None:
    for entry in directory.iterdir():
        if entry.name.startswith(_UNFINISHED) or (entry.is_dir() and entry.name not in keep and not entry.is_symlink()):
            _remove(entry)


def _remove(path: Path) -> None:
    """Also what forbids that by its permissions."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for folder, _, _ in os.walk(path):
        os.chmod(folder, stat.S_IMODE(os.lstat(folder).st_mode) | 0o700)
    shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main())
