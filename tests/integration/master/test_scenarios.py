"""Acceptance scenarios that other projects test or were asked for, with ``run`` and an unmodified server.

===== ============================================= ==========================================================================
A01   grace                                         test_plain_and_encrypted_requests_over_two_upgrades
A02   grace, gracehttp                              test_a_short_request_overtakes_a_long_one_in_the_new_generation
A03   grace                                         test_commands (pre-start, two rounds); test_service_upgrade for ``Service``
A08   tableflip, gunicorn#255                       test_of_two_upgrades_at_once_one_proceeds
A19   tableroll                                     test_kills
A20   Server::Starter                               test_status_shows_one_generation_then_two_then_one
A21   Server::Starter                               test_starts_that_fail_leave_the_old_one_until_one_works
A22   Server::Starter                               test_keeping (--keep-old)
A23   Server::Starter                               test_keeping (--restart-every)
A24   Server::Starter                               test_variables_come_change_and_go
A27   Server::Starter                               test_a_socket_file_stays_for_a_command_that_leaves_its_parent
A28   Server::Starter                               test_kinds, test_flows (UDP)
A29   Server::Starter                               test_signals_just_after_the_start_are_not_lost, test_life
A30   einhorn                                       test_the_version_in_a_file_goes_up_by_the_control_command
A46   capistrano, overseer#20                       test_life (release directory deleted, link flipped)
R4    Envoy hot restart                             test_a_slow_stream_straddles_upgrades_and_the_counters_go_on
R6    nginx binary upgrade                          test_a_unix_path_lives_on_after_the_old_one_and_after_an_aborted_new_one
===== ============================================= ==========================================================================
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fdhandoff.system.processes import variable_of

from ...conftest import needs
from ..cli import DEADLINE, verb, wait_for
from . import Load, Service, quick, read_answer, request, rude
from .test_wear import children

TLS = """
import os, socket, ssl, sys, threading, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
body = f"- {os.environ['FDHANDOFF_GENERATION']} {os.getpid()}".encode()
answer = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body) + body
def serve(connection, encrypted):
    try:
        if encrypted:
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            asked = connection.recv(4096)
            if b"/sleep" in asked:
                time.sleep(float(asked.split(b"/sleep")[1].split()[0]))
            connection.sendall(answer)
    except OSError:
        pass  # a probe, which says nothing
def accept(fd, encrypted):
    listener = socket.socket(fileno=fd)
    listener.setblocking(True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], encrypted), daemon=True).start()
threading.Thread(target=accept, args=(4, True), daemon=True).start()
accept(3, False)
"""


def encrypted(address: tuple[str, int], path: str, context: ssl.SSLContext) -> tuple[str, int, int]:
    with (
        socket.create_connection(address, DEADLINE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return read_answer(b"".join(iter(lambda: sock.recv(4096), b"")))


def test_plain_and_encrypted_requests_over_two_upgrades(tmp_path: Path) -> None:
    """A01: four requests, fast and slow over http and https, around each of two upgrades: all are answered, by the newest
    process or by one that was there before; then a clean end."""
    pem = tmp_path / "server.pem"
    subprocess.run(
        [needs("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
         "-keyout", pem, "-out", f"{pem}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(cafile=f"{pem}.crt")
    pem.write_text(pem.read_text() + Path(f"{pem}.crt").read_text())
    options = quick("--bind", "https=127.0.0.1:0")
    with (
        Service(tmp_path, *options, command=[sys.executable, "-c", TLS, str(pem)]) as service,
        ThreadPoolExecutor(12) as pool,
    ):
        plain, secure = service.address(0), service.address(1)

        def four() -> list[Any]:
            return [
                pool.submit(request, plain, "/"),
                pool.submit(request, plain, "/sleep2"),
                pool.submit(encrypted, secure, "/", context),
                pool.submit(encrypted, secure, "/sleep2", context),
            ]

        def pid() -> int:
            return int(service.generations()[service.status()["generation"]]["pids"][0])

        known = [pid()]
        asked = four()
        for _ in range(2):
            service.upgrade(wait="served")
            known.append(pid())
            assert {request(plain)[2] for _ in range(10)} == {known[-1]}
            asked += four()
            wait_for(lambda: service.status()["state"] == "serving", "the end of probation")
        answers = [one.result(DEADLINE) for one in asked]
        assert {answer[2] for answer in answers} <= set(known)
        assert {answer[2] for answer in answers[8:]} == {known[-1]}
        service.settled(3)
        assert service.stop() == 0


def test_a_short_request_overtakes_a_long_one_in_the_new_generation(tmp_path: Path) -> None:
    """A02: the long one is answered by the old process, later; both are alive meanwhile, the old one is gone afterwards."""
    with Service(tmp_path, *quick()) as service, ThreadPoolExecutor(1) as pool:
        address = service.address()
        (old,) = service.generations()[1]["pids"]
        long = pool.submit(request, address, "/sleep5")
        wait_for(lambda: service.generations()[1]["active"] == 1)
        service.upgrade()
        (new,) = service.generations()[2]["pids"]
        assert request(address)[2] == new
        assert not long.done()
        os.kill(old, 0)
        assert long.result(DEADLINE)[2] == old
        service.settled(2)
        wait_for(lambda: not Path(f"/proc/{old}").exists(), "the old one's end")


def test_of_two_upgrades_at_once_one_proceeds(tmp_path: Path) -> None:
    """A08, with both by the command line, at the same moment, again and again."""
    with Service(tmp_path, *quick("--ready", "delay:0.5s")) as service, ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            done = [one.result() for one in [pool.submit(service.command) for _ in range(4)]]
            assert sorted(code for code, _, _ in done)[0] == 0
            for code, out, errors in done:
                if code:
                    assert (code, out, errors.count("\n"), "is under way" in errors) == (1, "", 1, True), errors
        upgrades = service.status()["counters"]["upgrades"]
        assert service.status()["generation"] == upgrades + 1


def test_status_shows_one_generation_then_two_then_one(tmp_path: Path) -> None:
    """A20."""
    with Service(tmp_path, *quick("--probation", "60s")) as service:
        assert set(service.generations()) == {1}
        service.upgrade(wait="served")
        assert set(service.generations()) == {1, 2}
    with Service(tmp_path, *quick()) as service:
        service.upgrade()
        service.settled(2)
        assert set(service.generations()) == {2}


def test_starts_that_fail_leave_the_old_one_until_one_works(tmp_path: Path) -> None:
    """A21: three releases that can't start, then one that can."""
    with Service(tmp_path, *quick()) as service, Load(service.address(), 2) as load:
        for fault in ("exit1", "exit0", "exit3"):
            service.release(FAULT=fault)
            assert service.command()[0] == 1
            assert set(service.generations()) == {1}
        service.release(RELEASE="good")
        assert service.command()[0] == 0
        load.heard(5)
        load.end()
        assert not load.failures
        assert set(load.generations()) == {1, 5}
        assert request(service.address())[0] == "good"


def test_variables_come_change_and_go(tmp_path: Path) -> None:
    """A24: of the file, of the command line, and of the master's own environment."""
    show = ("import os; names = ('KEPT', 'CHANGED', 'GONE', 'NEW', 'FIXED')\n"
            "os.environ['RELEASE'] = ','.join(os.environ.get(name, '-') for name in names)\n")  # fmt: skip
    command = rude()
    command[2] = show + command[2]
    with Service(
        tmp_path, *quick("--env", "FIXED=f"), command=command, env={"KEPT": "k", "CHANGED": "own"}, wait=False
    ) as service:
        service.release(GONE="g", CHANGED="one")
        service.serves()
        before = request(service.address())[0]
        service.release(NEW="n", CHANGED="two")
        service.upgrade()
        after = request(service.address())[0]
        service.release()
        service.upgrade()
        assert before in ("k,one,g,-,f", "k,own,-,-,f")  # it may have started before the file was written
        assert after == "k,two,-,n,f"
        assert request(service.address())[0] == "k,own,-,-,f"


def test_a_socket_file_stays_for_a_command_that_leaves_its_parent(tmp_path: Path) -> None:
    """A27: a daemon forks, and its first process ends. That is told, and the path is not taken from who serves before."""
    public = tmp_path / "app"
    good = rude()
    daemon = [good[0], "-c", "import os\nif os.fork(): os._exit(0)\nos.setsid()\n" + good[2]]
    config = tmp_path / "run.toml"
    config.write_text(f"command = {json.dumps(good)}\n")
    with Service(tmp_path, *quick("--config", str(config)), bind=f"unix:{public}", command=()) as service:
        config.write_text(f"command = {json.dumps(daemon)}\n")
        code, _, errors = service.command()
        assert (code, "exited with status 0" in errors) == (1, True), errors
        assert request(str(public))[1] == 1
        wait_for(
            lambda: all(variable_of(pid, "FDHANDOFF_GENERATION") != "2" for pid in children(service.pid)),
            "the end of what left its parent",
        )
        service.settled(1)
        config.write_text(f"command = {json.dumps(good)}\n")
        assert service.command()[0] == 0
        assert request(str(public))[1] == 3


def test_signals_just_after_the_start_are_not_lost(tmp_path: Path) -> None:
    """A29: HUP and TTIN while the first generation boots; they count when it serves."""
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    command = rude()
    command[2] = f"if not __import__('os').environ.get('OPEN'): open({str(fifo)!r}).close()\n" + command[2]
    with Service(tmp_path, *quick(), command=command, wait=False) as service:
        service.running.says("generation 1 started")
        service.release(OPEN="1")
        service.running.signal(signal.SIGHUP)
        service.running.signal(signal.SIGTTIN)
        service.running.says("2 workers from now on")
        with open(fifo, "w"):
            pass
        service.running.says("upgraded from generation 1 to generation 2")
        assert len(service.generations()[2]["pids"]) == 2
        assert request(service.address())[1] == 2
        assert service.stop() == 0


def test_the_version_in_a_file_goes_up_by_the_control_command(tmp_path: Path) -> None:
    """A30: the program says what a file said when it was started."""
    version = tmp_path / "version"
    version.write_text("0")
    command = rude()
    command[2] = f"import os; os.environ['RELEASE'] = 'v' + open({str(version)!r}).read()\n" + command[2]
    with Service(tmp_path, *quick(), command=command) as service:
        assert request(service.address())[0] == "v0"
        version.write_text("1")
        assert {request(service.address())[0] for _ in range(10)} == {"v0"}
        assert verb("upgrade", "--pid", str(service.pid)).returncode == 0
        assert {request(service.address())[0] for _ in range(10)} == {"v1"}


def test_a_slow_stream_straddles_upgrades_and_the_counters_go_on(tmp_path: Path) -> None:
    """R4: it began with the first of three generations, and gets every piece from there; new requests go to the new ones,
    during and after."""
    command = rude()
    command[2] = command[2].replace(
        '            if b"/sleep" in asked:',
        '            while b"/stream" in asked:\n'
        '                connection.sendall(body + b"\\n")\n'
        "                if not connection.recv(10): return\n"
        '            if b"/sleep" in asked:',
    )
    with Service(tmp_path, *quick("--grace", "60s"), command=command) as service:
        address = service.address()
        with socket.create_connection(address, DEADLINE) as stream, stream.makefile("r") as pieces:
            stream.sendall(b"GET /stream HTTP/1.1\r\n\r\n")

            def piece() -> int:
                word = int(pieces.readline().split()[0])
                stream.sendall(b"more")
                return word

            for number in (1, 2, 3):
                assert piece() == 1
                assert request(address)[1] == number
                facts = service.status()["counters"]
                assert (facts["upgrades"], facts["failed"]) == (number - 1, 0)
                if number < 3:
                    service.upgrade()
            wait_for(lambda: set(service.generations()) == {1, 3}, "the second one's end")
            assert piece() == 1
            assert service.generations()[1]["active"] == 1
        service.settled(3)


def test_a_unix_path_lives_on_after_the_old_one_and_after_an_aborted_new_one(tmp_path: Path) -> None:
    """R6."""
    public = str(tmp_path / "app")
    with Service(tmp_path, *quick(), bind=f"unix:{public}") as service:
        (old,) = service.generations()[1]["pids"]
        service.upgrade()
        service.settled(2)
        wait_for(lambda: not Path(f"/proc/{old}").exists(), "the old one's end")
        assert request(public)[1] == 2
        service.release(FAULT="hang")
        assert service.command("--no-wait")[0] == 0
        wait_for(lambda: service.status()["last_upgrade"]["step"] == "ready")
        assert service.command("--abort")[0] == 0
        service.settled(2)
        assert request(public)[1] == 2
        service.release()
        assert service.command()[0] == 0
        assert request(public)[1] == 4
