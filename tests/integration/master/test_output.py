"""What generations write: it passes on untouched, whatever becomes of the master and the relay, and a failed upgrade shows the
end of it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError

from ..cli import DEADLINE, Running, environment, verb, wait_for
from . import Service, kill, quick, request, rude
from .test_wear import children

PIECE = 4096  # what one death of a relay can cost

#: A server that does as it is asked: /say/TEXT writes it to both streams, /many/N writes so many numbered lines to standard
#: error, at once; /leave/FILE starts a process that leaves the generation, and writes when FILE is there.
TALKER = r"""
import os, socket, sys, threading, time
if os.environ.get("FAULT"):
    sys.exit(1)
LEAVER = '''
import os, sys, time
with open(sys.argv[1] + ".pid", "w") as file:
    file.write(str(os.getpid()))
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
os.write(2, b"from one that left\\n")
'''
count = 0
def do(word, argument):
    global count
    if word == "say":
        for fd in (1, 2):
            os.write(fd, argument.encode() + b"\n")
    elif word == "many":
        text = "".join(f"line {number:09d}\n" for number in range(count, count + int(argument))).encode()
        count += int(argument)
        while text:
            text = text[os.write(2, text):]
    elif word == "leave":
        if os.fork() == 0:
            os.setsid()
            os.closerange(3, 256)
            os.execv(sys.executable, [sys.executable, "-S", "-c", LEAVER, argument])
def serve(connection):
    with connection:
        asked = connection.recv(4096).split()
        if asked:
            _, word, argument = f"{asked[1].decode()}//".split("/", 2)
            do(word, argument.strip("/"))
            body = f"x {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}".encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
listener = socket.socket(fileno=3)
listener.setblocking(True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def talker() -> list[str]:
    return [sys.executable, "-c", TALKER]


def relays(master: int) -> list[int]:
    """Those that live."""
    found = []
    for child in children(master):
        with contextlib.suppress(OSError):
            name, _, rest = Path(f"/proc/{child}/stat").read_text().partition("(")[2].rpartition(")")
            if name == "fdh-relay" and rest.split()[0] not in "ZX":
                found.append(child)
    return found


def target(pid: int, fd: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/{fd}")


def serving(path: Path) -> bool:
    try:
        return bool(ask(path, "status", timeout=DEADLINE)["state"] == "serving")
    except HandoffError:
        return False


def server_of(service: Service) -> int:
    (one,) = service.generations().values()
    return int(one["pids"][0])


# --- a failed upgrade -----------------------------------------------------------------------------------------


def test_upgrade_shows_why_the_new_release_died(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(rude()[2])
    with Service(tmp_path, *quick(), command=[sys.executable, str(script)]) as service:
        script.write_text(
            "import sys\nprint('\\033[31mcoming up\\033[0m\\a', file=sys.stderr)\nimport no_such_module\n"
        )
        code, out, errors = service.command()
        assert (code, out) == (1, "")
        lines = errors.splitlines()
        assert "\x1b" not in errors
        assert "\x07" not in errors
        sentence = next(place for place, line in enumerate(lines) if line.startswith("fdhandoff-cli: generation 2"))
        assert lines[sentence + 1 : sentence + 3] == [
            "the last lines that generation 2 wrote:",
            "  | coming up\N{REPLACEMENT CHARACTER}",
        ]
        assert lines[-1] == "  | ModuleNotFoundError: No module named 'no_such_module'"
        # It is also where it always was, as it was written.
        assert service.running.says("coming up") == "\x1b[31mcoming up\x1b[0m\x07"
        code, out, errors = service.command("--json")
        answer = json.loads(out)
        assert code == 1
        assert answer["upgrade"]["last_lines"][-1] == "ModuleNotFoundError: No module named 'no_such_module'"
        last = service.status()["last_upgrade"]
        assert last["last_lines"] == answer["upgrade"]["last_lines"]
        assert "| ModuleNotFoundError: No module named" in verb("status", str(service.path)).stdout
        script.write_text(rude()[2])
        assert service.upgrade()["last_lines"] == []


def test_no_more_lines_are_shown_than_were_asked_for(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import os\nif os.environ.get('FAULT'): print(*range(99), sep='\\n'); 1/0\n" + rude()[2],
    ]
    with Service(tmp_path, *quick("--last-lines", "1"), command=command) as service:
        service.release(FAULT="x")
        _, _, errors = service.command()
        assert [line for line in errors.splitlines() if line.startswith("  |")] == [
            "  | ZeroDivisionError: division by zero"
        ]


@pytest.mark.parametrize("option", ["--check", "--pre-start"])
def test_a_check_that_fails_is_quoted(tmp_path: Path, option: str) -> None:
    check = "sh -c 'echo to the output; echo to the errors >&2; exit ${CHECK:-0}'"
    with Service(tmp_path, *quick(option, check)) as service:
        service.release(CHECK="3")
        code, _, errors = service.command()
        assert code == 1
        assert errors.endswith("the last lines that generation 2 wrote:\n  | to the output\n  | to the errors\n"), (
            errors
        )
        code, _, errors = service.command("--dry-run")
        assert code == (1 if option == "--check" else 0)
        assert ("| to the output" in errors) == (option == "--check"), errors
        wait_for(lambda: len(relays(service.pid)) == 1, "the end of the relays that were for checks")


def test_one_that_hangs_is_quoted_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, sys, time\nif os.environ.get('FAULT'):\n"
               "    os.write(2, b'waiting for the database')\n    time.sleep(1000)\n" + rude()[2]]  # fmt: skip
    with Service(tmp_path, *quick("--ready-timeout", "1"), command=command) as service:
        service.release(FAULT="x")
        assert service.command()[2].endswith("  | waiting for the database\n")


# --- it passes on ---------------------------------------------------------------------------------------------


def test_lines_are_marked_on_request(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--prefix", "--workers", "2"), command=talker()) as service:
        request(service.address(), "/say/hello")
        wait_for(lambda: "[gen 1] hello" in service.running.out, "the line on standard output")
        wait_for(lambda: "[gen 1] hello" in service.running.err, "the line on standard error")
        service.upgrade()
        service.settled(2)
        request(service.address(), "/say/again")
        wait_for(lambda: "[gen 2] again" in service.running.out, "the line on standard output")
        assert service.stop() == 0
        own = [line for line in service.running.err if not line.startswith("[gen ")]
        assert all(line.startswith("fdhandoff-cli: ") for line in own), own


def test_a_configuration_file_can_ask_for_it(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("prefix = true\nlast-lines = 3\n")
    with Service(tmp_path, *quick("--config", str(config)), command=talker()) as service:
        request(service.address(), "/say/hello")
        wait_for(lambda: "[gen 1] hello" in service.running.err)
        config.write_text("prefix = false\n")
        service.upgrade()
        service.settled(2)
        request(service.address(), "/say/plainly")
        wait_for(lambda: "plainly" in service.running.err)


def test_without_last_lines_the_command_gets_our_own_standard_error(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--last-lines", "0")) as service:
        server = server_of(service)
        assert target(server, 2) == target(service.pid, 2)
        assert target(server, 1) == target(service.pid, 1)
        assert not relays(service.pid)
        service.release(FAULT="exit1")
        code, _, errors = service.command()
        assert (code, service.status()["last_upgrade"]["last_lines"]) == (1, None)
        assert "what generation 2 wrote is where the master's own output is (--last-lines" in errors


def test_a_terminal_stays_one_unless_lines_are_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('terminal', sys.stderr.isatty(), flush=True)\n" + rude()[2]]
    for number, (options, expected) in enumerate({(): "True", ("--last-lines", "5"): "False"}.items()):
        ours, theirs = pty.openpty()
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "m.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "fdhandoff", "run", "--path", str(path), "--bind", "127.0.0.1:0", *quick(*options),
             "--", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, env=environment(),
        )  # fmt: skip
        os.close(theirs)
        try:
            assert process.stdout is not None
            assert process.stdout.readline().split() == [b"terminal", expected.encode()]
            wait_for(lambda path=path: serving(path))
        finally:
            process.terminate()
            with contextlib.suppress(OSError):
                while os.read(ours, 65536):
                    pass
            process.communicate(timeout=DEADLINE)
            os.close(ours)


def test_standard_descriptors_that_are_closed_are_no_trap(tmp_path: Path) -> None:
    """Else a listener would become standard error, and be written to."""
    path = tmp_path / "m.sock"
    arguments = ["run", "--path", str(path), "--bind", "127.0.0.1:0", *quick(), "--", *talker()]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "fdhandoff", *arguments], env=environment()
    )
    try:
        wait_for(lambda: serving(path))
        facts = ask(path, "status", timeout=DEADLINE)
        (server,) = facts["generations"][0]["pids"]
        assert [target(process.pid, fd) for fd in (0, 1, 2)] == ["/dev/null"] * 3
        assert target(server, 1) == "/dev/null"
        host, _, port = facts["listeners"][0]["address"].rpartition(":")
        request((host, int(port)), "/say/hello")
    finally:
        process.terminate()
        process.wait(DEADLINE)
    assert process.returncode == 0


def numbers(lines: list[str]) -> list[int]:
    return [
        int(line[5:]) for line in list(lines) if line.startswith("line ") and len(line) == 14 and line[5:].isdigit()
    ]


def test_much_output_passes_whole(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), command=talker()) as service:
        request(service.address(), "/many/700000")  # 10 MB
        wait_for(lambda: service.running.err[-1].endswith("000699999"), "the last line")
        assert numbers(service.running.err) == list(range(700_000))


def test_a_relay_that_is_killed_under_load_costs_a_piece_at_most(tmp_path: Path) -> None:
    kills, lines, size = 8, 60_000, len("line 000000000\n")
    with Service(tmp_path, *quick(), command=talker()) as service:
        address = service.address()
        request(address, "/many/1")
        for turn in range(kills):
            (relay,) = relays(service.pid)
            writer = threading.Thread(target=request, args=(address, f"/many/{lines}"))
            writer.start()
            seen = turn * lines
            wait_for(lambda seen=seen: len(service.running.err) > seen + lines // 4, "a part of the lines")
            os.kill(relay, signal.SIGKILL)
            wait_for(lambda relay=relay: relays(service.pid) not in ([], [relay]), "the next relay")
            writer.join(DEADLINE)
            wait_for(
                lambda turn=turn: numbers(service.running.err[-5:])[-1:] >= [(turn + 1) * lines],
                "the last of the lines",
            )
        got = numbers(service.running.err)
        missing = set(range(kills * lines + 1)) - set(got)
        doubled = len(got) - len(set(got))
        print(f"{kills} kills: {len(missing)} lines lost, {doubled} doubled, of {kills * lines + 1}")
        assert (len(missing) + doubled) * size <= kills * (PIECE + 2 * size)
        service.release(FAULT="exit1")
        assert service.command()[0] == 1


# --- whatever becomes of the master -----------------------------------------------------------------------------


def test_a_stopped_master_holds_nobody_up(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), command=talker()) as service:
        address = service.address()
        service.running.signal(signal.SIGSTOP)
        try:
            request(address, "/many/200000")  # many times what a pipe holds
            wait_for(lambda: service.running.err[-1].endswith("000199999"), "the last line")
        finally:
            service.running.signal(signal.SIGCONT)
        assert numbers(service.running.err) == list(range(200_000))


def test_a_killed_master_is_not_felt(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), command=talker()) as service:
        address, server = service.address(), server_of(service)
        (relay,) = relays(service.pid)
        kill(service.pid)
        request(address, "/many/100000")
        wait_for(lambda: service.running.err[-1].endswith("000099999"), "the last line")
        with Service(tmp_path, *quick(), command=talker()) as again:
            assert server_of(again) == server
            request(address, "/say/through-the-old-one")
            wait_for(lambda: "through-the-old-one" in service.running.err)
            again.upgrade()
            again.settled(2)
            request(address, "/say/through-the-new-one")
            wait_for(lambda: "through-the-new-one" in again.running.err)
            wait_for(lambda: not os.path.exists(f"/proc/{relay}"), "the end of the old relay")
            assert again.stop() == 0


def test_output_goes_on_through_an_upgrade_of_the_master(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(), command=talker()) as service:
        address = service.address()
        (relay,) = relays(service.pid)
        for turn in range(3):
            ask(service.path, "upgrade-master", timeout=DEADLINE)
            request(address, f"/say/turn-{turn}")
            wait_for(lambda turn=turn: f"turn-{turn}" in service.running.err)
            assert relays(service.pid) == [relay]
        kill(server_of(service))
        wait_for(lambda: service.running.says("was restarted"))
        request(address, "/say/restarted")
        wait_for(lambda: "restarted" in service.running.err)
        assert relays(service.pid) == [relay]
        os.kill(relay, signal.SIGKILL)
        wait_for(lambda: relays(service.pid) not in ([], [relay]), "another relay")
        request(address, "/say/relayed")
        wait_for(lambda: "relayed" in service.running.err)
        assert service.stop() == 0


def test_one_that_left_its_generation_is_heard_to_its_end(tmp_path: Path) -> None:
    sign, number = tmp_path / "sign", tmp_path / "sign.pid"
    with Service(tmp_path, *quick(), command=talker(), cwd=str(tmp_path)) as service:
        request(service.address(), "/leave/sign")
        pid = int(wait_for(lambda: number.exists() and number.read_text()))
        try:
            (relay,) = relays(service.pid)
            service.upgrade()
            service.settled(2)
            assert len(relays(service.pid)) == 2
            service.running.signal(signal.SIGTERM)
            assert service.running.process.wait(DEADLINE) == 0
            assert os.path.exists(f"/proc/{relay}")
        finally:
            sign.touch()
            wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "its end")
        service.running.says("from one that left")
        wait_for(lambda: not os.path.exists(f"/proc/{relay}"), "the end of the relay")


def test_nobody_who_looks_for_masters_finds_a_relay(tmp_path: Path) -> None:
    with Service(tmp_path, *quick()) as service:
        (relay,) = relays(service.pid)
        words = Path(f"/proc/{relay}/cmdline").read_bytes().rstrip(b"\0")
        assert words == b"fdhandoff-relay: service, generation 1"[: len(words)] or words.startswith(
            b"fdhandoff-relay: "
        )
        assert b"\0" not in words
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            os.kill(relay, number)
        assert service.upgrade()["to"] == 2
        assert all(relay not in one["pids"] for one in service.status()["generations"])


def test_a_first_generation_that_fails_is_heard_before_we_end(tmp_path: Path) -> None:
    running = Running(
        "run", "--path", str(tmp_path / "m.sock"), "--bind", "127.0.0.1:0", *quick(),
        "--", sys.executable, "-c", "import os; os.write(2, b'x' * 60000 + b'\\nthe reason\\n'); os._exit(9)",
    )  # fmt: skip
    assert running.ends() == 9
    assert running.err.count("the reason") == 1
