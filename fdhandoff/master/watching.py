"""``run --watch``: looks at where releases come from, and moves the service to a new one by itself.

The look, and all that is fetched, is a child's work (``releases.fetcher``): one question, a few bounded lines as its answer,
and an end that is not waited for without a deadline. Here is what must be remembered, and when an upgrade begins: which
releases there are and what became of each, in a file beside them that outlives the service.
"""

from __future__ import annotations

import os
import time

from ..errors import NOBODY, OLD, Aborted, HandoffError, SystemCallError, UpgradeError, sentence
from ..notation import loads
from ..system import environment
from . import journal
from .helper import Helper
from .options import NEXT, ON_REQUEST, for_release, origin_of
from .run import SERVING
from .shape import mismatch
from .tasks import Future, pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .master import Master
    from .options import Options
    from .rollout import Rollout
    from .run import Run

SCHEMA = 1
HISTORY = "releases.json"
CURRENT = "current"

# What became of a release.
FETCHED, TRYING, LIVE, SERVED, FAILED, ROLLED_BACK = "fetched", "trying", "serving", "served", "failed", "rolled back"
_REFUSED = "refused"  # by the fetcher: it is none
# Not tried again before it changes, unless somebody names it.
_BLOCKED = (FAILED, ROLLED_BACK)

_BACKOFF_LAST = 600.0
_MOVE_SECONDS = 5.0  # how often what waits for its hour, or for another upgrade's end, is tried again
_WAIT_LAST = 86400.0
_RELEASE = {"identity": str, "tag": str, "place": str, "fate": str, "reason": str, "at": (int, float), "turn?": int}
_SHAPE: dict[str, Any] = {
    "schema": int,
    "source": str,
    "seen": str,
    "shown": str,
    "releases": [_RELEASE],
    "stumbled?": str,
}
_FOUND = {
    "identity": str, "tag": str, "place": str, "state": {}, "quiet": [[(str, list)]], "fetched?": bool, "error?": str
}  # fmt: skip


class Release:
    """``place``: what ``{release}`` stands for. ``at``: since when its fate is what it is, in seconds since 1970; ``turn``: in
    which order such things happened, since that clock may be set."""

    __slots__ = ("at", "fate", "identity", "place", "reason", "tag", "turn")

    def __init__(
        self, identity: str, tag: str, place: str, fate: str = FETCHED, reason: str = "", at: float = 0.0, turn: int = 0
    ) -> None:
        self.identity = identity
        self.tag = tag
        self.place = place
        self.fate = fate
        self.reason = reason
        self.at = at or time.time()
        self.turn = turn

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def becomes(self, fate: str, turn: int, reason: str = "") -> None:
        self.fate, self.reason, self.at, self.turn = fate, reason, time.time(), turn


class Watcher:
    """One for a master's life. ``HandoffError`` where what was remembered makes no sense."""

    def __init__(self, master: Master) -> None:
        self._master = master
        options = master.options
        self.source = options.watch
        self.directory = os.path.abspath(options.releases)
        self.releases: list[Release] = []  # the oldest first
        self._seen = ""  # of what the source showed, the identity that was decided upon
        self._shown = ""  # the one that it showed at the last look
        self._stumbled = ""  # the identity of one that served well, and did not start the last time
        self._state: dict[str, Any] = {}  # the source's own
        self._quiet: list[Any] = []
        self.problem = ""  # what went wrong at the last look
        self.waits = ""  # why what is there is not moved to yet
        self._passes = False  # by itself
        self.doing = ""  # what the fetcher under way said last
        self._said = ""
        self._refused = ""  # the last complaint of that kind
        self._failures = 0
        self._not_before = 0.0  # monotonic, when the source may be asked again
        self.looked: float | None = None
        self.next_look: float | None = None  # monotonic
        self._wanted: Future[None] = Future()
        self._turn_over: Future[None] = Future()
        secrets = (environment.WATCH_AUTHORIZATION, environment.WATCH_AUTHORIZATION_FILE)
        self._fetcher = Helper(master.loop, "fetcher", "releases.fetcher", self._hear, secrets)
        self._write_fails = False
        self._read()

    # --- what is remembered -----------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return os.path.join(self.directory, HISTORY)

    def _read(self) -> None:
        data = journal.read_whole(self._path)
        if data is None:
            return
        try:
            state = loads(data)
            wrong = mismatch(state, _SHAPE)
            if not wrong and state["schema"] != SCHEMA:
                wrong = f"it has the schema {state['schema']!r}, and this release knows {SCHEMA}"
        except ValueError:
            wrong = "it is not JSON, or only a part of it"
        if wrong:
            raise HandoffError(
                f"the history of releases {self._path} makes no sense ({wrong}): remove it to begin without one",
                serving=NOBODY,
            )
        self.releases = [
            Release(**{name: entry[name] for name in Release.__slots__ if name in entry}) for entry in state["releases"]
        ]
        self._stumbled = state.get("stumbled", "")
        if state["source"] == self.source:
            self._seen, self._shown = state["seen"], state["shown"]
        for release in self.releases:
            if release.fate == TRYING:  # the master died before it was decided
                self._becomes(release, FETCHED)
                self._seen = ""

    def _becomes(self, release: Release, fate: str, reason: str = "") -> None:
        release.becomes(fate, 1 + max((one.turn for one in self.releases), default=0), reason)

    def _write(self) -> None:
        state = {
            "source": self.source,
            "seen": self._seen,
            "shown": self._shown,
            "stumbled": self._stumbled,
            "releases": [release.facts() for release in self.releases],
        }
        try:
            os.makedirs(self.directory, exist_ok=True)
            journal.write(self._path, state, lasting=True)
        except OSError as error:
            if not self._write_fails:
                self._master.say(
                    f"the history of releases {self._path} can't be written ({error.strerror}): the next master does not "
                    "know what became of those since"
                )
            self._write_fails = True
        else:
            self._write_fails = False

    def _of(self, run: Run) -> Release | None:
        """The release that a generation runs. Another may have come to the same place since, under another tag."""
        place, tag = run.options.place, run.options.release
        there = [release for release in self.releases if place and release.place == place]
        return next((release for release in there if release.tag == tag), there[-1] if there else None)

    def _is_there(self, release: Release) -> bool:
        """Whether its place is, and is not another's by now."""
        newest = next(one for one in reversed(self.releases) if one.place == release.place)
        return newest is release and os.path.exists(release.place)

    def _by_identity(self, identity: str) -> Release | None:
        """That is there still."""
        found = (release for release in reversed(self.releases) if release.identity == identity)
        return next(filter(self._is_there, found), None)

    def _tag(self, tag: str) -> str:
        """As no other is called."""
        name, count = tag, 1
        while any(release.tag == name for release in self.releases):
            count += 1
            name = f"{tag}-{count}"
        return name

    def serving(self) -> Release | None:
        current = self._master.current
        return self._of(current) if current is not None else None

    def named(self, tag: str) -> Release:
        """``UpgradeError`` where there is none, with those that there are."""
        there = [release for release in self.releases if self._is_there(release)]
        found = next((release for release in reversed(there) if release.tag == tag), None)
        if found is None:
            tags = ", ".join(release.tag for release in there) or "none"
            raise UpgradeError(f"there is no release {tag!r}: there are {tags}", serving=OLD)
        return found

    def before(self) -> Release:
        """The last one that served well before the one that serves. ``UpgradeError`` where there is none."""
        serving = self.serving()
        good = [one for one in self.releases if one.fate == SERVED and one is not serving and self._is_there(one)]
        if not good:
            raise UpgradeError("no release that served before is kept: there is nothing to go back to", serving=OLD)
        return max(good, key=lambda release: release.turn)

    def _last_good(self) -> Release | None:
        found = [one for one in self.releases if one.fate in (LIVE, SERVED) and self._is_there(one)]
        return max(found, key=lambda release: (release.fate == LIVE, release.turn), default=None)

    def _forget(self) -> None:
        """What is beyond ``--keep-releases``: never what a generation runs, nor the last good ones."""
        spare = {self._last_good(), *map(self._of, self._master.runs)}
        spare |= {release for release in self.releases if release.identity in (self._shown, self._seen)}
        good = sorted((one for one in self.releases if one.fate == SERVED), key=lambda one: one.turn)
        spare |= set(good[-1:])
        spared = [release for release in self.releases if release not in spare]
        surplus = len(self.releases) - self._master.options.keep_releases
        for release in spared[: max(0, surplus)]:
            self.releases.remove(release)

    # --- which one is to run ------------------------------------------------------------------------------------

    def pinned(self, options: Options, release: Release | None = None) -> Options:
        """``options`` for a generation of this release; of the one to which an upgrade that names none leads."""
        chosen = release or self._unnamed()
        if chosen is None:
            raise UpgradeError("there is no release yet", serving=OLD)
        return for_release(options, chosen.tag, chosen.place, origin_of(options.watch))

    def _unnamed(self) -> Release | None:
        word, _, path = self.source.partition(":")
        if word == "symlink":
            place = os.path.realpath(path)
            identity = f"{place}:{os.stat(place).st_ino}"
            self._shown = identity
            return self._by_identity(identity) or self._remember(
                Release(identity, self._tag(os.path.basename(place)), place)
            )
        pending = self._pending()
        if pending is not None and self._master.options.watch_mode == NEXT:
            return pending
        return self.serving() or self._last_good()

    def _remember(self, release: Release) -> Release:
        self.releases.append(release)
        self._forget()
        self._write()
        return release

    def _pending(self) -> Release | None:
        """What the source shows and nobody has decided upon."""
        if not self._shown or self._shown == self._seen:
            return None
        release = self._by_identity(self._shown)
        if release is None:
            return None
        if release is self.serving() or release.fate in _BLOCKED:
            if release.fate in _BLOCKED:
                self._master.say(
                    f"{self.source} has release {release.tag}, which {release.fate} ({release.reason}): "
                    "it is not tried again before it changes"
                )
            self._seen = self._shown
            self._write()
            return None
        return release

    # --- life -------------------------------------------------------------------------------------------------

    async def begin(self) -> Options:
        """The options of the first generation: of the last release that served well, or of what the source has.
        ``HandoffError`` where there is none."""
        master = self._master
        release = self._last_good()
        stumbled = release is not None and release.identity == self._stumbled
        if release is None or master.options.watch_required or stumbled:
            why = await self._look()
            if why and (release is None or master.options.watch_required):
                raise HandoffError(f"there is no release to start: {why}", serving=NOBODY)
        newer = self._pending() if stumbled else None
        if release is not None and newer is not None:
            master.say(f"release {release.tag} did not start the last time: release {newer.tag} is started instead")
            release = newer
        if release is None:
            release = next((one for one in reversed(self.releases) if one.identity == self._shown), None)
            if release is None or release.fate in _BLOCKED:
                reason = f" but {release.tag}, which {release.fate} ({release.reason})" if release is not None else ""
                raise HandoffError(f"there is no release to start{reason}", serving=NOBODY)
        return self.pinned(master.configure(), release)

    def did_not_start(self, run: Run, why: str) -> None:
        """The first generation. A release that has served before may have failed for another reason."""
        release = self._of(run)
        if release is None:
            return
        if release.fate == FETCHED:
            self._becomes(release, FAILED, why)
        else:
            self._stumbled = release.identity
        self._write()

    def serve(self, run: Run) -> None:
        """It serves, and from now on the source is looked at."""
        release = self._of(run)
        if release is not None:
            self._serves(release)
        self._master.spawn(self._live())

    def _serves(self, release: Release) -> None:
        for other in self.releases:
            if other.fate == LIVE and other is not release:
                self._becomes(other, SERVED)
        if release.fate != LIVE:
            self._becomes(release, LIVE)
        if self._shown == release.identity:
            self._seen = self._shown
        self._stumbled = ""
        self._write()
        self._point_at(release)

    def _point_at(self, release: Release) -> None:
        """For people: ``current`` beside the releases."""
        if not release.place.startswith(f"{self.directory}/"):
            return
        link = os.path.join(self.directory, CURRENT)
        if os.path.lexists(link) and not os.path.islink(link):
            return  # somebody else's
        try:
            temporary = f"{link}.new"
            if os.path.lexists(temporary):
                os.unlink(temporary)
            os.symlink(os.path.relpath(release.place, self.directory), temporary)
            os.replace(temporary, link)
        except OSError as error:
            self._master.say(f"{link} still leads elsewhere: {sentence(error)}")

    async def _live(self) -> None:
        master = self._master
        delay = 0.0
        while True:
            self.next_look = time.monotonic() + delay + master.options.jitter * _chance()
            while (left := self.next_look - time.monotonic()) > 0 and not self._wanted.done and master.state == SERVING:
                await pause(master.loop, min(left, _MOVE_SECONDS) if self._passes else left, self._wanted)
                if self._passes:  # no window is missed because looks are rare, whatever the clock on the wall does
                    await self._move()
            self.next_look = None
            if master.state != SERVING:
                return
            if self._wanted.done or not self._is_quiet():
                await self._look()
            await self._move()
            over, self._turn_over, self._wanted = self._turn_over, Future(), Future()
            over.set(None)
            if master.options.once and not self.problem and not self._pending():
                await self._wanted  # until somebody asks
            every = master.options.every
            delay = min(every * 2 ** min(self._failures, 16), max(every, _BACKOFF_LAST))
            delay = max(delay, self._not_before - time.monotonic())

    def look_now(self) -> Future[None]:
        """Known once it has looked, and, where there was something new, the upgrade is over."""
        self._wanted.set(None)
        return self._turn_over

    async def _move(self) -> None:
        """Upgrades to what is new, if it may."""
        master = self._master
        release = self._pending()
        self.waits, self._passes = "", False
        if release is None or master.state != SERVING:
            return
        window = master.options.window
        refusal = master.refusal()
        if master.options.watch_mode == ON_REQUEST:
            self.waits = f"upgrade --to {release.tag} moves to it"
        elif master.options.watch_mode == NEXT:
            self.waits = "the next upgrade that is asked for moves to it"
        elif window is not None and not window.is_open(time.localtime()):
            self.waits, self._passes = f"the maintenance window ({window}) is closed", True
        elif refusal:
            self.waits, self._passes = refusal, True
        else:
            try:
                await master.upgrade(asked=f"{self.source} has release {release.tag}", to=release)
            except (HandoffError, OSError, ValueError) as error:
                if self._seen != self._shown:
                    self.waits = sentence(error)
        self._say_once(f"release {release.tag} is here, and waits: {self.waits}" if self.waits else "")

    def trying(self, run: Run) -> None:
        """An upgrade to it begins."""
        release = self._of(run)
        if release is not None and release.fate not in (LIVE, SERVED):
            self._becomes(release, TRYING)
            self._write()

    def decided(self, rollout: Rollout, error: BaseException | None) -> None:
        """An upgrade is over, whoever had asked for it."""
        new, old = self._of(rollout.new), self._of(rollout.old)
        if new is None:
            return
        if error is None:
            self._serves(new)
            self._forget()
        elif new is not old:
            if self._is_its_fault(error):
                self._becomes(new, ROLLED_BACK if rollout.result == "rolled back" else FAILED, rollout.reason)
                if self._shown == new.identity:
                    self._seen = self._shown
                self._master.say(f"release {new.tag} is not tried again before it changes")
            elif new.fate == TRYING:
                self._becomes(new, FETCHED)
        self._write()

    def _is_its_fault(self, error: BaseException) -> bool:
        if isinstance(error, Aborted) and self._master.state != SERVING:
            return False  # by the end of the service
        return not (isinstance(error, SystemCallError) and error.call in ("fork", "pipe", "socket", "open"))

    def went_back(self, bad: Run, why: str) -> None:
        """An operator has gone back from a release that had passed."""
        release = self._of(bad)
        if release is not None and release is not self.serving():
            self._becomes(release, ROLLED_BACK, why)
        serving = self.serving()
        if serving is not None:
            self._serves(serving)
        self._write()

    def _say_once(self, text: str) -> None:
        if text and text != self._said:
            self._master.say(text)
        self._said = text

    # --- the look -----------------------------------------------------------------------------------------------

    def _is_quiet(self) -> bool:
        """Whether the source named files that have not changed since it was asked."""
        if not self._quiet or self.problem:
            return False
        try:
            for path, known in self._quiet:
                real = os.path.realpath(path)
                facts = os.stat(real)
                if known != [real, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]:
                    return False
        except OSError:
            return False
        return True

    async def _look(self) -> str:
        """Asks the source, and takes what it has: why that failed, or empty."""
        if time.monotonic() < self._not_before:
            return self.problem
        answer = await self._ask()
        self.looked = time.time()
        result, wait = answer.get("result"), answer.get("wait")
        if isinstance(wait, (int, float)):
            self._not_before = time.monotonic() + min(wait, _WAIT_LAST)
        if result in ("found", "broken"):
            problem = mismatch(answer, _FOUND)
        else:
            problem = str(answer.get("error", "")) or "the fetcher gave no answer"
        self.problem = problem
        if problem:
            self._failures += 1
            # The same complaint again and again would hide all others.
            self._say_once(f"{self.source}: {problem}")
            if result == _REFUSED and problem != self._refused:
                self._refused = problem
                self._tell(result, problem, "")
            return problem
        self._failures, self._refused = 0, ""
        self._state = answer["state"]
        self._quiet = answer["quiet"]
        before, self._shown = self._shown, answer["identity"]
        if result == "broken":
            self._seen = self._shown
            release = Release(self._shown, self._tag(answer["tag"]), "", FAILED, answer.get("error", ""))
            self._master.say(
                f"{self.source} has release {release.tag}, which can't be used ({release.reason}): "
                "it is not tried again before it changes"
            )
            self._remember(release)
            self._tell(FAILED, release.reason, release.tag)
        elif answer["place"] and self._by_identity(self._shown) is None:
            self._remember(Release(self._shown, self._tag(answer["tag"]), answer["place"]))
            if answer.get("fetched"):
                self._master.say(f"release {answer['tag']} was fetched from {self.source}")
        elif self._shown != before:
            self._write()
        return ""

    def _tell(self, result: str, reason: str, tag: str) -> None:
        """Of a release to which there will be no upgrade."""
        master, current = self._master, self._master.current
        if current is None:
            return
        upgrade = {
            "result": result,
            "reason": reason,
            "asked": f"{self.source} has it",
            "from": current.number,
            "to": None,
            "seconds": None,
            "at": self.looked,
        }
        master.tell(current, upgrade, tag)

    def _question(self) -> dict[str, Any]:
        options = self._master.options
        places = [release.place for release in self.releases]
        places += [run.options.place for run in self._master.runs]
        inside = [place[len(self.directory) + 1 :] for place in places if place.startswith(f"{self.directory}/")]
        # What has no place was broken when it came.
        there = [one.identity for one in self.releases if not one.place or os.path.exists(one.place)]
        return {
            "source": self.source,
            "directory": self.directory,
            "keep": sorted({name.partition("/")[0] for name in inside}),
            "known": there,
            "state": self._state,
            "size_max": options.fetch_max,
            "verify": options.verify,
            "unverified": options.unverified,
        }

    async def _ask(self) -> dict[str, Any]:
        """The fetcher's last word. It is ended, with all that it started, when its time is over."""
        try:
            return await self._fetcher.ask(self._question(), self._master.options.fetch_timeout)
        finally:
            self.doing = ""

    def _hear(self, text: str) -> None:
        self.doing = text
        self._master.say(f"{self.source}: {text}")

    def close(self) -> None:
        """No fetcher outlives us, nor the program that we become."""
        self._fetcher.close()

    # --- telling ------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """``releases`` of the status."""
        serving, left = self.serving(), self.next_look
        return {
            "source": self.source,
            "directory": self.directory,
            "serving": serving.tag if serving is not None else None,
            "looked": self.looked,
            "next_look": None if left is None else max(0.0, left - time.monotonic()),
            "doing": self.doing,
            "problem": self.problem,
            "waits": self.waits,
        }

    def table(self) -> list[dict[str, Any]]:
        """Of each release, the newest first."""
        return [
            {
                "tag": release.tag,
                "fate": release.fate,
                "reason": release.reason,
                "at": release.at,
                "place": release.place if self._is_there(release) else None,
                "generations": [run.number for run in self._master.runs if self._of(run) is release],
            }
            for release in reversed(self.releases)
        ]


def _chance() -> float:
    """From 0 to 1, and less than that."""
    return int.from_bytes(os.urandom(4), "big") / 2**32
