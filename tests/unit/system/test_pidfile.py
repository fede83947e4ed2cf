from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.errors import PathError, PidfileLocked
from fdhandoff.system import pidfile
from fdhandoff.system.pidfile import Pidfile

from . import as_nobody, linux, python, root

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD = """
import os, sys
from {package}.system.pidfile import Pidfile
p = Pidfile(sys.argv[1])
getattr(p, sys.argv[2])()
print("holding", flush=True); input()
print(p.release(), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.pid"


def holder(path: Path, how: str = "claim") -> subprocess.Popen[str]:
    process = python(HOLD, str(path), how)
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def released(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate("\n", timeout=20)
    assert process.returncode == 0
    return output.strip()


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process.pid
        process.kill()


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_the_content_is_the_pid_and_a_newline(path: Path) -> None:
    before = os.umask(0o077)
    try:
        mine = Pidfile(path)
        mine.claim()
    finally:
        os.umask(before)
    assert path.read_bytes() == b"%d\n" % os.getpid()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert mine.owned
    assert pidfile.read(path) == pidfile.alive(path) == os.getpid()
    assert os.listdir(path.parent) == ["app.pid"]
    assert mine.release()
    assert not mine.release()
    assert not mine.owned
    assert os.listdir(path.parent) == []


def test_a_second_claim_is_refused_with_the_holders_pid(path: Path) -> None:
    with holder(path) as first:
        with pytest.raises(PidfileLocked, match=f"belongs to pid {first.pid} .*stop it first") as caught:
            Pidfile(path).claim()
        assert caught.value.pid == first.pid
        assert pidfile.read(path) == first.pid
        assert released(first) == "True"
    assert not path.exists()


def test_a_killed_holders_file_is_replaced(path: Path) -> None:
    with holder(path) as first:
        first.kill()
    assert pidfile.read(path) == first.pid
    assert pidfile.alive(path) is None
    mine = Pidfile(path)
    mine.claim()
    assert pidfile.read(path) == os.getpid()
    mine.release()


def test_a_live_process_keeps_a_file_without_a_lock(path: Path, sleeper: int) -> None:
    path.write_text(f"{sleeper}\n", encoding="ascii")
    with pytest.raises(PidfileLocked, match=rf"belongs to pid {sleeper} \(sleep\)" if sys.platform == "linux" else ""):
        Pidfile(path).claim()
    assert pidfile.alive(path) == sleeper


@linux
def test_a_number_that_somebody_got_after_the_file_was_written_is_stale(path: Path, sleeper: int) -> None:
    path.write_text(f"{sleeper}\n", encoding="ascii")
    long_ago = time.time() - 100_000
    os.utime(path, (long_ago, long_ago))
    assert pidfile.alive(path) is None
    mine = Pidfile(path)
    mine.claim()
    assert mine.release()


@root
def test_a_process_that_is_not_ours_to_signal_lives(path: Path) -> None:
    for directory in (path.parent, path.parent.parent, path.parent.parent.parent):
        directory.chmod(0o755)
    path.parent.chmod(0o777)
    path.write_text(f"{os.getpid()}\n", encoding="ascii")
    assert as_nobody(lambda: pidfile.alive(path)) == str(os.getpid())
    assert f"PidfileLocked: the pidfile {path} belongs to pid {os.getpid()}" in as_nobody(lambda: Pidfile(path).claim())
    path.parent.chmod(0o700)


@pytest.mark.parametrize("content", [b"", b"\n", b"garbage", b"-1\n", b"0\n", b"12 34\n", b"9" * 300, b"\xff\xfe"])
def test_what_is_no_number_belongs_to_nobody(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert pidfile.read(path) is None
    mine = Pidfile(path)
    mine.claim()
    assert pidfile.read(path) == os.getpid()
    mine.release()


def test_a_dead_process_has_no_pidfile(path: Path) -> None:
    path.write_text(f"{dead_pid()}", encoding="ascii")  # and no newline
    assert pidfile.alive(path) is None
    mine = Pidfile(path)
    mine.claim()
    assert mine.release()


def test_no_file_is_nobody(path: Path) -> None:
    assert pidfile.read(path) is None
    assert pidfile.alive(path) is None
    with pytest.raises(PathError, match="can't be read: Is a directory"):
        pidfile.read(path.parent)


def test_a_successor_takes_over_from_a_living_holder(path: Path) -> None:
    with holder(path) as old:
        mine = Pidfile(path)
        mine.take_over()
        assert pidfile.read(path) == os.getpid()
        assert released(old) == "False"  # its own file is no longer at the path
        assert pidfile.read(path) == os.getpid()
        with pytest.raises(PidfileLocked):
            raise_from_a_child(path)
        assert mine.release()
    assert os.listdir(path.parent) == []


def raise_from_a_child(path: Path) -> None:
    code = (
        "import sys\nfrom {package}.errors import PidfileLocked\nfrom {package}.system.pidfile import Pidfile\n"
        "try: Pidfile(sys.argv[1]).claim()\nexcept PidfileLocked as error: print(error.pid)"
    )
    output, _ = python(code, str(path)).communicate(timeout=20)
    if output:
        raise PidfileLocked("refused", pid=int(output))


def test_ten_generations_each_find_their_own_number(path: Path) -> None:
    generations = [holder(path)]
    for _ in range(9):
        generations.append(holder(path, "take_over"))
        assert pidfile.read(path) == generations[-1].pid
        with generations[-2] as old:
            assert released(old) == "False"
    with generations[-1] as last:
        assert released(last) == "True"
    assert os.listdir(path.parent) == []


def test_a_rollback_takes_the_file_back(path: Path) -> None:
    mine = Pidfile(path)
    mine.claim()
    with holder(path, "take_over") as new:
        assert not mine.owned
        mine.take_over()
        assert mine.owned
        assert released(new) == "False"
    assert pidfile.read(path) == os.getpid()
    assert mine.release()


def test_readers_see_a_whole_number_at_every_moment(path: Path) -> None:
    mine = Pidfile(path)
    mine.claim()
    code = (
        "import sys\nprint('up', flush=True)\n"
        "seen = set()\n"
        "while sys.argv[2] not in seen: seen.add(open(sys.argv[1]).read().strip())\n"
        "print(*sorted(seen))"
    )
    with python(code, str(path), "999999") as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "up\n"
        numbers = {os.getpid(), *range(10, 300)}
        for number in (*range(10, 300), 999_999):
            mine.claim(number)
        output, _ = reader.communicate(timeout=20)
    assert set(map(int, output.split())) <= {*numbers, 999_999}
    mine.release()


def test_another_process_can_be_named(path: Path, sleeper: int) -> None:
    mine = Pidfile(path)
    mine.claim(sleeper)
    assert pidfile.alive(path) == sleeper
    assert mine.release()


def test_a_relative_path_holds_after_chdir(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    mine = Pidfile(path.name)
    monkeypatch.chdir("/")
    mine.claim()
    assert pidfile.read(path) == os.getpid()
    assert mine.release()


def test_a_missing_directory_and_other_things_are_named(path: Path) -> None:
    with pytest.raises(PathError, match=f"there is no directory {path.parent}/none, create it"):
        Pidfile(path.parent / "none" / "app.pid").claim()
    path.mkdir()
    for attempt in (Pidfile(path).claim, Pidfile(path).take_over):
        with pytest.raises(PathError, match="is no regular file; it was not touched"):
            attempt()
    (path.parent / "link").symlink_to("/etc/hostname")
    with pytest.raises(PathError, match="is no regular file"):
        Pidfile(path.parent / "link").claim()
    assert sorted(os.listdir(path.parent)) == ["app.pid", "link"]


def test_a_file_that_was_put_in_its_place_stays(path: Path) -> None:
    mine = Pidfile(path)
    mine.claim()
    os.unlink(path)
    path.write_text("somebody else's", encoding="ascii")
    assert not mine.release()
    assert path.read_text(encoding="ascii") == "somebody else's"


def test_a_file_that_was_removed_is_no_error(path: Path) -> None:
    mine = Pidfile(path)
    mine.claim()
    os.unlink(path)
    assert not mine.release()
    assert os.listdir(path.parent) == []


def test_a_forked_child_does_not_remove_its_parents_file(path: Path) -> None:
    mine = Pidfile(path)
    mine.claim()
    pid = os.fork()
    if not pid:
        os._exit(17 if mine.release() or mine.owned else 0)
    assert os.waitpid(pid, 0)[1] == 0
    assert mine.owned
    assert mine.release()


def test_a_worker_that_outlives_the_holder_does_not_keep_the_file(path: Path) -> None:
    code = HOLD.replace('print("holding"', 'w = os.fork()\nif not w: os.read(0, 1); os._exit(0)\nprint("holding"')
    reading, writing = os.pipe()
    with python(code, str(path), "claim", stdin=reading) as first:
        os.close(reading)
        assert first.stdout is not None
        assert first.stdout.readline() == "holding\n"
        first.kill()
        first.wait()
        mine = Pidfile(path)
        mine.claim()  # though the worker still has the lock
        assert mine.release()
        os.close(writing)  # which ends the worker


def test_a_program_that_we_start_does_not_inherit_the_lock(path: Path) -> None:
    mine = Pidfile(path)
    mine.claim()
    fd = mine._fd
    code = f"import os; os.fstat({fd})"
    assert not os.get_inheritable(fd)
    ended = subprocess.run([sys.executable, "-c", code], close_fds=False, capture_output=True, check=False)
    assert b"Bad file descriptor" in ended.stderr
    mine.release()


RACE = """
import sys
from {package}.errors import PidfileLocked
from {package}.system.pidfile import Pidfile
print("up", flush=True); sys.stdin.readline()
kept = []
for number in range(int(sys.argv[2])):
    p = Pidfile(f"{sys.argv[1]}.{number}")
    try:
        p.claim(); kept.append(p)
    except PidfileLocked:
        pass
print(len(kept), flush=True); sys.stdin.readline()
print(sum(p.release() for p in kept))
"""


def test_of_many_racing_claims_one_holds(path: Path) -> None:
    rounds = 30
    for number in range(0, rounds, 2):
        Path(f"{path}.{number}").write_text(str(dead_pid() if number < 4 else 2**22 + number), encoding="ascii")
    racers = [python(RACE, str(path), str(rounds)) for _ in range(6)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "up\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert sum(int(racer.stdout.readline()) for racer in racers if racer.stdout is not None) == rounds
    gone = [int(racer.communicate("\n", timeout=20)[0]) for racer in racers]
    assert sum(gone) == rounds
    assert os.listdir(path.parent) == []


@linux
def test_one_that_has_ended_and_was_not_waited_for_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    path.write_text(f"{zombie.pid}\n")
    assert pidfile.alive(path) is None
    mine = Pidfile(path)
    mine.claim()
    assert pidfile.read(path) == os.getpid()
    mine.release()
    zombie.wait()


def test_a_check_refuses_as_a_claim_would_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    Pidfile(path).check()
    assert not path.exists()
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(PidfileLocked) as caught:
        Pidfile(path).check()
    assert caught.value.pid == os.getppid()
    assert path.read_text() == f"{os.getppid()}\n"
