"""Readiness and liveness, asked by HTTP and seen by a file: false from the first moment of a drain, while connections are still
accepted."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ..cli import verb, wait_for
from . import Service, kill, quick, request

if TYPE_CHECKING:
    from pathlib import Path


def asked(port: int, path: str = "/ready", method: str = "GET") -> tuple[int, dict[str, Any]]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else {}


def health_port(service: Service) -> int:
    def look() -> int | None:
        found = re.search(r"health on 127\.0\.0\.1:(\d+)", service.running.text())
        return int(found[1]) if found else None

    return int(wait_for(look, "the line that names the health port"))


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        answer = b""
        with contextlib.suppress(OSError):  # it need not read what it does not answer: a reset, at any of these
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(4096):
                answer += part
    return answer


def test_ready_turns_false_with_the_first_moment_of_a_drain_and_connections_are_still_accepted(tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    options = quick("--health", "127.0.0.1:0", "--health-file", str(mark), "--pre-stop-delay", "1500ms")
    with Service(tmp_path, *options) as service:
        port, address = health_port(service), service.address()
        status, facts = asked(port)
        assert (status, facts["ready"], facts["state"], facts["generation"]) == (200, True, "serving", 1)
        assert json.loads(mark.read_text())["pid"] == service.pid
        service.running.signal(signal.SIGTERM)
        wait_for(lambda: asked(port)[0] == 503, "readiness to be false")
        assert not mark.exists()
        assert asked(port, "/live")[0] == 200
        assert request(address)[1] == 1, "new connections are served for the length of the delay"
        assert service.running.ends() == 0
    with pytest.raises(ConnectionRefusedError):
        asked(port)


def test_a_service_is_not_ready_before_its_first_generation_is(tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    options = quick("--health", "127.0.0.1:0", "--health-file", str(mark), "--ready", "notify", "--env", "FAULT=mute")
    with Service(tmp_path, *options, wait=False) as service:
        port = health_port(service)
        assert asked(port) == (503, {**asked(port)[1], "ready": False, "state": "starting"})
        assert asked(port, "/live")[0] == 200
        assert not mark.exists()


def test_a_service_without_a_living_process_is_not_ready_until_it_was_restarted(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--health", "127.0.0.1:0", "--health-file", str(tmp_path / "ready"))) as service:
        port = health_port(service)
        (pid,) = service.generations()[1]["pids"]
        unready = threading.Event()

        def watch() -> None:
            while not unready.is_set():
                if asked(port)[0] == 503:
                    unready.set()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        kill(pid)
        assert unready.wait(10), "it was never unready"
        watcher.join()
        wait_for(lambda: asked(port)[0] == 200, "readiness after the restart")
        assert (tmp_path / "ready").exists()


def test_health_is_answered_without_a_gap_while_the_master_is_replaced(tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    with Service(tmp_path, *quick("--health", "127.0.0.1:0", "--health-file", str(mark))) as service:
        port = health_port(service)
        answers: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                answers.append(asked(port, "/live")[0])

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        wait_for(lambda: len(answers) > 5, "answers before")
        done = verb("upgrade", str(service.path), "--master")
        assert done.returncode == 0, done.stderr
        before = len(answers)
        wait_for(lambda: len(answers) > before + 5, "answers after")
        over.set()
        watcher.join()
        assert set(answers) == {200}
        assert asked(port)[0] == 200
        assert mark.exists()


def test_what_is_no_question_gets_an_answer_that_says_so(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--health", "127.0.0.1:0")) as service:
        port = health_port(service)
        assert asked(port, "/nothing")[0] == 404
        assert asked(port, "/ready?verbose", "HEAD") == (200, {})
        assert asked(port, "/ready", "POST")[0] == 405
        assert raw(port, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert raw(port, b"GET /ready") == b"", "half a question has no answer"
        assert raw(port, b"x" * 20_000) == b""
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        try:
            assert asked(port)[0] == 200, "clients that ask nothing are in nobody's way"
        finally:
            for sock in silent:
                sock.close()


def test_a_health_port_that_is_taken_is_told_with_its_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with Service(tmp_path, *quick("--health", f"127.0.0.1:{port}"), wait=False) as service:
            assert service.running.ends() == 125
            assert re.search(rf"127\.0\.0\.1:{port} is taken by pid \d+", service.running.text())
    assert not service.path.exists()


def test_a_health_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with Service(tmp_path, *quick("--health-file", str(tmp_path / "missing" / "ready"))) as service:
        assert "can't be written (No such file or directory)" in service.running.text()
        assert request(service.address())[1] == 1
