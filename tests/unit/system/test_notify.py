from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdhandoff.deadline import after
from fdhandoff.errors import DeadlineExceeded, EnvironmentInvalid, SystemCallError, Unsupported
from fdhandoff.system import native
from fdhandoff.system.fds import is_open
from fdhandoff.system.notify import Notifier, NotifyListener, NotifyMessage

from . import finish, python

if TYPE_CHECKING:
    from collections.abc import Iterator

linux = pytest.mark.skipif(sys.platform != "linux", reason="this kernel has no abstract names")


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifyListener]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("this kernel has no abstract names")
    with NotifyListener(tmp_path / "notify" if request.param == "path" else None) as found:
        yield found


def heard(listener: NotifyListener) -> list[dict[str, str]]:
    return [message.fields for message in listener.receive()]


def readable(listener: NotifyListener) -> None:
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    assert poller.poll(10_000)


# --- the sending end ------------------------------------------------------------------------------------------


def test_each_method_says_its_line(listener: NotifyListener) -> None:
    notifier = Notifier(listener.address)
    assert notifier
    notifier.ready()
    notifier.ready("serving")
    notifier.status("two\nlines")
    notifier.stopping()
    notifier.watchdog()
    notifier.extend_timeout(1.5)
    notifier.main_pid(7)
    notifier.main_pid(7, ready=True, status="new")
    notifier.fdstore_remove("web")
    assert heard(listener) == [
        {"READY": "1"},
        {"READY": "1", "STATUS": "serving"},
        {"STATUS": "two lines"},
        {"STOPPING": "1"},
        {"WATCHDOG": "1"},
        {"EXTEND_TIMEOUT_USEC": "1500000"},
        {"MAINPID": "7"},
        {"MAINPID": "7", "READY": "1", "STATUS": "new"},
        {"FDSTOREREMOVE": "1", "FDNAME": "web"},
    ]


def test_reloading_carries_the_moment_of_the_monotonic_clock(listener: NotifyListener) -> None:
    before = time.monotonic_ns() // 1000
    Notifier(listener.address).reloading("again")
    (found,) = heard(listener)
    assert before <= int(found.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert found == {"RELOADING": "1", "STATUS": "again"}


@pytest.mark.skipif("pidfd_id" not in native.features(), reason="this kernel has no numbers for pidfds")
def test_the_main_pid_has_the_number_that_cant_be_reused(listener: NotifyListener) -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        Notifier(listener.address).main_pid(os.getpid(), pidfd)
        assert heard(listener) == [{"MAINPID": str(os.getpid()), "MAINPIDFDID": str(os.fstat(pidfd).st_ino)}]
    finally:
        os.close(pidfd)


def test_without_an_address_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    assert not notifier
    notifier.ready()
    notifier.main_pid(1, 0)
    notifier.barrier(after(0))
    notifier.fdstore("x", [0])
    assert notifier.watchdog_interval is None


def test_the_environment_is_read_once(listener: NotifyListener) -> None:
    environ = {
        "NOTIFY_SOCKET": listener.address,
        "WATCHDOG_USEC": "2500000",
        "WATCHDOG_PID": str(os.getpid()),
        "A": "b",
    }
    kept = Notifier.from_environment(environ, unset=False)
    assert len(environ) == 4
    found = Notifier.from_environment(environ)
    assert environ == {"A": "b"}
    assert (found.address, found.watchdog_interval) == (kept.address, 2.5)
    found.ready()
    assert heard(listener) == [{"READY": "1"}]


def test_another_processs_watchdog_is_not_ours() -> None:
    environ = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert Notifier.from_environment(environ).watchdog_interval is None
    assert Notifier.from_environment({"WATCHDOG_USEC": "1000000"}).watchdog_interval == 1.0
    for nonsense in ("x", "0", "-1"):
        with pytest.raises(EnvironmentInvalid, match=f"WATCHDOG_USEC='{nonsense}'"):
            Notifier.from_environment({"WATCHDOG_USEC": nonsense})


@pytest.mark.parametrize("address", ["relative", "@", "/", "unix:/x", "/" + "x" * 107])
def test_a_nonsensical_address_is_quoted(address: str) -> None:
    with pytest.raises(EnvironmentInvalid, match="NOTIFY_SOCKET="):
        Notifier.from_environment({"NOTIFY_SOCKET": address})


@pytest.mark.parametrize("address", ["vsock:2:1234", "vsock-stream:2:1234", "vsock-dgram::1"])
def test_vsock_is_refused_in_words(address: str) -> None:
    with pytest.raises(Unsupported, match="vsock"):
        Notifier(address)


@pytest.mark.parametrize("line", ["no equals sign", "A=1\nB=2"])
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        Notifier("/nowhere").send(line)
    with pytest.raises(ValueError):
        Notifier("/nowhere").send()


def test_a_manager_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemCallError, match=f"{tmp_path}/none: connect failed: No such file"):
        Notifier(f"{tmp_path}/none").ready()
    with NotifyListener(tmp_path / "gone") as listener:
        address = listener.address
    assert not os.path.exists(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(address)
    with pytest.raises(SystemCallError, match="Connection refused"):
        Notifier(address).ready()


@linux
def test_a_full_queue_is_waited_for_until_the_deadline(listener: NotifyListener) -> None:
    notifier = Notifier(listener.address)
    sent = 0
    with pytest.raises(DeadlineExceeded, match="its queue is full"):  # noqa: PT012 - how many fit is the kernel's
        while sent < 10_000:
            notifier.send("N=1", deadline=after(0.01))
            sent += 1
    waiting = threading.Thread(target=notifier.send, args=("LAST=1",))
    waiting.start()
    found: list[dict[str, str]] = []
    while len(found) < sent + 1:
        readable(listener)
        found += heard(listener)
    waiting.join()
    assert found[-1] == {"LAST": "1"}
    assert len(found) == sent + 1


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root")
def test_one_may_speak_for_another_process(listener: NotifyListener) -> None:
    Notifier(listener.address).send("READY=1", pid=os.getppid())
    assert [message.pid for message in listener.receive()] == [os.getppid()]


# --- both -----------------------------------------------------------------------------------------------------


def test_a_child_is_heard_with_its_credentials(listener: NotifyListener) -> None:
    code = (
        "import os\nfrom {package}.system.notify import Notifier\n"
        "Notifier.from_environment(os.environ).ready('née'); print(os.getpid(), 'NOTIFY_SOCKET' in os.environ)"
    )
    environ = {**os.environ, "NOTIFY_SOCKET": listener.address}
    environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    pid, left = finish(python(code, env=environ)).split()
    (message,) = list(listener.receive())
    assert left == "False"
    assert message.fields == {"READY": "1", "STATUS": "née"}
    if sys.platform == "linux":
        assert (message.pid, message.uid, message.gid) == (int(pid), os.getuid(), os.getgid())


def test_a_real_sender_that_we_did_not_write_is_understood(listener: NotifyListener) -> None:
    """``systemd-notify`` where it is: it waits for its barrier before it ends."""
    program = shutil.which("systemd-notify")
    if program is None:
        pytest.skip("this system has no systemd-notify")
    environ = {**os.environ, "NOTIFY_SOCKET": listener.address}
    seen: dict[str, str] = {}
    with subprocess.Popen([program, "--ready", "--status=up"], env=environ) as sender:
        while "BARRIER" not in seen:
            readable(listener)
            for message in listener.receive():
                seen |= message.fields
        assert sender.wait(20) == 0
    assert (seen["READY"], seen["STATUS"]) == ("1", "up")


def test_a_barrier_is_acknowledged_after_what_came_before(listener: NotifyListener) -> None:
    notifier = Notifier(listener.address)
    done = threading.Event()

    def speak() -> None:
        notifier.ready()
        notifier.barrier(after(20))
        done.set()

    speaker = threading.Thread(target=speak)
    speaker.start()
    seen: list[dict[str, str]] = []
    while len(seen) < 2:
        readable(listener)
        for message in listener.receive():
            assert not done.is_set()
            seen.append(message.fields)
    speaker.join()
    assert seen == [{"READY": "1"}, {"BARRIER": "1"}]
    assert done.is_set()


def test_a_barrier_has_a_deadline(listener: NotifyListener) -> None:
    with pytest.raises(DeadlineExceeded, match="BARRIER=1"):
        Notifier(listener.address).barrier(after(0.02))
    assert heard(listener) == [{"BARRIER": "1"}]


def test_stored_descriptors_travel_and_can_be_claimed(listener: NotifyListener) -> None:
    reading, writing = os.pipe()
    try:
        Notifier(listener.address).fdstore("pipe", [reading, writing], poll=False)
        messages = list_with_claims(listener)
    finally:
        os.close(reading)
    (fields, claimed), = messages  # fmt: skip
    assert fields == {"FDSTORE": "1", "FDNAME": "pipe", "FDPOLL": "0"}
    assert [os.get_inheritable(fd) for fd in claimed] == [False, False]
    os.write(writing, b"x")
    assert os.read(claimed[0], 1) == b"x"
    for fd in (writing, *claimed):
        os.close(fd)


def list_with_claims(listener: NotifyListener) -> list[tuple[dict[str, str], list[int]]]:
    return [(message.fields, message.claim()) for message in listener.receive()]


def test_many_descriptors_take_several_messages(listener: NotifyListener) -> None:
    fds = [os.dup(1) for _ in range(300)]
    try:
        Notifier(listener.address).fdstore("many", fds)
        assert [len(message.fds) for message in listener.receive()] == [252, 48]
    finally:
        for fd in fds:
            os.close(fd)


def test_unclaimed_descriptors_are_closed(listener: NotifyListener) -> None:
    Notifier(listener.address).send("A=1", fds=[0, 1])
    Notifier(listener.address).send("B=1", fds=[0])
    came = [list(message.fds) for message in listener.receive()]
    assert [len(fds) for fds in came] == [2, 1]
    assert came[0][0] == came[1][0]  # the number was free again
    assert not any(is_open(fd) for fd in came[0])


def test_leaving_the_loop_early_closes_too(listener: NotifyListener) -> None:
    Notifier(listener.address).send("A=1", fds=[0])
    fds: list[int] = []
    for message in listener.receive():
        fds = list(message.fds)
        break
    assert fds
    assert not any(is_open(fd) for fd in fds)


def test_nothing_there_is_nothing(listener: NotifyListener) -> None:
    assert heard(listener) == []


def test_odd_content_is_read_as_far_as_it_makes_sense(listener: NotifyListener) -> None:
    address = listener.address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        for payload in (b"", b"\n\nA=1\n", b"nothing", b"A=1\nA=2", b"=x", b"A=\xff=\x00"):
            sock.send(payload)
    assert heard(listener) == [{}, {"A": "1"}, {}, {"A": "2"}, {"": "x"}, {"A": "\udcff=\0"}]


def test_a_message_that_is_too_long_says_so(listener: NotifyListener) -> None:
    if sys.platform != "linux":
        pytest.skip("this kernel has no datagrams of that size")
    Notifier(listener.address).send("A=" + "x" * 70_000, fds=[0])
    (message,) = list(listener.receive())
    assert message.truncated
    assert message.fds == []


def test_the_path_is_private_and_gone_after_close(tmp_path: Path) -> None:
    with NotifyListener(tmp_path / "n") as listener:
        if sys.platform == "linux":
            assert os.stat(listener.address).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(listener.fileno())
        with pytest.raises(SystemCallError, match="Address already in use"):
            NotifyListener(tmp_path / "n")
    listener.close()
    assert os.listdir(tmp_path) == []


def test_a_message_closes_once() -> None:
    fd = os.dup(1)
    message = NotifyMessage({}, [fd], pid=1, uid=0, gid=0)
    message.close()
    message.close()
    assert not is_open(fd)
