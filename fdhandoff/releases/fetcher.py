"""The program that looks at a source once and, where there is something new, fetches it. It is a child of the master's: what it
reads is the question, one JSON object on descriptor 0; what it writes is a few JSON objects, one a line, on descriptor 3, the
last with ``result``. See docs/decisions/0025-releases.md.

What one of us made in the directory of releases and is not in the question's ``keep`` is removed first: the rest of one that
died, and what is not kept any longer. What has not our mark is somebody else's.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from . import Broken, Found, Refused, Settings, SourceError, make

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

SCHEMA = 1
ANSWER_FD = 3
_UNFINISHED = ".unfinished-"
_MARK = ".fdhandoff"  # beside each release
_LOCK_SECONDS = 5.0  # one that was killed a moment ago may not be gone yet
_LOOK_SECONDS = 0.05
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
            tell(result="failed", error=_one_line(str(error)), wait=error.wait)
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
    with _alone_in(directory), _nobody_left_behind():
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
        try:
            return {"result": "found", **facts, **_fetch(source, found, directory)}
        except Broken as error:
            return {"result": "broken", "place": "", "error": _one_line(str(error)), **facts}


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    until = time.monotonic() + _LOCK_SECONDS
    with (directory / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    text = f"another service fetches into {directory}: each needs one of its own"
                    raise SourceError(text) from None
                time.sleep(_LOOK_SECONDS)
        yield


@contextmanager
def _nobody_left_behind() -> Iterator[None]:
    """Whatever kills us, the programs that a source has started end with us: a child that does nothing but wait for our end
    kills our process group then. So long the lock is not given away."""
    if os.getpgrp() != os.getpid():  # the group is not ours
        yield
        return
    reader, writer = os.pipe()
    guard = os.fork()
    if not guard:
        os.close(writer)
        os.close(ANSWER_FD)
        os.read(reader, 1)
        os.killpg(0, signal.SIGKILL)
    os.close(reader)
    try:
        yield
    finally:
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)
        os.close(writer)


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
        (unfinished / _MARK).touch()
        name, count = found.tag, 1
        while (directory / name).exists():
            count += 1
            name = f"{found.tag}-{count}"
        unfinished = unfinished.rename(directory / name)
        source.settle(found, unfinished / release.name)
        os.sync()
    except BaseException:
        _remove(unfinished)
        raise
    return {"tag": name, "place": str(unfinished / release.name), "fetched": True}


def _tidy(directory: Path, keep: set[str]) -> None:
    for entry in directory.iterdir():
        ours = not entry.is_symlink() and os.path.lexists(entry / _MARK)
        if entry.name.startswith(_UNFINISHED) or (ours and entry.name not in keep):
            _remove(entry)


def _remove(path: Path) -> None:
    """Also what forbids that by its permissions."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    os.chmod(path, stat.S_IRWXU)
    for folder, folders, _ in os.walk(path):  # from the top: what can't be read is not gone into
        for name in folders:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                os.chmod(inner, stat.S_IRWXU)
    shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main())
