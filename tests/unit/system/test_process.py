from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from fdhandoff.deadline import after
from fdhandoff.errors import SystemCallError, Unsupported
from fdhandoff.system import native, process
from fdhandoff.system.process import Exit, Identity, Process, group_members, spawn

from . import finish, python

linux = pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no /proc")
pidfds = pytest.mark.skipif("pidfd" not in native.features(), reason="this kernel has no pidfds")
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

REPORT = """
import json, os, signal, sys
fds = {fd: os.get_inheritable(fd) for fd in range(40) if os.path.exists(f"/proc/self/fd/{fd}")}
handlers = [n.name for n in signal.Signals if signal.getsignal(n) is signal.SIG_IGN
            and n not in (signal.SIGPIPE, signal.SIGXFSZ)]  # CPython ignores these two itself
mask = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
print(json.dumps({
    "pid": os.getpid(), "fds": sorted(fds), "env": dict(os.environ), "cwd": os.getcwd(), "mask": mask,
    "ignored": handlers, "group": os.getpgrp() == os.getpid(), "session": os.getsid(0) == os.getpid(),
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "argv": sys.argv[1:],
}), file=open(1, "w", closefd=False), flush=True)
"""


def report(code: str = REPORT, *arguments: str, **options: Any) -> dict[str, Any]:
    """What a spawned interpreter says of itself."""
    reading, writing = os.pipe()
    try:
        options.setdefault("fds", {}).update({1: writing, 2: 2})
        child = spawn([sys.executable, "-I", "-S", "-c", code, *arguments], **options)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    with child, open(reading, encoding="utf-8") as file:
        text = file.read()
        assert child.wait(after(20)) == Exit(status=0), text
        return json.loads(text)  # type: ignore[no-any-return]


@pytest.fixture(params=["pidfd", "pid"])
def lasting(request: pytest.FixtureRequest) -> Any:
    """Makes a process object of a child's pid, by pidfd and by the fallback."""
    if request.param == "pidfd" and "pidfd" not in native.features():
        pytest.skip("this kernel has no pidfds")

    def make(pid: int) -> Process:
        found = Process.from_pid(pid)
        if request.param == "pid":
            found.close()
        return found

    return make


# --- a process that exists ------------------------------------------------------------------------------------


def test_our_own_process_is_found_and_lives() -> None:
    with Process.from_pid(os.getpid()) as me:
        assert me.pid == os.getpid()
        assert me.alive()
        assert me.signal(0)
        if sys.platform == "linux":
            assert me.started == process.start_time(os.getpid()) > 0


def test_a_childs_life_and_death_are_seen_without_reaping(lasting: Any) -> None:
    child = python("input()")
    with child, lasting(child.pid) as found:
        assert found.alive()
        assert found.wait(after(0)) is None
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not found.alive()
        assert not found.alive()
        assert child.wait(10) == 0


def test_wait_tells_the_exit_status_and_remembers_it(lasting: Any) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", "raise SystemExit(7)"], os.environ)
    with lasting(pid) as found:
        assert found.wait(after(20)) == Exit(status=7)
        assert found.wait(after(0)) == Exit(status=7)
        assert str(found.wait(0)) == "exited with status 7"
        assert not found.alive()
        assert not found.signal(signal.SIGTERM)


def test_wait_tells_the_signal(lasting: Any) -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "100"], os.environ)
    with lasting(pid) as found:
        assert found.wait(after(0.02)) is None
        assert found.signal(signal.SIGKILL)
        assert found.wait(after(20)) == Exit(signal=9)
        assert str(found.wait(0)) == "was killed by signal 9"


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_a_strangers_end_is_seen_though_not_how(lasting: Any) -> None:
    parent = python(
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '100'])\n"
        "print(child.pid, flush=True); input(); child.kill(); child.wait(); input()"
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        with lasting(int(parent.stdout.readline())) as found:
            assert found.wait(after(0.02)) is None
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert found.wait(after(20)) == Exit()
            assert str(found.wait(0)) == "ended"
        finish_text(parent)


def finish_text(parent: Any) -> None:
    parent.communicate("\n", timeout=20)
    assert parent.returncode == 0


def test_a_number_that_nobody_has_is_an_error() -> None:
    child = python("")
    child.communicate(timeout=20)
    for pid in (child.pid, 0, -1):
        with pytest.raises(SystemCallError, match=f"process {pid}") as caught:
            Process.from_pid(pid)
        assert caught.value.errno == errno.ESRCH


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_a_zombie_still_has_its_number_and_can_be_reaped() -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 4"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with Process.from_pid(pid, process.start_time(pid)) as zombie:
        assert not zombie.alive()
        assert zombie.wait(after(0)) == Exit(status=4)
    with pytest.raises(SystemCallError):
        Process.from_pid(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_another_process_with_the_same_number_is_not_taken_for_it() -> None:
    started = process.start_time(os.getpid())
    Process.from_pid(os.getpid(), started).close()
    with pytest.raises(SystemCallError) as caught:
        Process.from_pid(os.getpid(), started + 1)
    assert caught.value.errno == errno.ESRCH
    reused = Process(os.getpid(), started + 1, -1)
    assert not reused.alive()
    assert not reused.signal(0)


@pidfds
def test_a_pidfd_is_taken_and_names_its_process() -> None:
    pidfd = os.pidfd_open(os.getpid())
    with Process.from_pidfd(pidfd) as me:
        assert (me.pid, me.started, me.fileno()) == (os.getpid(), process.start_time(os.getpid()), pidfd)
        assert "pidfd_id" not in native.features() or me.id() == os.fstat(pidfd).st_ino
    with pytest.raises(Unsupported, match="wait"):
        me.fileno()
    assert me.id() == 0


@pidfds
def test_the_pidfd_of_an_ended_process_has_no_number() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    with Process.from_pidfd(pidfd) as ended:
        assert (ended.pid, ended.started) == (0, 0)
        assert not ended.alive()
        assert not ended.signal(0)


@pidfds
def test_a_pidfd_becomes_readable_at_the_end() -> None:
    with spawn(["sleep", "100"]) as child:
        poller = select.poll()
        poller.register(child, select.POLLIN)
        assert not poller.poll(0)
        child.signal(signal.SIGKILL)
        assert poller.poll(20_000)
        assert child.wait(after(20)) == Exit(signal=9)


def test_existence_is_told_of_others_processes_too() -> None:
    assert process.exists(1)
    assert process.exists(os.getpid())
    assert not process.exists(0)
    assert not process.exists(-1)
    assert not process.exists(2**40)


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_a_name_with_parentheses_does_not_confuse_the_start_time() -> None:
    code = "import ctypes, sys\nctypes.CDLL(None).prctl(15, b') R 1 2 (')\nprint('named', flush=True); input()"
    with python(code) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "named\n"
        assert process.command_name(child.pid) == ") R 1 2 ("
        before = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19]
        assert process.start_time(child.pid) == int(before)
        finish_text(child)
    assert process.start_time(child.pid) == 0
    assert process.command_name(child.pid) == ""


# --- peers ----------------------------------------------------------------------------------------------------


def test_a_peer_is_known_by_its_credentials_and_as_a_process(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        child = python("import socket, sys\ns = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); input()", path)
        with child, listener.accept()[0] as sock:
            found = process.peer(sock)
            assert (found.uid, found.gid) == (os.getuid(), os.getgid())
            assert found.pid in (child.pid, -1)
            assert str(found) in (f"pid {child.pid}, uid {found.uid}", f"uid {found.uid}")
            stranger = process.peer_process(sock)
            if sys.platform == "linux":
                assert stranger is not None
                with stranger:
                    assert stranger.pid == child.pid
                    assert stranger.alive()
                    finish_text(child)
                    assert not stranger.alive()
            else:
                finish_text(child)


def test_a_peer_that_has_ended_is_no_error(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        code = "import socket, sys\ns = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
        finish(python(code, path))
        with listener.accept()[0] as sock:
            ended = process.peer_process(sock)
            if ended is not None:
                with ended:
                    assert not ended.alive()


def test_a_socket_without_a_peer_has_no_peers_process() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert process.peer_process(sock) is None


# --- finding the program --------------------------------------------------------------------------------------


def program(path: Path, mode: int = 0o755) -> Path:
    path.write_text("#!/bin/sh\nexit 3\n", encoding="ascii")
    path.chmod(mode)
    return path


def test_the_childs_path_is_searched_from_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "tool")
    assert process.find_program("tool", {"PATH": "/nowhere:bin"}, str(tmp_path)) == "bin/tool"
    assert process.find_program("bin/tool", {}, str(tmp_path)) == "bin/tool"
    with spawn(["tool"], env={"PATH": "/nowhere:bin"}, cwd=str(tmp_path)) as child:
        assert child.wait(after(20)) == Exit(status=3)


def test_what_is_not_executable_is_passed_over_for_what_is(tmp_path: Path) -> None:
    for directory, mode in (("one", 0o644), ("two", 0o755)):
        (tmp_path / directory).mkdir()
        program(tmp_path / directory / "tool", mode)
    environ = {"PATH": f"{tmp_path}/one:{tmp_path}/two"}
    assert process.find_program("tool", environ) == f"{tmp_path}/two/tool"


@pytest.mark.parametrize(("name", "number", "message"), [
    ("nowhere-to-be-found", errno.ENOENT, "not found in PATH="),
    ("./nowhere", errno.ENOENT, "no such file in /"),
    ("", errno.ENOENT, "not found"),
    ("./flat", errno.EACCES, "flat is not an executable file"),
    ("flat", errno.EACCES, "flat is not an executable file"),
    ("./folder", errno.EACCES, "folder is not an executable file"),
])  # fmt: skip
def test_what_cant_be_executed_says_why(name: str, number: int, message: str, tmp_path: Path) -> None:
    program(tmp_path / "flat", 0o644)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemCallError, match=message) as caught:
        spawn([name], env={"PATH": "."}, cwd=str(tmp_path))
    assert caught.value.errno == number
    assert caught.value.call == "execve"


def test_links_are_looked_up_again_each_time(tmp_path: Path) -> None:
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "run").write_text(f"#!/bin/sh\nexit {release}\n", encoding="ascii")
        (tmp_path / release / "run").chmod(0o755)
    for release in ("1", "2"):
        (tmp_path / "next").symlink_to(release)
        (tmp_path / "next").rename(tmp_path / "current")
        with spawn([f"{tmp_path}/current/run"]) as child:
            assert child.wait(after(20)) == Exit(status=int(release))


# --- starting it ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_the_child_has_exactly_the_descriptors_of_the_table() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.set_inheritable(True)  # and yet not inherited: it is not in the table
        assert report(fds={3: right.fileno(), 7: right.fileno()})["fds"] == [1, 2, 3, 7]


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_descriptors_can_change_places() -> None:
    pipes = [os.pipe() for _ in range(4)]
    try:
        ends = [writing for _, writing in pipes]
        numbers = sorted(ends)
        code = "import os, sys\nfor fd in map(int, sys.argv[1:]): os.write(fd, b'%d' % fd)\nprint('{}')"
        report(code, *map(str, numbers), fds=dict(zip(numbers, reversed(numbers), strict=True)))
        for reading, writing in pipes:
            os.close(writing)
            expected = numbers[len(numbers) - 1 - numbers.index(writing)]
            assert os.read(reading, 100) == b"%d" % expected
    finally:
        for reading, writing in pipes:
            os.close(reading)
            try:
                os.close(writing)
            except OSError:
                pass


def test_the_environment_is_all_and_only_what_is_given() -> None:
    env = {"ONE": "1", "SURROGATE": "\udcff", "EMPTY": ""}
    found = report(env=env)["env"]
    assert {name: value for name, value in found.items() if name != "LC_CTYPE"} == env


def test_the_child_is_told_its_own_pid() -> None:
    found = report(env={"LISTEN_PID": "1" * 500, "LISTEN_FDS": "1"})
    assert found["env"]["LISTEN_PID"] == str(found["pid"])
    assert "LISTEN_PID" not in report(env={})["env"]


def test_directory_mask_group_and_session_are_as_asked(tmp_path: Path) -> None:
    found = report(
        cwd=str(tmp_path), blocked_signals=[signal.SIGTERM, signal.SIGHUP, signal.SIGRTMAX], own_group=1,
    )  # fmt: skip
    assert found["cwd"] == str(tmp_path)
    assert found["mask"] == sorted([signal.SIGTERM, signal.SIGHUP, signal.SIGRTMAX])
    assert (found["group"], found["session"]) == (True, False)
    assert report(own_group=2)["session"]
    plain = report()
    assert (plain["mask"], plain["ignored"], plain["group"], plain["session"]) == ([], [], False, False)


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_ignored_signals_are_default_in_the_child() -> None:
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN  # CPython's own
    reading, writing = os.pipe()
    with spawn(["grep", "SigIgn", "/proc/self/status"], fds={1: writing}) as child:
        os.close(writing)
        with open(reading, encoding="ascii") as file:
            assert int(file.read().split()[1], 16) == 0
        assert child.wait(after(20)) == Exit(status=0)


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_the_death_signal_ends_the_child_with_its_parent() -> None:
    code = (
        "import os, signal, sys\n"
        "from {package}.system.process import spawn\n"
        "print(spawn(['sleep', '100'], death_signal=signal.SIGKILL).pid, flush=True); input(); os._exit(0)"
    )
    with python(code) as parent:
        assert parent.stdout is not None
        with Process.from_pid(int(parent.stdout.readline())) as orphan:
            assert orphan.alive()
            finish_text(parent)
            assert orphan.wait(after(20)) is not None


@root
@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_the_child_becomes_whom_it_shall() -> None:
    for groups, wanted in (((65531, 65532), "65534 65533 65533 65531 65532"), ((), "65534 65533 65533")):
        reading, writing = os.pipe()
        ask = ["/bin/sh", "-c", "echo $(id -u) $(id -g) $(id -G)"]
        with spawn(ask, fds={1: writing}, identity=Identity(65534, 65533, groups)) as child:
            os.close(writing)
            with open(reading, encoding="ascii") as file:
                assert file.read().split() == wanted.split()
            assert child.wait(after(20)) == Exit(status=0)


def test_a_missing_directory_is_named() -> None:
    with pytest.raises(SystemCallError, match=r"starting '/bin/true' in '/nowhere': chdir failed") as caught:
        spawn(["/bin/true"], cwd="/nowhere", identity=None if os.geteuid() else Identity(0, 0))
    assert caught.value.errno == errno.ENOENT


def test_a_missing_interpreter_is_told_from_a_missing_program(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n", encoding="ascii")
    script.chmod(0o755)
    with pytest.raises(SystemCallError, match=r"the interpreter that .*script names does not exist") as caught:
        spawn([str(script)])
    assert caught.value.errno == errno.ENOENT


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"\x7fELF nonsense")
    nonsense.chmod(stat.S_IRWXU)
    with pytest.raises(SystemCallError) as caught:
        spawn([str(nonsense)])
    assert caught.value.errno == errno.ENOEXEC


def test_a_descriptor_that_is_closed_is_refused() -> None:
    with pytest.raises(SystemCallError) as caught:
        spawn(["/bin/true"], fds={0: 0, 9: 1_000_000})
    assert caught.value.errno == errno.EBADF


def test_arguments_that_no_program_can_be_given_are_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        spawn(["/bin/true", "a\0b"])
    with pytest.raises(ValueError, match="argv is empty"):
        spawn([])
    with pytest.raises(ValueError, match="numbered from 0"):
        spawn(["/bin/true"], fds={-1: 0})


def test_a_hundred_children_leave_nothing() -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(100):
        with spawn(["/bin/true"]) as child:
            assert child.wait(after(20)) == Exit(status=0)
    assert len(os.listdir("/dev/fd")) == before


def test_a_signal_storm_from_exec_on_does_not_kill_who_blocks_it() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, lambda *_: None)\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])\n"
        "os.write(1, b'handled'); os.read(0, 1); os._exit(5)"
    )
    reading, writing = os.pipe()
    told, tell = os.pipe()
    argv = [sys.executable, "-I", "-S", "-c", code]
    with spawn(argv, fds={0: told, 1: writing, 2: 2}, blocked_signals=[signal.SIGHUP]) as child:
        os.close(writing)
        os.close(told)
        while not select.select([reading], [], [], 0)[0]:
            assert child.signal(signal.SIGHUP)
        assert os.read(reading, 100) == b"handled"
        os.close(tell)
        assert child.wait(after(20)) == Exit(status=5)
    os.close(reading)


@pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no such thing")
def test_a_group_has_its_living_members_until_they_end() -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); input(); p.kill(); p.wait()"
    with python(code, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert sorted(group_members(leader.pid)) == sorted([leader.pid, child])
        leader.communicate("\n")
    assert group_members(leader.pid) == []
