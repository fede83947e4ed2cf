from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest

from fdhandoff.errors import EnvironmentInvalid
from fdhandoff.system import environment, native

from . import finish, python

ME = os.getpid()

TAKE = """
import json, os, sys
from {package}.errors import EnvironmentInvalid
from {package}.system import environment
for name, value in json.loads(sys.argv[1]).items():
    os.environ[name] = value.replace("ME", str(os.getpid()))
found = []
try:
    found = environment.take(os.environ, os.getpid())
    error = ""
except EnvironmentInvalid as caught:
    error = str(caught)
again = environment.take(os.environ, os.getpid())
print(json.dumps({
    "found": found, "again": again, "error": error, "left": [name for name in os.environ if name.startswith("LISTEN_")],
    "inheritable": [fd for fd in map(int, os.listdir("/dev/fd")) if 2 < fd < 3 + PASSED and os.get_inheritable(fd)],
}))
"""


def take_in_a_child(variables: dict[str, str], passed: int) -> dict[str, Any]:
    """A child with ``passed`` sockets from descriptor 3 on and nothing else above; ``ME`` stands for its own pid."""
    sockets = [socket.socket() for _ in range(passed)]
    try:
        for sock in sockets:
            sock.set_inheritable(True)
        moves = "".join(f"import os; os.dup2({sock.fileno()}, {200 + i});" for i, sock in enumerate(sockets))
        moves += "import os; os.closerange(3, 200);" + "".join(
            f"os.dup2({200 + i}, {3 + i}); os.set_inheritable({3 + i}, True);" for i in range(passed)
        ) + "os.closerange(200, 300)\n"  # fmt: skip
        code = moves + TAKE.replace("PASSED", str(passed))
        return json.loads(finish(python(code, json.dumps(variables), close_fds=False)))  # type: ignore[no-any-return]
    finally:
        for sock in sockets:
            sock.close()


def test_named_descriptors_come_in_order_and_are_close_on_exec() -> None:
    found = take_in_a_child({"LISTEN_FDS": "2", "LISTEN_PID": "ME", "LISTEN_FDNAMES": "http:admin"}, 2)
    assert found == {"found": [["http", 3], ["admin", 4]], "again": [], "error": "", "left": [], "inheritable": []}


def test_the_unnamed_are_named_by_position() -> None:
    assert take_in_a_child({"LISTEN_FDS": "2", "LISTEN_PID": "ME"}, 2)["found"] == [["listener0", 3], ["listener1", 4]]
    found = take_in_a_child({"LISTEN_FDS": "2", "LISTEN_PID": "ME", "LISTEN_FDNAMES": "http:"}, 2)
    assert found["found"] == [["http", 3], ["listener1", 4]]


def test_several_may_bear_one_name() -> None:
    found = take_in_a_child({"LISTEN_FDS": "2", "LISTEN_PID": "ME", "LISTEN_FDNAMES": "web:web"}, 2)
    assert found["found"] == [["web", 3], ["web", 4]]


@pytest.mark.parametrize(("count", "message"), [
    ("", "LISTEN_FDS='' is not a number from 1 on"),
    ("0", "LISTEN_FDS='0' is not a number from 1 on"),
    ("a", "LISTEN_FDS='a' is not a number from 1 on"),
    ("-1", "LISTEN_FDS='-1' is not a number from 1 on"),
    ("+1", "LISTEN_FDS='+1' is not a number from 1 on"),
    ("1.0", "LISTEN_FDS='1.0' is not a number from 1 on"),
    ("٣", "LISTEN_FDS='٣' is not a number from 1 on"),
    ("3", "LISTEN_FDS='3' promises descriptors 3 to 5, but 5 is not open"),
    ("999999999999", "LISTEN_FDS='999999999999' promises descriptors 3 to 1000000000001, but 5 is not open"),
    ("9" * 40, f"LISTEN_FDS='{'9' * 40}' is not a number from 1 on"),
])  # fmt: skip
def test_a_nonsensical_count_is_quoted_and_nothing_is_touched(count: str, message: str) -> None:
    found = take_in_a_child({"LISTEN_FDS": count, "LISTEN_PID": "ME", "LISTEN_FDNAMES": "x"}, 2)
    assert found["error"].startswith(message)
    assert (found["found"], found["left"], found["inheritable"]) == ([], [], [3, 4])


@pytest.mark.parametrize(("names", "message"), [
    ("http", "LISTEN_FDNAMES='http' has 1 names, but LISTEN_FDS is 2: give one name for each descriptor"),
    ("a:b:c", "LISTEN_FDNAMES='a:b:c' has 3 names, but LISTEN_FDS is 2: give one name for each descriptor"),
    ("", "LISTEN_FDNAMES='' has 1 names, but LISTEN_FDS is 2: give one name for each descriptor"),
    ("ok:né", "LISTEN_FDNAMES='ok:né': "),
    (f"ok:{'x' * 256}", f"LISTEN_FDNAMES='ok:{'x' * 256}': "),
])  # fmt: skip
def test_nonsensical_names_are_quoted_and_nothing_is_touched(names: str, message: str) -> None:
    found = take_in_a_child({"LISTEN_FDS": "2", "LISTEN_PID": "ME", "LISTEN_FDNAMES": names}, 2)
    assert found["error"].startswith(message)
    assert (found["found"], found["left"], found["inheritable"]) == ([], [], [3, 4])


@pytest.mark.parametrize("pid", ["", "0", "x", "-5"])
def test_a_nonsensical_pid_is_quoted(pid: str) -> None:
    variables = {"LISTEN_FDS": "1", "LISTEN_PID": pid}
    with pytest.raises(EnvironmentInvalid, match=f"LISTEN_PID='{pid}' is not a process id"):
        environment.take(variables, ME)
    assert variables == {}


@pytest.mark.parametrize("variables", [
    {},
    {"LISTEN_PID": str(ME)},
    {"LISTEN_FDS": "1"},
    {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getppid())},
    {"LISTEN_FDS": "nonsense", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x"},
])  # fmt: skip
def test_what_is_for_nobody_or_another_process_is_ignored_and_removed(variables: dict[str, str]) -> None:
    variables["OTHER"] = "stays"
    assert environment.take(variables, ME) == []
    assert variables == {"OTHER": "stays"}


@pytest.mark.skipif("pidfd_id" not in native.features(), reason="this kernel has no numbers for pidfds")
def test_the_pidfds_own_number_decides_when_it_is_there() -> None:
    own = environment.own_pidfd_id()
    assert own > 0
    variables = {"LISTEN_FDS": "1", "LISTEN_PID": str(ME), "LISTEN_PIDFDID": str(own + 1)}
    assert environment.take(variables, ME) == []
    assert variables == {}
    with pytest.raises(EnvironmentInvalid, match="LISTEN_PIDFDID='x' is not a number"):
        environment.take({"LISTEN_FDS": "1", "LISTEN_PID": str(ME), "LISTEN_PIDFDID": "x"}, ME)
    with pytest.raises(EnvironmentInvalid, match="LISTEN_FDS='x'"):  # so it was taken for ours
        environment.take({"LISTEN_FDS": "x", "LISTEN_PID": str(ME), "LISTEN_PIDFDID": str(own)}, ME)


def test_the_addressee_is_read_and_left() -> None:
    variables = {"LISTEN_FDS": "1", "LISTEN_PID": "7"}
    assert environment.addressee(variables) == 7
    assert len(variables) == 2
    assert environment.addressee({"LISTEN_PID": "7"}) is None
    assert environment.addressee({"LISTEN_FDS": "1", "LISTEN_PID": "x"}) is None


def test_compose_makes_what_take_reads() -> None:
    assert environment.compose(["http", "admin"]) == {
        "LISTEN_FDS": "2", "LISTEN_PID": "0", "LISTEN_FDNAMES": "http:admin",
    }  # fmt: skip
    assert environment.compose([]) == {}
    assert environment.default_name(4) == "listener4"


@pytest.mark.parametrize("name", ["", "a:b", "é", "a\nb", "x" * 256])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        environment.compose([name])


def test_strip_removes_what_is_meant_for_one_process() -> None:
    variables = {name: "1" for name in environment.FOR_ONE_PROCESS}
    variables |= {"PATH": "/bin", environment.RUNTIME_DIR: "/run/x"}
    environment.strip(variables)
    assert variables == {"PATH": "/bin", "FDHANDOFF_RUNTIME_DIR": "/run/x"}


def test_a_real_parent_of_the_convention_is_understood() -> None:
    """``systemd-socket-activate`` where it is, as a parent that we did not write."""
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("this system has no systemd-socket-activate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = (
        "import os, socket\n"
        f"from {environment.__name__} import take\n"
        "found = take(os.environ, os.getpid())\n"
        "with socket.socket(fileno=found[0][1]) as s:\n"
        "    c = s.accept()[0]; c.sendall(repr(found).encode()); c.close()\n"
    )
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [program, "-l", address, "--fdname", "web", "-E", f"PYTHONPATH={paths}", sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "Listening on" not in process.stderr.readline():
            assert process.poll() is None
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            assert client.recv(100) == b"[('web', 3)]"
        process.stderr.read()
    assert process.returncode == 0
