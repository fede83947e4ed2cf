from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.deadline import FOREVER, after
from fdhandoff.errors import DeadlineExceeded, PathError, PathInUse
from fdhandoff.system import paths
from fdhandoff.system.paths import ABSENT, STALE, bind_control, bind_path, connect_control, unlink_control

from . import as_nobody, linux, python, root

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name that others can enter."""
    with tempfile.TemporaryDirectory(prefix="fdh", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def stale(path: Path, kind: int = socket.SOCK_STREAM) -> Path:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
    return path


# --- where ours lives -----------------------------------------------------------------------------------------


def test_the_runtime_directory_of_our_own_comes_first(place: Path) -> None:
    environ = {"FDHANDOFF_RUNTIME_DIR": f"{place}/ours", "RUNTIME_DIRECTORY": f"{place}/theirs"}
    path = paths.default_path("web", environ)
    assert path == f"{place}/ours/web/handoff.sock"
    for directory in (place / "ours", place / "ours" / "web"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert paths.default_path("web", environ) == path
    bind_control(path).close()


def test_the_first_of_systemds_directories_is_next(place: Path) -> None:
    (place / "a").mkdir()
    assert paths.default_path("web", {"RUNTIME_DIRECTORY": f"{place}/a:{place}/b"}) == f"{place}/a/web/handoff.sock"
    with pytest.raises(PathError, match=f"there is no directory {place}/b, create it"):
        paths.default_path("web", {"RUNTIME_DIRECTORY": f"{place}/b"})


def test_a_runtime_directory_that_everybody_can_change_is_refused(place: Path) -> None:
    place.chmod(0o777)
    for variable in ("FDHANDOFF_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        with pytest.raises(PathError, match="writable by everybody"):
            paths.default_path("web", {variable: str(place)})
    place.chmod(0o770)
    paths.default_path("web", {"RUNTIME_DIRECTORY": str(place)})


@root
def test_root_has_a_place_of_its_own() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/0"}
    assert paths.default_path("web", environ, create=False) == "/run/fdhandoff/web/handoff.sock"


@root
def test_a_user_has_the_session_directory_or_nothing(place: Path) -> None:
    place.chmod(0o777)
    environ = {"XDG_RUNTIME_DIR": str(place)}
    assert as_nobody(lambda: paths.default_path("web", environ)) == f"{place}/fdhandoff/web/handoff.sock"
    assert (place / "fdhandoff" / "web").stat().st_uid == 65534
    assert as_nobody(lambda: paths.default_path("web", {})) == (
        "PathError: there is no runtime directory for 'web': set FDHANDOFF_RUNTIME_DIR, or name the path explicitly"
    )


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_name_that_is_no_directory_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can't name a service"):
        paths.default_path(name, {})


def test_a_relative_runtime_directory_is_quoted() -> None:
    with pytest.raises(PathError, match="FDHANDOFF_RUNTIME_DIR='run' is not an absolute path"):
        paths.default_path("web", {"FDHANDOFF_RUNTIME_DIR": "run"})


def test_looking_makes_nothing(place: Path) -> None:
    paths.default_path("web", {"FDHANDOFF_RUNTIME_DIR": f"{place}/ours"}, create=False)
    assert os.listdir(place) == []


@pytest.mark.parametrize(("mode", "explicit", "refused"), [
    (0o700, False, ""), (0o755, False, ""), (0o1777, False, ""), (0o1777, True, ""),
    (0o777, False, "writable by everybody"), (0o777, True, "writable by everybody"),
    (0o770, False, "writable by its group"), (0o770, True, ""), (0o1770, False, ""),
])  # fmt: skip
def test_a_directory_is_judged_by_who_can_write_in_it(mode: int, explicit: bool, refused: str, place: Path) -> None:
    place.chmod(mode)
    if refused:
        with pytest.raises(PathError, match=refused) as caught:
            paths.check_directory(place, explicit=explicit)
        assert caught.value.path == str(place)
    else:
        paths.check_directory(place, explicit=explicit)


@root
def test_a_strangers_directory_is_refused_unless_named(place: Path) -> None:
    os.chown(place, 12345, -1)
    with pytest.raises(PathError, match="belongs to uid 12345"):
        paths.check_directory(place)
    paths.check_directory(place, explicit=True)


def test_what_is_no_directory_is_refused(place: Path) -> None:
    with pytest.raises(PathError, match=f"{place}/none can't be used: there is no directory {place}/none"):
        paths.check_directory(place / "none")
    (place / "file").touch()
    with pytest.raises(PathError, match="is a regular file, not a directory"):
        paths.check_directory(place / "file")


# --- binding --------------------------------------------------------------------------------------------------


def test_a_fresh_path_is_bound_private_and_listening(place: Path) -> None:
    with bind_control(place / "s") as sock:
        assert stat.S_IMODE((place / "s").stat().st_mode) == 0o600
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert os.listdir(place) == ["s"]
        connection = connect_control(place / "s", after(5))
        assert connection.sock is not None
        connection.sock.close()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_mode_is_the_one_asked_for_under_any_umask(mode: int, umask: int, place: Path) -> None:
    before = os.umask(umask)
    try:
        bind_control(place / "s", mode).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "s").stat().st_mode) == mode


@root
def test_the_group_is_the_one_asked_for(place: Path) -> None:
    bind_control(place / "a", 0o660, 12345).close()
    assert (place / "a").stat().st_gid == 12345
    bind_control(place / "b", 0o660, "root").close()
    assert (place / "b").stat().st_gid == 0
    with pytest.raises(PathError, match="no group 'nobody-has-this'"):
        bind_control(place / "c", 0o660, "nobody-has-this")
    with pytest.raises(PathError, match="4294967295 is no group's number"):
        bind_control(place / "c", 0o660, 2**32 - 1)
    assert sorted(os.listdir(place)) == ["a", "b"]


@root
def test_the_owner_is_the_one_asked_for(place: Path) -> None:
    for owner in ("nobody", 65534, "65534"):
        paths.bind_path(place / "a", owner=owner, group=12345, mode=0o640).close()
        found = (place / "a").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 12345, 0o640)
        # The one of before is dead, and belongs to him to whom we gave it.
    with pytest.raises(PathError, match="is a dead socket of uid 65534"):
        paths.bind_path(place / "a")
    with pytest.raises(PathError, match="there is no user 'nobody-has-this'"):
        paths.bind_path(place / "b", owner="nobody-has-this")
    assert os.listdir(place) == ["a"]


@root
def test_who_may_not_give_a_path_away_is_told_so(place: Path) -> None:
    place.chmod(0o777)
    path = str(place / "s")
    assert as_nobody(lambda: paths.bind_path(path, owner="root")) == (
        f"PathError: {path} can't be given to uid 0: that takes root, or CAP_CHOWN; do without, or run as such"
    )
    assert "or membership in it" in as_nobody(lambda: paths.bind_path(path, group=0))
    assert os.listdir(place) == []


def test_a_dead_owners_socket_is_replaced(place: Path) -> None:
    stale(place / "s")
    with bind_control(place / "s") as sock:
        assert paths.is_bound_at(place / "s", sock, paths.identity(place / "s"))
        assert os.listdir(place) == ["s"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_every_type_of_socket_is_replaced_when_dead_and_refused_when_alive(kind: int, place: Path) -> None:
    stale(place / "s", kind)
    with bind_path(place / "s", kind) as first:
        for other in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            with pytest.raises(PathInUse, match="in use by"):
                bind_path(place / "s", other)
        assert paths.is_bound_at(place / "s", first, paths.identity(place / "s"))


def test_a_live_owner_is_named(place: Path) -> None:
    code = (
        "import sys\nfrom {package}.system.paths import bind_control\n"
        "s = bind_control(sys.argv[1]); print(1, flush=True); input()"
    )
    with python(code, f"{place}/s") as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(PathInUse) as caught:
            bind_control(place / "s")
        if sys.platform == "linux":
            assert f"{place}/s is in use by pid {owner.pid} (python" in str(caught.value)
        owner.kill()
    bind_control(place / "s").close()


def test_an_owner_with_a_full_queue_is_alive(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(f"{place}/s")
        owner.listen(0)
        waiting = fill(place / "s")
        with pytest.raises(PathInUse):
            bind_control(place / "s")
        for sock in waiting:
            sock.close()


def fill(path: Path) -> list[socket.socket]:
    waiting: list[socket.socket] = []
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            return waiting
        waiting.append(sock)


def test_other_things_are_named_and_left_alone(place: Path) -> None:
    (place / "file").write_text("precious", encoding="ascii")
    (place / "folder").mkdir()
    stale(place / "target")
    (place / "link").symlink_to(place / "target")
    (place / "dangling").symlink_to(place / "nothing")
    os.mkfifo(place / "fifo")
    before = {name: paths.identity(place / name) for name in os.listdir(place)}
    for name, kind in (("file", "a regular file"), ("folder", "a directory"), ("link", "a symbolic link"),
                       ("dangling", "a symbolic link"), ("fifo", "a FIFO")):  # fmt: skip
        with pytest.raises(PathError, match=f"{name} is {kind}, not a socket, and was not touched") as caught:
            bind_control(place / name)
        assert caught.value.path == f"{place}/{name}"
        if name not in ("link", "dangling"):
            with pytest.raises(PathError, match=f"{name} is {kind}, not a socket"):
                connect_control(place / name, after(0))
    assert before == {name: paths.identity(place / name) for name in os.listdir(place)}
    assert (place / "file").read_text(encoding="ascii") == "precious"


@root
def test_another_users_dead_socket_is_left_alone(place: Path) -> None:
    os.chown(stale(place / "s"), 12345, -1)
    before = paths.identity(place / "s")
    with pytest.raises(PathError, match="dead socket of uid 12345, not ours"):
        bind_control(place / "s")
    assert paths.identity(place / "s") == before


@root
def test_what_permissions_forbid_is_said(place: Path) -> None:
    assert "PathError" in as_nobody(lambda: bind_control(place / "s"))
    assert "uid 65534 has no permission there" in as_nobody(lambda: bind_control(place / "s"))
    place.chmod(0o1777)
    with bind_control(place / "s"):
        said = as_nobody(lambda: connect_control(place / "s", after(0)))
        assert (
            f"PathError: {place}/s belongs to uid 0 with mode 0600, which does not let us (uid 65534) connect" in said
        )
        assert "who does not let us connect, and was not touched" in as_nobody(lambda: bind_control(place / "s"))
    assert os.listdir(place) == ["s"]


@pytest.mark.parametrize("length", [1, 2])
def test_a_path_that_is_too_long_is_not_cut(length: int, place: Path) -> None:
    path = place / ("x" * (paths.PATH_MAX - len(str(place)) - 1))
    bind_control(path).close()
    assert os.listdir(place) == [path.name]
    longer = f"{path}{'y' * length}"
    for attempt in (lambda: bind_control(longer), lambda: connect_control(longer, after(0))):
        with pytest.raises(PathError, match=f"has {paths.PATH_MAX + length} bytes, but a Unix socket's path holds"):
            attempt()
    assert os.listdir(place) == [path.name]


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(PathError):
        bind_control(path)


def test_a_missing_directory_is_named(place: Path) -> None:
    with pytest.raises(PathError, match=f"there is no directory {place}/none, create it"):
        bind_control(place / "none" / "s")
    (place / "file").touch()
    with pytest.raises(PathError, match=f"{place}/file is not a directory"):
        bind_control(place / "file" / "s")
    assert connect_control(place / "none" / "s", after(0)).why == ABSENT


def test_a_relative_path_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with bind_control("s") as sock:
        assert unlink_control("s", sock)
    assert os.listdir(place) == []


# --- racing ---------------------------------------------------------------------------------------------------

RACE = """
import sys
from {package}.errors import PathInUse
from {package}.system.paths import bind_control
place, rounds = sys.argv[1], int(sys.argv[2])
print("up", flush=True); sys.stdin.readline()
won = {}
for number in range(rounds):
    try:
        won[number] = bind_control(f"{place}/{number}")
    except PathInUse:
        pass
print(*won, flush=True); sys.stdin.readline()
"""


def test_of_many_racing_newcomers_one_becomes_the_owner(place: Path) -> None:
    rounds, newcomers = 40, 8
    for number in range(0, rounds, 2):
        stale(place / str(number))
    racers = [python(RACE, str(place), str(rounds)) for _ in range(newcomers)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "up\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [list(map(int, racer.stdout.readline().split())) for racer in racers if racer.stdout is not None]
    assert sorted(number for numbers in won for number in numbers) == list(range(rounds))
    for number in range(rounds):  # and each winner is the one that answers
        connection = connect_control(place / str(number), after(5))
        assert connection.sock is not None
        connection.sock.close()
    for racer in racers:
        racer.communicate("\n", timeout=20)
        assert racer.returncode == 0
    assert sorted(map(int, os.listdir(place))) == list(range(rounds))


COUNT = """
import os, sys
from {package}.system.paths import Lock
print("up", flush=True); sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with Lock(sys.argv[1]):
        with open(sys.argv[1]) as file:
            number = int(file.read())
        with open(sys.argv[1], "w") as file:
            file.write(str(number + 1))
"""


def test_the_lock_excludes_although_its_file_is_removed(place: Path) -> None:
    (place / "n").write_text("0", encoding="ascii")
    counters = [python(COUNT, f"{place}/n", "50") for _ in range(4)]
    for counter in counters:
        assert counter.stdout is not None
        assert counter.stdout.readline() == "up\n"
    for counter in counters:
        counter.communicate("\n", timeout=30)
        assert counter.returncode == 0
    assert (place / "n").read_text(encoding="ascii") == "200"
    assert os.listdir(place) == ["n"]


def test_a_holders_crash_frees_the_lock(place: Path) -> None:
    code = "import sys\nfrom {package}.system.paths import Lock\nLock(sys.argv[1]).__enter__(); print(1, flush=True); input()"
    with python(code, f"{place}/s") as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    assert os.listdir(place) == ["s.lock"]
    assert stat.S_IMODE((place / "s.lock").stat().st_mode) == 0o600
    bind_control(place / "s").close()
    assert os.listdir(place) == ["s"]


def test_a_lock_that_somebody_sits_on_is_waited_for_and_then_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "LOCK_SECONDS", 0.05)
    with paths.Lock(place / "s"), pytest.raises(DeadlineExceeded, match=f"{place}/s.lock has been locked for 0.05 s"):
        bind_control(place / "s")
    with bind_control(place / "s") as sock, paths.Lock(place / "s"), pytest.raises(DeadlineExceeded):
        unlink_control(place / "s", sock)
    assert os.listdir(place) == ["s"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_a_lock_file_that_is_none_is_refused(make: object, place: Path) -> None:
    make(place / "s.lock")  # type: ignore[operator]
    with pytest.raises(PathError):
        bind_control(place / "s")
    assert os.listdir(place) == ["s.lock"]


# --- connecting -----------------------------------------------------------------------------------------------


def test_absent_stale_and_connected_are_told_apart(place: Path) -> None:
    assert connect_control(place / "s", after(0)).why == ABSENT
    stale(place / "s")
    assert connect_control(place / "s", after(0)).why == STALE
    with bind_control(place / "s"):
        found = connect_control(place / "s", after(0))
        assert found.sock is not None
        assert found.sock.getblocking()
        assert not found.sock.get_inheritable()
        assert found.sock.gettimeout() is None
        found.sock.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(f"{place}/d")
        with pytest.raises(PathError, match="no stream socket"):
            connect_control(place / "d", after(0))


@linux
def test_a_full_queue_is_waited_for(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(f"{place}/s")
        owner.listen(0)
        waiting = fill(place / "s")
        with pytest.raises(DeadlineExceeded, match="its queue is full"):
            connect_control(place / "s", after(0.02))
        accepted = threading.Timer(0.05, lambda: owner.accept()[0].close())
        accepted.start()
        found = connect_control(place / "s", FOREVER)
        accepted.join()
        assert found.sock is not None
        found.sock.close()
        for sock in waiting:
            sock.close()


@linux
def test_signals_while_waiting_make_no_connection(place: Path) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(f"{place}/s")
        owner.listen(0)
        waiting = fill(place / "s")
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            with pytest.raises(DeadlineExceeded):
                connect_control(place / "s", after(0.1))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            for sock in waiting:
                sock.close()


def test_an_owner_that_dies_while_we_wait_is_stale(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(f"{place}/s")
        owner.listen(0)
        waiting = fill(place / "s")
        dying = threading.Timer(0.05, owner.close)
        dying.start()
        assert connect_control(place / "s", after(20)).why == STALE
        dying.join()
        for sock in waiting:
            sock.close()


# --- removing -------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_the_owner_removes_its_own_path(kind: int, place: Path) -> None:
    with bind_path(place / "s", kind) as sock:
        assert unlink_control(place / "s", sock)
        assert not unlink_control(place / "s", sock)
    assert os.listdir(place) == []


@linux
def test_an_inherited_socket_is_known_by_the_kernel_alone(place: Path) -> None:
    with bind_control(place / "s") as sock, sock.dup() as inherited:
        sock.close()
        assert paths.is_bound_at(place / "s", inherited)
        os.rename(place / "s", place / "t")
        assert not paths.is_bound_at(place / "s", inherited)
        assert unlink_control(place / "t", inherited)


@linux
def test_another_owners_path_stays(place: Path) -> None:
    with bind_control(place / "s") as old:
        recorded = paths.identity(place / "s")
        os.unlink(place / "s")
        with bind_control(place / "s"):
            assert not unlink_control(place / "s", old)
            assert not unlink_control(place / "s", old, recorded)
            assert os.listdir(place) == ["s"]
        os.unlink(place / "s")
        (place / "s").touch()
        assert not unlink_control(place / "s", old, recorded)
        assert os.listdir(place) == ["s"]


def test_where_the_kernel_does_not_tell_the_record_decides(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_bound_inode", lambda sock: None)
    with bind_control(place / "s") as sock:
        recorded = paths.identity(place / "s")
        assert recorded is not None
        assert not unlink_control(place / "s", sock)
        assert not unlink_control(place / "s", sock, (recorded[0], recorded[1] + 1))
        assert unlink_control(place / "s", sock, recorded)
    assert os.listdir(place) == []


def test_a_directory_that_is_gone_is_no_error(place: Path) -> None:
    (place / "d").mkdir()
    with bind_control(place / "d" / "s") as sock:
        os.unlink(place / "d" / "s")
        os.rmdir(place / "d")
        assert not unlink_control(place / "d" / "s", sock)


def test_nothing_stays_open_after_any_failure(place: Path) -> None:
    (place / "file").touch()
    before = len(os.listdir("/dev/fd"))
    for path in ("file", "none/s", "x" * 200):
        with pytest.raises(PathError):
            bind_control(place / path)
    with bind_control(place / "s"), pytest.raises(PathInUse):
        bind_control(place / "s")
    assert len(os.listdir("/dev/fd")) == before
