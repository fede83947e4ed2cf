"""SIGKILL of the master, of the old and of the new generation, at every step of an upgrade, under clients that open a
connection for each request and retry nothing.

The steps are the master's own. At each the whole master stands still while the victim dies, so that the death falls between two
system calls, or the upgrade alone waits, and the master sees it. The master dies besides at each edge inside the steps: before
and after each process that it starts, each change of the switch, each state that it writes down. Scenario A19, for ``run``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError, PeerRefused
from fdhandoff.master.rollout import STEPS

from ...conftest import needs_that
from ...support.traps import Traps
from ..cli import DEADLINE, wait_for
from . import Load, Service, kill, read_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 2
# The commands do nothing, and are told apart by their last word.
COMMANDS = ("--check", "test check", "--pre-start", "test pre-start")
QUICK = ("--settle", "0.05", "--probation", "0.1")
OPTIONS = (*COMMANDS, "--canary", "50%:50ms", *QUICK)

#: Every edge of a start and of an upgrade, in the order in which the master comes to them.
START = (
    "choose", "chosen", "journal", "journaled",
    "enter pre-start", "in pre-start",
    "enter start", "spawned", "journal", "journaled",
    "enter ready", "in ready", "journal", "journaled",
)  # fmt: skip
BEFORE_THE_SWITCH = (
    "enter check", "in check",
    "enter pre-start", "in pre-start",
    "enter start", "spawned", "journal", "journaled",
    "enter ready", "in ready",
    "in canary", "journal", "journaled", "enter canary", "choose", "chosen",
    "enter switch", "journal",
)  # fmt: skip
AFTER_IT = (
    "journaled", "choose", "chosen",
    "in settle", "enter settle",
    "enter probation", "in probation", "journal", "journaled",
    "in drain", "journal", "journaled", "stop", "stopped", "journal", "journaled",
    "journal", "journaled", "discard", "journal", "journaled",
)  # fmt: skip
UPGRADE = BEFORE_THE_SWITCH + AFTER_IT
# It can't be split, so there is no canary.
UPGRADE_OF_A_UNIX_SOCKET = UPGRADE[: UPGRADE.index("in canary")] + UPGRADE[UPGRADE.index("enter switch") :]
DRAIN = "drain"  # what the old generation does when the upgrade is over

#: Where a step can be stopped: where it begins, and for those that wait for something while it waits.
PLACES = {
    "check": ("enter check", "in check"),
    "pre-start": ("enter pre-start", "in pre-start"),
    "start": ("enter start",),
    "ready": ("enter ready", "in ready"),
    "canary": ("in canary", "enter canary"),
    "switch": ("enter switch",),
    "settle": ("enter settle", "in settle"),
    "probation": ("enter probation", "in probation"),
    DRAIN: ("in drain",),
}
# Where the new generation does not live yet, and where no user can have reached it.
BEFORE_IT_IS_STARTED = (*PLACES["check"], *PLACES["pre-start"], *PLACES["start"])
BEFORE_IT_HAS_USERS = (*BEFORE_IT_IS_STARTED, *PLACES["ready"], *PLACES["canary"])


def numbered(edges: tuple[str, ...]) -> list[tuple[str, int]]:
    """Each with how often it has come."""
    return [(edge, edges[: place + 1].count(edge)) for place, edge in enumerate(edges)]


def name_of(edge: tuple[str, int]) -> str:
    return f"{edge[0].replace(' ', '-')}-{edge[1]}"


class Scene:
    """One service of a test: its processes are known by a variable that they all inherit."""

    def __init__(self, folder: Path, traps: Traps) -> None:
        self.folder = folder
        self.traps = traps
        self.mark = f"SCENE={folder}"

    def run(self, *words: str, trapped: bool = False, **options: Any) -> Service:
        """The same command each time; once with traps in it."""
        how: dict[str, Any] = self.traps.options() if trapped else {"env": {}}
        how["env"]["SCENE"] = str(self.folder)
        return Service(self.folder, *(words or OPTIONS), **how, **options)

    def run_at(self, public: str, *, trapped: bool = False) -> Service:
        """With a Unix socket."""
        return self.run(*COMMANDS, *QUICK, bind=f"unix:{public}", trapped=trapped)

    def family(self) -> set[int]:
        """Every process of the service, wherever it hangs, but the relays of its output."""
        return {pid for pid, relay in self._marked() if not relay}

    def pipes(self) -> list[str]:
        """What its relays read."""
        found = []
        for pid, relay in self._marked():
            with contextlib.suppress(OSError):
                if relay:
                    found.append(os.readlink(f"/proc/{pid}/fd/0"))
        return found

    def _marked(self) -> set[tuple[int, bool]]:
        mark, found = self.mark.encode(), set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.add((int(pid), Path(f"/proc/{pid}/comm").read_text() == "fdh-relay\n"))
            except OSError:
                continue
        return found

    def files(self) -> set[str]:
        return set(os.listdir(self.folder)) - {"release.env", "trap"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    needs_that(Path("/proc/self/environ").exists(), "/proc")
    with Traps(tmp_path / "trap") as traps:
        scene = Scene(tmp_path, traps)
        try:
            yield scene
        finally:
            for pid in scene.family():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by kind."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0]] += 1
        except FileNotFoundError:
            continue
    return found


class Asked:
    """An upgrade that somebody waits for, in a thread of its own: ``outcome`` is what it was told."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answer: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._answer = dict(ask(self._service.path, "upgrade", {"wait": True}, timeout=DEADLINE)["upgrade"])
        except PeerRefused as error:
            self._answer = dict(error.answer["upgrade"])
        except HandoffError as error:
            self._answer = {"result": type(error).__name__, "reason": str(error)}

    def outcome(self) -> dict[str, Any]:
        self._thread.join(DEADLINE)
        return self._answer


def killed(scene: Scene, service: Service) -> None:
    """The master, where it stands."""
    kill(service.pid)
    scene.traps.go()
    service.running.process.wait(DEADLINE)


def all_is_well(scene: Scene, service: Service, load: Load, number: int | None = None) -> None:
    """One generation, ``number`` if one is named, serves alone; nobody else is left; and the next upgrade works."""
    service.settled(number)
    facts = service.status()
    assert facts["state"] == "serving"
    mine = {service.pid} | {pid for one in service.generations().values() for pid in one["pids"]}
    wait_for(lambda: scene.family() == mine, f"{mine} to be all that is left of {scene.family()}")
    written = [os.readlink(f"/proc/{pid}/fd/2") for pid in mine]
    wait_for(lambda: all(scene.pipes().count(pipe) == (pipe in written) for pipe in scene.pipes()), "no other relay")
    serving = facts["generation"]
    load.heard(serving)
    before = len(load.answers)
    load.heard(serving, 50)
    assert {generation for _, _, generation in load.answers[before + CLIENTS :]} == {serving}
    upgraded = service.upgrade()
    assert upgraded["from"] == serving
    load.heard(upgraded["to"])
    service.settled(upgraded["to"])
    wait_for(  # but for a journal that is being written at this moment
        lambda: (
            {name for name in scene.files() if not name.startswith("app")} == {"master.sock", "master.sock.journal"}
        ),
        f"no other files than the master's to be left: {scene.files()}",
    )


def nothing_is_left(scene: Scene, service: Service) -> None:
    assert service.stop() == 0
    wait_for(lambda: not scene.family() and not scene.pipes(), f"{scene.family()} to end")
    assert not scene.files()


# --- the matrix is whole ----------------------------------------------------------------------------------------


def test_the_matrix_has_every_edge_of_a_start_and_of_an_upgrade(scene: Scene) -> None:
    with scene.run(trapped=True) as service:
        assert tuple(scene.traps.seen) == START
        scene.traps.begin()
        steps = [one["step"].split()[0] for one in service.upgrade()["steps"]]
        assert tuple(steps) == STEPS
        wait_for(lambda: tuple(scene.traps.seen) == UPGRADE, f"all edges, not {scene.traps.seen}")
        assert service.stop() == 0
    with scene.run_at(str(scene.folder / "app"), trapped=True) as service:
        scene.traps.begin()
        service.upgrade()
        wait_for(lambda: tuple(scene.traps.seen) == UPGRADE_OF_A_UNIX_SOCKET, f"all edges, not {scene.traps.seen}")
        assert service.stop() == 0


def test_the_matrix_has_every_step() -> None:
    assert tuple(PLACES) == (*STEPS, DRAIN)
    assert {place for places in PLACES.values() for place in places} == {
        edge for edge in UPGRADE if edge.startswith(("enter ", "in "))
    }


# --- the master -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", numbered(UPGRADE), ids=name_of)
def test_a_master_that_is_killed_costs_no_request_and_the_same_command_goes_on(
    scene: Scene, edge: tuple[str, int]
) -> None:
    with scene.run(trapped=True) as service, Load(service.address(), CLIENTS) as load:
        scene.traps.begin(*edge)
        asked = Asked(service)
        scene.traps.reached(DEADLINE)
        killed(scene, service)
        place = numbered(UPGRADE).index(edge)
        assert asked.outcome()["result"] == ("done" if place >= UPGRADE.index("in drain") else "PeerGone")
        before = len(load.answers)
        wait_for(lambda: len(load.answers) >= before + 50, "answers while there is no master")
        switched = place >= len(BEFORE_THE_SWITCH)
        with scene.run() as again:
            all_is_well(scene, again, load, 2 if switched else 1)
            load.end()
            assert not load.failures
            nothing_is_left(scene, again)


@pytest.mark.parametrize("edge", numbered(START), ids=name_of)
def test_a_master_that_is_killed_before_it_served_leaves_nothing_in_the_way_of_the_same_command(
    scene: Scene, edge: tuple[str, int]
) -> None:
    """Also not at the port that it had: a generation that was started in that very moment is found there."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as place:
        bind = f"http=127.0.0.1:{place.getsockname()[1]}"
    scene.traps.begin(*edge)
    with scene.run(bind=bind, trapped=True, wait=False) as service:
        scene.traps.reached(DEADLINE)
        killed(scene, service)
        with scene.run(bind=bind) as again, Load(again.address(), CLIENTS) as load:
            assert again.address()[1] == int(bind.rpartition(":")[2])
            all_is_well(scene, again, load)
            load.end()
            assert not load.failures
            nothing_is_left(scene, again)


# The edges at which its names, or its processes, change.
CHANGES_OF_A_UNIX_SOCKET = ("spawned", "choose", "chosen", "stopped", "discard")


@pytest.mark.parametrize(
    "edge", [edge for edge in numbered(UPGRADE_OF_A_UNIX_SOCKET) if edge[0] in CHANGES_OF_A_UNIX_SOCKET], ids=name_of
)
def test_a_master_of_a_unix_socket_that_is_killed_costs_no_request(scene: Scene, edge: tuple[str, int]) -> None:
    public = str(scene.folder / "app")
    with scene.run_at(public, trapped=True) as service, Load(public, CLIENTS) as load:
        scene.traps.begin(*edge)
        asked = Asked(service)
        scene.traps.reached(DEADLINE)
        killed(scene, service)
        asked.outcome()
        before = len(load.answers)
        wait_for(lambda: len(load.answers) >= before + 50, "answers while there is no master")
        with scene.run_at(public) as again:
            all_is_well(scene, again, load)
            load.end()
            assert not load.failures
            nothing_is_left(scene, again)


def test_who_was_sent_to_a_generation_that_was_not_ready_as_the_master_died_is_served(scene: Scene) -> None:
    """The master's idle queues end with it, and the kernel gives their places to others: the one that serves may be where the
    program does not point any more, and then connections are spread over all that are left."""
    options = ("--settle", "0.05", "--probation", "0", "--grace", "60s")
    with scene.run(*options) as service:
        address = service.address()
        busy = []
        for number in (1, 2):
            busy.append(socket.create_connection(address))
            wait_for(lambda number=number: service.generations()[number]["active"] == 1)
            service.upgrade()
        for sock in busy:
            sock.close()
        service.settled(3)  # in the third place, and those before it are free
        service.release(FAULT="hang")
        Asked(service)
        wait_for(lambda: (service.status()["last_upgrade"] or {})["step"] == "ready", "the new generation")
        kill(service.pid)
        service.running.process.wait(DEADLINE)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(address, DEADLINE)) for _ in range(32)]
            for sock in clients:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            again = stack.enter_context(scene.run(*options))
            assert "generation 3 serves " in again.running.says("connections that waited for generation 4")
            for sock in clients:
                with sock:
                    assert read_answer(b"".join(iter(partial(sock.recv, 1000), b"")))[1] == 3
            again.settled(3)
            nothing_is_left(scene, again)


# --- the generations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [place for places in PLACES.values() for place in places])
def test_an_old_generation_that_is_killed_costs_what_it_had_accepted_and_the_upgrade_goes_on(
    scene: Scene, place: str
) -> None:
    with scene.run(trapped=True) as service, Load(service.address(), CLIENTS) as load:
        before = descriptors(service.pid)
        (victim,) = service.generations()[1]["pids"]
        scene.traps.begin(place)
        asked = Asked(service)
        scene.traps.reached(DEADLINE)
        kill(victim)
        if place.startswith("in "):
            service.running.says(f"(pid {victim}) was killed by signal 9")  # it sees that while the upgrade waits
        scene.traps.go()
        assert asked.outcome()["result"] == "done"
        all_is_well(scene, service, load)
        load.end()
        lost_is_what_was_accepted(load)
        wait_for(lambda: descriptors(service.pid) == before, f"{before}, not {descriptors(service.pid)}")
        nothing_is_left(scene, service)


@pytest.mark.parametrize("place", [place for places in PLACES.values() for place in places])
def test_a_new_generation_that_is_killed_leaves_the_old_one_serving_unless_it_had_the_service_for_good(
    scene: Scene, place: str
) -> None:
    with scene.run(trapped=True) as service, Load(service.address(), CLIENTS) as load:
        before = descriptors(service.pid)
        old = {service.pid, *service.generations()[1]["pids"]}
        scene.traps.begin(place)
        asked = Asked(service)
        scene.traps.reached(DEADLINE)
        new = scene.family() - old
        assert len(new) == (place not in BEFORE_IT_IS_STARTED)
        for victim in new:
            kill(victim)
        scene.traps.go()
        outcome = asked.outcome()
        if place in BEFORE_IT_IS_STARTED or place in PLACES[DRAIN]:
            assert outcome["result"] == "done"
            all_is_well(scene, service, load, 2)
        else:
            users = place not in BEFORE_IT_HAS_USERS
            assert outcome["result"] == ("rolled back" if users or place == "enter canary" else "failed")
            assert "was killed by signal 9" in outcome["reason"]
            all_is_well(scene, service, load, 1)
        load.end()
        if place in BEFORE_IT_HAS_USERS:
            assert not load.failures
        lost_is_what_was_accepted(load)
        wait_for(lambda: descriptors(service.pid) == before, f"{before}, not {descriptors(service.pid)}")
        nothing_is_left(scene, service)


def lost_is_what_was_accepted(load: Load) -> None:
    """By the process that was killed: of each client one connection at most; and nobody was refused, or kept waiting."""
    assert sum(load.failures.values()) <= CLIENTS, load.failures
    for failure in load.failures:
        assert failure.startswith(("ConnectionResetError: ", "ConnectionError: closed ")), load.failures
