"""Families of real processes: who belongs to one, what it weighs, and that nobody in it stays behind as a zombie."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.system import processes
from fdhandoff.system.attention import who_waits_on
from fdhandoff.system.process import Exit
from fdhandoff.system.processes import (
    become_subreaper,
    cgroup_of,
    descendants,
    has_children,
    has_executed,
    members,
    memory_left,
    memory_of,
    reap_all,
    state_of,
    words_of,
    would_die_of,
)

from . import as_nobody, finish, linux, python, root

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = linux

# A process, its child and its grandchild, which stay. Each prints its number.
FAMILY = """
import os, signal
os.write(1, b"%d\\n" % os.getpid())
for _ in range(2):
    if os.fork():
        break
    os.write(1, b"%d\\n" % os.getpid())
signal.pause()
"""


@pytest.fixture
def reaper() -> Iterator[None]:
    become_subreaper()
    yield
    become_subreaper(False)


def numbers(process: subprocess.Popen[str], count: int) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)]


def wait_for_end(pid: int) -> None:
    """Until it has ended; it stays to be reaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def fork(code: int) -> int:
    pid = os.fork()
    if not pid:
        os._exit(code)
    return pid


def test_a_family_is_found_and_stays_one_when_its_middle_dies(reaper: None) -> None:
    family = python(FAMILY, start_new_session=True)
    with family:
        first, *others = numbers(family, 3)
        assert first == family.pid
        assert descendants(first) == sorted(others)
        assert descendants(os.getpid()) == sorted([first, *others])
        assert members(first) == sorted([first, *others])
        assert (members(*others), members(first, *others), members()) == (sorted(others), members(first), [])
        parents = {pid: parent for pid, parent, _, _ in processes._processes()}
        (middle,) = [pid for pid in others if parents[pid] == first]
        (last,) = set(others) - {middle}
        os.kill(first, signal.SIGKILL)
        os.kill(middle, signal.SIGKILL)
        family.wait(20)
        wait_for_end(middle)  # it is ours now
        assert reap_all() == [(middle, Exit(signal=signal.SIGKILL))]
        assert members(first) == [last]  # by its session
        assert descendants(first) == []
        os.kill(last, signal.SIGKILL)
        wait_for_end(last)
        assert reap_all() == [(last, Exit(signal=signal.SIGKILL))]
        assert members(first) == []


def test_all_that_has_ended_is_reaped_and_nobody_else() -> None:
    living = python("import sys; sys.stdin.read()")
    with living:
        ended = {fork(code): Exit(status=code) for code in (0, 1, 7)}
        for pid in ended:
            wait_for_end(pid)
        assert dict(reap_all()) == ended
        assert reap_all() == []
        assert state_of(living.pid)
    assert reap_all() == []


def test_children_that_others_wait_for_are_left_to_them() -> None:
    kept, also_kept, free = fork(1), fork(2), fork(3)
    for pid in (kept, also_kept, free):
        wait_for_end(pid)
    assert reap_all([kept, also_kept]) == [(free, Exit(status=3))]
    assert reap_all([kept, also_kept]) == []
    assert os.waitpid(kept, 0) == (kept, 1 << 8)
    assert reap_all([kept]) == [(also_kept, Exit(status=2))]


def test_a_state_is_told_until_the_process_is_reaped() -> None:
    pid = fork(0)
    wait_for_end(pid)
    assert state_of(pid) == "Z"
    os.waitpid(pid, 0)
    assert state_of(pid) == ""
    assert state_of(os.getpid()) == "R"


def test_memory_is_counted_once_however_many_share_it() -> None:
    block = bytearray(os.urandom(8 << 20))
    alone = memory_of([os.getpid()])
    assert alone > len(block)
    reading, writing = os.pipe()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        pids.append(pid)
    together = memory_of([os.getpid(), *pids])
    os.close(writing)
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(reading)
    assert alone <= together * 1.1 < 2 * alone
    assert memory_of(pids) == 0


@root
def test_another_users_memory_takes_a_privilege_that_is_named() -> None:
    pid = os.getpid()
    answer = as_nobody(lambda: memory_of([pid]))
    assert answer.startswith("SystemCallError")
    assert "CAP_SYS_PTRACE" in answer


def test_an_orphan_is_adopted_by_the_subreaper_and_known_by_what_it_was_started_with(reaper: None) -> None:
    middle = python(
        "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True); print(p.pid, flush=True)",
        env={**os.environ, "MARKED": "so=and so"},
    )
    assert middle.stdout is not None
    with middle:
        orphan = int(middle.stdout.readline())
    try:
        assert orphan in processes.adopted()
        assert processes.variable_of(orphan, "MARKED") == "so=and so"
        assert processes.variable_of(orphan, "MARK") == ""
    finally:
        os.kill(orphan, signal.SIGKILL)
        os.waitpid(orphan, 0)
    assert orphan not in processes.adopted()
    assert processes.variable_of(orphan, "MARKED") == ""


def test_a_control_group_is_a_place_in_the_tree() -> None:
    with open("/proc/self/cgroup", encoding="ascii") as file:
        places = {line.rstrip("\n").split(":", 2)[2] for line in file}
    assert cgroup_of(os.getpid()) in places
    assert cgroup_of(2**22 - 1) == ""


def test_somebody_in_a_family_waits_for_a_listener() -> None:
    code = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
if os.fork():
    print(os.getpid(), flush=True)
    sys.stdin.read()
else:
    sock.accept()
    os._exit(0)
"""
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_server(("127.0.0.1", 0)) as other:
        inode, nobodys = os.fstat(sock.fileno()).st_ino, os.fstat(other.fileno()).st_ino
        family = python(code, str(sock.fileno()), pass_fds=[sock.fileno()])
        with family:
            numbers(family, 1)
            while inode not in who_waits_on([inode], members(family.pid)).inodes:
                assert family.poll() is None
            found = who_waits_on([inode, nobodys], members(family.pid))
            assert found.inodes == {inode}
            assert who_waits_on([inode], [os.getpid()]).inodes == {inode}  # by a descendant
            with socket.create_connection(sock.getsockname()):
                pass


def test_a_process_that_was_forked_has_executed_nothing_of_its_own() -> None:
    process = python(FAMILY)
    parent, *forked = numbers(process, 3)
    try:
        assert has_executed(parent)
        assert not any(map(has_executed, forked))
        assert words_of(forked[0]) == words_of(parent)
        assert words_of(parent)[1] == "-c"
    finally:
        for pid in (*forked, parent):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert not has_executed(parent)
    assert words_of(parent) == []


def test_a_signal_without_a_handler_is_known_to_be_deadly() -> None:
    code = "import os, signal; signal.signal(1, signal.SIG_IGN); signal.signal(10, print); os.write(1, b'1\\n'); signal.pause()"
    process = python(code)
    numbers(process, 1)
    try:
        assert would_die_of(process.pid, signal.SIGTERM)
        assert not would_die_of(process.pid, signal.SIGHUP), "ignored"
        assert not would_die_of(process.pid, signal.SIGUSR1), "handled"
        assert not would_die_of(process.pid, signal.SIGWINCH), "harmless"
    finally:
        process.kill()
        process.communicate()
    assert not would_die_of(process.pid, signal.SIGTERM), "nobody dies of it"


def test_a_child_that_was_not_waited_for_is_one() -> None:
    assert not has_children()
    process = python("pass")
    wait_for_end(process.pid)
    assert has_children()
    finish(process)
    assert not has_children()


def cgroups(folder: Path, path: str, **files: str) -> None:
    place = folder / path
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)


def test_the_memory_that_is_left_is_that_of_the_narrowest_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  999 kB\nMemAvailable:  100 kB\n")
    tree = tmp_path / "tree"
    monkeypatch.setattr(processes, "cgroup_of", lambda _: "/a/b")
    assert memory_left(str(tree), str(meminfo)) == (100 * 1024, "the machine")
    cgroups(tree, "a/b", memory_max="max\n", memory_current="50\n", memory_stat="inactive_file 0\n")
    assert memory_left(str(tree), str(meminfo)) == (100 * 1024, "the machine")
    cgroups(tree, "a", memory_max="1000\n", memory_current="900\n", memory_stat="anon 1\ninactive_file 300\n")
    assert memory_left(str(tree), str(meminfo)) == (400, "the control group /a"), "the cache is given up first"
    cgroups(tree, "a/b", memory_max="700\n", memory_current="800\n", memory_stat="inactive_file 0\n")
    assert memory_left(str(tree), str(meminfo)) == (0, "the control group /a/b")
    assert memory_left(str(tmp_path / "none"), str(tmp_path / "nothing"))[0] == -1
    assert memory_left()[0] > 0, "this machine tells"
