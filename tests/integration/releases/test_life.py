"""What becomes of releases when things happen at bad moments, and what an operator can ask for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from ..cli import Running, verb, wait_for
from ..cli.schema import check
from ..master import RUDE, quick, request
from . import BROKEN, Watched, plugged, point, replace, script
from .publishers import File, Symlink

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A source from elsewhere: what it does is in a file.
SOURCE = """
import os, subprocess, sys, time
from fdhandoff.releases import Broken, Found, Source, SourceError
class Strange(Source):
    remote = False
    def look(self, state):
        mode = open(self.where).read()
        if mode == "hang":
            self.settings.say("half way")
            time.sleep(1000)
        if mode == "die":
            os.kill(os.getpid(), 9)
        if mode == "babble":
            while True:
                os.write(3, b"x" * 65536)
        if mode == "raise":
            raise ZeroDivisionError("a fault\\nof its own")
        if mode == "busy":
            raise SourceError("asked too often", wait=600)
        name = mode if mode in ("unusable", "unsettled", "two") else "one"
        return Found(name, name)
    def fetch(self, found, into):
        if open(self.where).read() == "stop":
            helper = subprocess.Popen(["sleep", "1000"])
            (into / "half.new").write_text(str(helper.pid))
            (into / "half.new").rename(into / "half")
            os.kill(os.getpid(), 19)
        if found.tag == "unusable":
            raise Broken("it has no head")
        (into / "server.py").write_text(open(self.where + ".py").read())
        return into / "server.py"
    def settle(self, found, release):
        assert release.parent.name == found.tag, release
        if found.tag == "unsettled":
            raise Broken("it has no head")
"""


@pytest.fixture
def file(tmp_path: Path) -> File:
    one = File(tmp_path)
    one.publish("one")
    return one


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[Path]:
    """The file in which it reads what to do."""
    does = tmp_path / "does"
    does.write_text("well")
    does.with_name("does.py").write_text(script("one"))
    with plugged(tmp_path, "strange", "strange:Strange") as installed:
        (installed / "strange.py").write_text(SOURCE)
        yield does


def test_a_deleted_release_is_left_by_an_upgrade_to_where_the_link_leads_now(tmp_path: Path) -> None:
    link = Symlink(tmp_path)
    show = RUDE.replace("os.environ.get('RELEASE', '')", "os.path.basename(os.getcwd())")
    first, second = link.folder / "first", link.folder / "second"
    for release in (first, second):
        release.mkdir()
        (release / "server.py").write_text(show)
    point(link.link, first)
    with Watched(tmp_path, link.source, *link.options, "--once", words=tuple(link.words)) as service:
        assert service.answers() == "first"
        shutil.rmtree(first)
        point(link.link, second)
        code, _, errors = service.command()
        assert code == 0, errors
        assert service.answers() == "second"
        worker = service.generations()[2]["pids"][0]
        assert os.readlink(f"/proc/{worker}/cwd") == str(second)


def test_a_half_written_file_is_never_started(tmp_path: Path, file: File) -> None:
    text = script("two")
    with Watched(tmp_path, file.source) as service:
        with file.path.open("w") as writing:
            writing.write(text[:200])
            writing.flush()
            service.says("is still being written")
            assert service.answers() == "one"
            writing.write(text[200:])
        service.comes("two")
        assert service.fates() == ["serving", "served"]


def test_of_two_releases_within_a_second_the_last_one_is_taken(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source) as service:
        file.publish("two")
        file.publish("three")
        service.comes("three")
        assert service.generations().keys() == {2}


def test_a_link_that_is_turned_twice_quickly_leads_to_where_it_points_last(tmp_path: Path) -> None:
    link = Symlink(tmp_path)
    for name in ("one", "two", "three"):
        link.publish(name)
    releases = link.folder / "releases"
    point(link.link, releases / "one")
    with Watched(tmp_path, link.source, *link.options, words=tuple(link.words)) as service:
        for name in ("two", "three"):
            point(link.link, releases / name)
        service.comes("three")
        for name in ("two", "three"):
            point(link.link, releases / name)
        service.releases(look=True)
        assert service.answers() == "three"
        assert service.status()["releases"]["serving"] == "three"


def test_a_file_that_becomes_a_directory_or_vanishes_and_comes_back(tmp_path: Path, file: File) -> None:
    run = "import os, runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    with Watched(tmp_path, file.source, words=("-c", run, "{release}")) as service:
        file.path.unlink()
        service.says("can't be read: No such file or directory")
        assert service.answers() == "one"
        new = file.path.with_name("new")
        new.mkdir()
        (new / "__main__.py").write_text(script("two"))
        new.rename(file.path)
        service.comes("two")
        file.path.rename(new)
        file.publish("three")
        service.comes("three")
        assert service.fates() == ["serving", "served", "served"]


def test_a_history_outlives_the_masters(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source) as service:
        file.publish("two")
        service.comes("two")
        file.publish("three", BROKEN)
        service.says("is not tried again before it changes")
        service.settled()
        before = service.releases()
        assert [one["fate"] for one in before.values()] == ["failed", "serving", "served"]
        assert service.command("--master")[0] == 0
        assert service.releases() == before
        os.kill(service.pid, signal.SIGKILL)
        service.running.process.wait()
        with Watched(tmp_path, file.source) as again:
            assert again.releases(look=True) == before, "nor is what failed tried once more"
            done = verb("releases", str(again.path), "--json")
            answer = json.loads(done.stdout)
            assert (answer["schema"], answer["watch"]["source"]) == (1, file.source)
            assert [one["tag"] for one in answer["releases"]] == list(before)


def test_a_file_keeps_its_permissions(tmp_path: Path, file: File) -> None:
    replace(file.path, f"#!{sys.executable}\n{script('one')}", 0o750)
    execute = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    with Watched(tmp_path, file.source, words=("-c", execute, "{release}")) as service:
        assert service.answers() == "one"
        (facts,) = service.releases().values()
        assert Path(facts["place"]).stat().st_mode & 0o777 == 0o750


def test_after_the_power_went_the_last_good_release_is_started_and_the_rest_is_removed(
    tmp_path: Path, file: File
) -> None:
    with Watched(tmp_path, file.source, "--probation", "10m") as service:
        file.publish("two")
        wait_for(lambda: service.generations().get(2, {}).get("state") == "probation", "a release in probation")
        service.kill_all()
    (service.store / ".unfinished-1" / "locked").mkdir(parents=True)
    (service.store / ".unfinished-1" / "locked").chmod(0)
    for name, mark in (("nobody-knows-it", ".fdhandoff"), ("somebody-elses", "data")):
        (service.store / name).mkdir()
        (service.store / name / mark).touch()
    file.publish("three")
    with Watched(tmp_path, file.source) as service:
        service.comes("three")
        tried = {facts["tag"]: facts["fate"] for facts in service.releases().values()}
        assert list(tried.values()) == ["serving", "fetched", "served"], (
            "two, which was not decided, is not what it began with"
        )
        assert not {entry.name for entry in service.store.iterdir() if entry.name.startswith((".unf", "nob"))}
        assert (service.store / "somebody-elses" / "data").exists(), "what has not our mark is not ours to remove"


@pytest.mark.parametrize("state", ["starting", "probation"])
def test_a_killed_master_is_followed_by_one_that_finishes(tmp_path: Path, file: File, state: str) -> None:
    gate = tmp_path / "gate"
    late = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    with Watched(tmp_path, file.source, "--probation", "10m") as service:
        if state == "probation":
            gate.touch()
        replace(file.path, late + script("two"))
        wait_for(lambda: any(run["state"] == state for run in service.quietly().get("generations", ())), state)
        service.running.process.kill()
        service.running.process.wait()  # its generation has its standard error still
        gate.touch()
        with Watched(tmp_path, file.source, "--probation", "0.5") as next_one:
            assert next_one.answers() in ("one", "two")
            next_one.comes("two")
            wait_for(lambda: next_one.fates() == ["serving", "served"], "what became of both")


def test_a_master_that_is_replaced_in_place_goes_on_watching(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source) as service:
        code, _, errors = service.command("--master")
        assert code == 0, errors
        file.publish("two")
        service.comes("two")


def test_an_operator_goes_back_and_forth_and_the_watcher_does_not_undo_it(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source) as service:
        file.publish("two")
        service.comes("two")
        service.settled()
        two, one = service.releases()
        back = verb("rollback", str(service.path))
        assert (back.returncode, service.answers()) == (0, "one"), back.stderr
        assert f"of release {one}" in back.stdout
        assert verb("releases", str(service.path), "--look").returncode == 0
        assert (service.answers(), service.fates()) == ("one", ["rolled back", "serving"])
        code, _, errors = service.command("--to", two)
        assert (code, service.answers(), service.fates()) == (0, "two", ["serving", "served"]), errors
        code, _, errors = service.command("--to", "nothing")
        assert (code, errors) == (1, f"fdhandoff-cli: there is no release 'nothing': there are {one}, {two}\n")
        service.releases(look=True)
        assert service.answers() == "two"


def test_a_worker_that_dies_is_restarted_with_its_own_release(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source, "--watch-mode", "fetch") as service:
        file.publish("two")
        service.says("and waits")
        assert service.fates() == ["fetched", "serving"]
        old = service.generations()[1]["pids"][0]
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: 1 in (alive := service.generations()) and alive[1]["pids"] != [old], "another worker")
        assert service.answers() == "one"


def test_a_release_that_waits_is_taken_by_the_next_upgrade(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source, "--watch-mode", "next") as service:
        file.publish("two")
        service.says("and waits: the next upgrade that is asked for moves to it")
        assert service.answers() == "one"
        os.kill(service.pid, signal.SIGHUP)
        service.comes("two")


def test_outside_of_its_window_the_service_stays(tmp_path: Path, file: File) -> None:
    hour = time.localtime().tm_hour
    window = f"{(hour + 6) % 24}:00-{(hour + 7) % 24}:00"
    with Watched(tmp_path, file.source, "--window", window) as service:
        file.publish("two")
        service.says(f"and waits: the maintenance window ({window}) is closed")
        service.upgrade(to=next(iter(service.releases())))
        assert service.answers() == "two"


def test_old_releases_are_removed_and_never_a_running_one(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source, "--keep-releases", "2") as service:
        for name in ("two", "three", "four"):
            file.publish(name)
            service.comes(name)
        service.releases(look=True)
        kept = {facts["place"] for facts in service.releases().values()}
        assert len(kept) == 2
        assert service.answers() == "four"
        folders = {str(path) for path in service.store.iterdir() if path.is_dir() and not path.is_symlink()}
        assert folders == {str(Path(place or "").parent) for place in kept}
        assert os.path.realpath(service.store / "current") == os.path.realpath(
            next(iter(service.releases().values()))["place"]
        )


def test_a_fetcher_that_hangs_tells_how_far_it_is_and_is_ended(tmp_path: Path, strange: Path) -> None:
    with Watched(tmp_path, f"strange:{strange}") as service:
        strange.write_text("hang")
        wait_for(lambda: service.status()["releases"]["doing"] == "half way", "how far it is")
        assert "looks now: half way" in verb("releases", str(service.path)).stdout
        assert service.stop() == 0
    with Watched(tmp_path, f"strange:{strange}", "--fetch-timeout", "2") as service:
        service.says("did not end within 2s: it was ended")
        assert service.answers() == "one"
        assert "did not end within 2s: it was ended" in verb("releases", str(service.path)).stdout
        assert service.stop() == 0


@pytest.mark.parametrize(
    ("does", "sentence"),
    [
        ("die", "was killed by signal 9, and said nothing"),
        ("babble", "said more than makes sense"),
        ("raise", "ZeroDivisionError: a fault of its own"),
    ],
)
def test_a_bad_fetcher_costs_nothing(tmp_path: Path, strange: Path, does: str, sentence: str) -> None:
    told = strange
    with Watched(tmp_path, f"strange:{told}") as service:
        told.write_text(does)
        service.says(sentence)
        assert service.answers() == "one"
        assert sentence in verb("releases", str(service.path)).stdout
        assert service.stop() == 0


@pytest.mark.parametrize("does", ["unusable", "unsettled"])
def test_a_release_that_can_not_be_used_has_failed_once_and_for_all(tmp_path: Path, strange: Path, does: str) -> None:
    note = f"sh -c 'echo $FDHANDOFF_RELEASE $FDHANDOFF_RESULT $FDHANDOFF_REASON >> {tmp_path}/notes'"
    with Watched(tmp_path, f"strange:{strange}", "--on-failure", note) as service:
        strange.write_text(does)
        service.says(f"release {does}, which can't be used (it has no head): it is not tried again before it changes")
        looked = service.status()["releases"]["looked"]
        wait_for(lambda: service.status()["releases"]["looked"] > looked, "another look")
        assert service.said("it has no head") == 1
        facts = service.releases()[does]
        assert (facts["fate"], facts["reason"], facts["place"]) == ("failed", "it has no head", None)
        assert not (service.store / does).exists()
        wait_for((tmp_path / "notes").exists, "the command that is told of it")
        assert f"there is no release '{does}'" in service.command("--to", does)[2]
        strange.write_text("two")
        wait_for(lambda: service.fates()[:1] == ["serving"], "the next release")
        assert (tmp_path / "notes").read_text() == f"{does} failed it has no head\n"


def test_without_a_release_that_can_be_used_nothing_starts(tmp_path: Path, strange: Path) -> None:
    strange.write_text("unusable")
    for _ in range(2):
        with Watched(tmp_path, f"strange:{strange}", wait=False) as service:
            assert service.running.ends() == 125
            assert "no release to start but unusable, which failed (it has no head)" in service.running.text()


def test_a_source_that_was_asked_too_often_is_left_alone(tmp_path: Path, strange: Path) -> None:
    with Watched(tmp_path, f"strange:{strange}") as service:
        strange.write_text("busy")
        service.says("asked too often")
        watch = wait_for(lambda: (facts := service.status()["releases"])["next_look"] and facts, "its patience")
        assert 500 < watch["next_look"] <= 600
        strange.write_text("two")
        service.releases(look=True)
        after = service.status()["releases"]
        assert (after["looked"], after["problem"]) == (watch["looked"], "asked too often")


def test_a_fetcher_dies_with_its_master_and_all_that_it_had_begun_is_removed(tmp_path: Path, strange: Path) -> None:
    told = strange
    told.write_text("stop")
    with Watched(tmp_path, f"strange:{told}", wait=False) as service:
        half = wait_for(lambda: list(service.store.glob(".unfinished-*/half")), "a fetch under way")[0]
        os.kill(service.pid, signal.SIGKILL)
        service.running.ends()
        for pid in (half.parent.name.rpartition("-")[2], half.read_text()):
            wait_for(
                lambda pid=pid: not os.path.exists(f"/proc/{pid}"), "the end of its fetcher and of what that started"
            )
    told.write_text("well")
    with Watched(tmp_path, f"strange:{told}") as service:
        assert service.answers() == "one"
        assert not half.exists()


def test_without_any_release_the_start_is_refused_with_the_reason(tmp_path: Path) -> None:
    with Watched(tmp_path, f"file:{tmp_path}/nothing", wait=False) as service:
        assert service.running.ends() == 125
        assert f"there is no release to start: {tmp_path}/nothing can't be read: No such file" in service.running.text()


def test_a_first_release_that_fails_is_not_started_again(tmp_path: Path) -> None:
    file = File(tmp_path)
    file.publish("one", BROKEN)
    for text in ("exited with status 3", "there is no release to start but"):
        with Watched(tmp_path, file.source, wait=False) as service:
            assert service.running.ends() in (3, 125)
            assert text in service.running.text()


def test_a_release_that_served_and_does_not_start_any_more_makes_way_for_a_newer_one(tmp_path: Path) -> None:
    file = File(tmp_path)
    broken = tmp_path / "broken"
    replace(file.path, f"import os, sys\nif os.path.exists({str(broken)!r}): sys.exit(4)\n{script('one')}")
    with Watched(tmp_path, file.source) as service:
        assert service.stop() == 0
    broken.touch()
    for _ in range(2):
        with Watched(tmp_path, file.source, wait=False) as service:
            assert service.running.ends() == 4
    file.publish("two")
    with Watched(tmp_path, file.source) as service:
        assert service.answers() == "two"
        assert service.said("did not start the last time") == 1
        assert service.fates() == ["serving", "served"]


@pytest.mark.parametrize("required", [False, True])
def test_a_source_that_is_gone_at_the_start(tmp_path: Path, file: File, required: bool) -> None:
    with Watched(tmp_path, file.source) as service:
        assert service.stop() == 0
    file.path.unlink()
    with Watched(tmp_path, file.source, *["--watch-required"] * required, wait=False) as service:
        if required:
            assert service.running.ends() == 125
        else:
            service.serves()
            assert service.answers() == "one"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--watch", "nowhere"), "'nowhere' is no source"),
        (("--watch", "file:/x", "--", "server"), "the command would be the same for each release"),
        (("--watch", "file:/x", "--", "{release}"), "say --name"),
        (("--watch", "file:/x", "--window", "noon", "--", "/x"), "'noon' is no window"),
        (("--watch", "file:/x", "--release", "one", "--", "/x"), "leave out --release"),
        (("--watch", "file:/x", "--every", "0", "--", "/x"), "--every: it would be over before it begins"),
        (("--watch", "file:/x", "--jitter", "-5", "--", "/x"), "--jitter: '-5' is not a duration"),
    ],
)
def test_mistakes_are_found_before_anything_is_bound(words: tuple[str, ...], sentence: str) -> None:
    done = verb("run", *words)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_history_that_makes_no_sense_is_left_alone(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source) as service:
        assert service.stop() == 0
    history = service.store / "releases.json"
    history.write_text("{")
    with Watched(tmp_path, file.source, wait=False) as service:
        assert service.running.ends() == 125
        assert "makes no sense" in service.running.text()
    assert history.read_text() == "{"


def test_who_watches_for_nothing_says_so(tmp_path: Path) -> None:
    running = Running(
        "run", "--path", str(tmp_path / "s"), "--bind", "127.0.0.1:0", *quick(), "--", sys.executable, "-c", RUDE
    )
    try:
        running.says("serves")
        done = verb("releases", str(tmp_path / "s"))
        assert (done.returncode, "watches for no releases" in done.stderr) == (1, True)
    finally:
        running.stop()


def test_a_request_that_outlives_the_swap_is_answered_by_its_own_release_and_the_end_leaves_nothing(
    tmp_path: Path,
) -> None:
    """As overseer's example shows it, with a request that lasts until the next release has answered others."""
    held = f"""
            if b"/held" in asked:
                open({str(tmp_path)!r} + "/held-" + os.environ["RELEASE"], "w").close()
                while not os.path.exists({str(tmp_path)!r} + "/go-" + os.environ["RELEASE"]):
                    time.sleep(0.01)
"""
    link = Symlink(tmp_path)

    def publish(name: str) -> None:
        release = link.folder / "releases" / name
        release.mkdir(parents=True)
        (release / "server.py").write_text(
            script(name).replace('\n            if b"/sleep"', f'{held}            if b"/sleep"')
        )
        point(link.link, release)

    mark = f"SCENE={tmp_path}".encode()
    publish("one")
    with Watched(
        tmp_path, link.source, *link.options, "--grace", "60s", words=tuple(link.words), env={"SCENE": str(tmp_path)}
    ) as service:
        master, address = service.pid, service.address()
        for before, name in (("one", "two"), ("two", "three"), ("three", "four")):
            answers: list[str] = []
            slow = Thread(target=lambda answers=answers: answers.append(request(address, "/held")[0]))
            slow.start()
            wait_for((tmp_path / f"held-{before}").exists, "the slow request")
            publish(name)
            service.comes(name)
            assert slow.is_alive()
            (tmp_path / f"go-{before}").touch()
            slow.join()
            assert answers == [before]
            assert service.pid == master == service.status()["master"]["pid"]
        assert service.fates() == ["serving", "served", "served", "served"]
        assert service.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            request(address)
        assert not [name for name in os.listdir(tmp_path) if "sock" in name]
        assert set(os.listdir(service.store)) == {"releases.json", ".lock"}
        wait_for(lambda: not marked(mark), f"{marked(mark)} to end")


def marked(mark: bytes) -> set[int]:
    """The processes that have it in their environment."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(int(pid))
    return found


def test_its_status_is_what_the_reference_says(tmp_path: Path, file: File) -> None:
    with Watched(tmp_path, file.source) as service:
        wait_for(lambda: service.status()["releases"]["next_look"] is not None)
        check("master", service.status())


def test_a_directory_that_is_made_anew_under_its_name_is_another_release_once(tmp_path: Path) -> None:
    link = Symlink(tmp_path)
    link.publish("one")
    place = link.folder / "releases" / "one"
    with Watched(tmp_path, link.source, *link.options, words=tuple(link.words)) as service:
        again = link.folder / "again"
        again.mkdir()
        (again / "server.py").write_text(script("two"))
        place.rename(link.folder / "old")
        again.rename(place)
        service.comes("two")
        service.releases(look=True)
        service.releases(look=True)
        assert service.fates() == ["serving", "served"]
        assert service.generations().keys() == {2}
        assert verb("rollback", str(service.path)).returncode == 1, "what served before is not there any more"
        assert service.answers() == "two"
