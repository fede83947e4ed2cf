"""Who is told what became of an upgrade: a command, and a receiver of webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..cli import verb, wait_for
from . import Load, Service, kill, quick, request

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "a-secret-that-nobody-may-see"


class Receiver:
    """``answers``: the next statuses, 204 when there are none; 0: it never answers. ``got``: the requests, as (headers, body),
    the names of the headers in small letters."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                if not status:
                    receiver.over.wait()
                    self.close_connection = True
                    return
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.origin}/hook?token={SECRET}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def facts(self, count: int) -> list[dict[str, Any]]:
        wait_for(lambda: len(self.got) >= count, f"{count} webhooks")
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


def noting(folder: Path) -> list[str]:
    """The options by which both commands note what they are told."""
    script = folder / "note.sh"
    names = "RESULT RELEASE GENERATION SERVING SERVING_RELEASE REASON ASKED".split()
    words = "|".join(f"$FDHANDOFF_{name}" for name in names)
    script.write_text(f'echo "$1|{words}" >> {folder}/notes\n')
    return ["--on-success", f"sh {script} success", "--on-failure", f"sh {script} failure"]


def notes(folder: Path, count: int) -> list[list[str]]:
    file = folder / "notes"
    wait_for(lambda: file.exists() and len(file.read_text().splitlines()) >= count, f"{count} notes")
    return [line.split("|") for line in file.read_text().splitlines()]


def test_what_became_of_each_upgrade_is_told_to_a_command_and_to_a_webhook(tmp_path: Path, receiver: Receiver) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    options = [*noting(tmp_path), "--webhook", receiver.url, "--webhook-secret", str(secret), "--name", "told"]
    with Service(tmp_path, *quick(*options, "--probation", "0.2")) as service, Load(service.address(), 2) as load:
        assert service.upgrade(release="two")["result"] == "done"
        service.release(FAULT="exit3")
        code, _, errors = service.command("--release", "three")
        assert code == 1, errors
        reason = errors.splitlines()[-1].removeprefix("fdhandoff-cli: ")
        told = receiver.facts(2)
        assert notes(tmp_path, 2) == [
            ["success", "done", "two", "2", "2", "two", "", told[0]["asked"]],
            ["failure", "failed", "three", "3", "2", "two", reason, told[1]["asked"]],
        ]
        for one, facts in zip((2, 3), told, strict=True):
            assert {name: facts[name] for name in ("schema", "event", "service", "from", "to")} == {
                "schema": 1, "event": "upgrade", "service": "told", "from": one - 1, "to": one,
            }  # fmt: skip
            assert facts["serving"] == {"generation": 2, "release": "two"}
        assert [facts["result"] for facts in told] == ["done", "failed"]
        assert [facts["release"] for facts in told] == ["two", "three"]
        assert told[1]["reason"] == reason
        assert told[0]["id"] != told[1]["id"]
        for headers, body in receiver.got:
            number, moment = headers["webhook-id"], headers["webhook-timestamp"]
            assert number == json.loads(body)["id"]
            assert abs(time.time() - int(moment)) < 60
            right = hmac.new(SECRET.encode(), f"{number}.{moment}.".encode() + body, hashlib.sha256).digest()
            assert headers["webhook-signature"] == f"v1,{base64.b64encode(right).decode()}"
        load.end()
        assert not load.failures


def test_a_release_that_dies_in_probation_was_rolled_back(tmp_path: Path, receiver: Receiver) -> None:
    options = ["--settle", "0.1", "--probation", "20", *noting(tmp_path), "--webhook", receiver.url]
    with Service(tmp_path, *options) as service:
        service.upgrade(wait="served", release="two")
        assert not receiver.got
        kill(service.generations()[2]["pids"][0])
        (facts,) = receiver.facts(1)
        assert (facts["result"], facts["release"], facts["serving"]) == (
            "rolled back", "two", {"generation": 1, "release": None},
        )  # fmt: skip
        assert "webhook-signature" not in receiver.got[0][0]
        assert notes(tmp_path, 1)[0][:5] == ["failure", "rolled back", "two", "2", "1"]


def test_an_operator_who_goes_back_is_a_failure_of_what_was_left(tmp_path: Path) -> None:
    with Service(tmp_path, *quick(*noting(tmp_path), "--keep-old", "10m")) as service:
        service.upgrade(release="two")
        notes(tmp_path, 1)
        assert verb("rollback", str(service.path)).returncode == 0
        assert notes(tmp_path, 2)[1][:5] == ["failure", "rolled back", "two", "2", "1"]


def test_a_receiver_in_trouble_is_asked_again_and_one_that_refuses_is_not(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers = [503, 500]
    with Service(tmp_path, *quick("--webhook", receiver.url)) as service:
        service.upgrade()
        assert len({facts["id"] for facts in receiver.facts(3)}) == 1
        receiver.answers = [404, 302]
        for number, answer in ((3, 404), (4, 302)):
            service.upgrade()
            said = f"the webhook at {receiver.origin}/… for generation {number} failed: it answered {answer}"
            service.running.says(said)
        assert len(receiver.got) == 5
        assert SECRET not in service.running.text()


def test_receivers_and_commands_that_hang_or_are_not_there_cost_the_service_nothing(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.answers = [0] * 100
    gone = Receiver()
    gone.close()
    options = quick("--webhook", receiver.url, "--webhook", gone.url, "--on-success", "sleep 1000")
    with Service(tmp_path, *options) as service:
        service.upgrade()
        receiver.facts(1)
        assert service.upgrade()["result"] == "done"
        assert request(service.address())[1] == 3
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        assert service.stop() == 0
        for what in ("the on-success command", f"the webhook at {receiver.origin}/…"):
            service.running.says(f"{what} for generation 2 is given up, with 1 more behind it: time is over")
        assert [pid for pid in children if os.path.exists(f"/proc/{pid}")] == []


def test_a_secret_is_for_the_webhook_alone(tmp_path: Path, receiver: Receiver) -> None:
    env = {"FDHANDOFF_WEBHOOK_SECRET": SECRET}
    with Service(tmp_path, *quick("--webhook", f"{receiver.origin}/hook"), env=env) as service:
        service.upgrade()
        receiver.facts(1)
        assert "webhook-signature" in receiver.got[0][0]
        (worker,) = service.generations()[2]["pids"]
        assert SECRET.encode() not in Path(f"/proc/{worker}/environ").read_bytes()
        shown = [service.running.text(), verb("status", str(service.path), "--json").stdout]
        assert not [text for text in shown if SECRET in text or not text]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--webhook", "hooks.example"], "'hooks.example' is no URL"),
        (["--webhook", "https://me:secret@hooks.example"], "a password in a URL is seen by everybody"),
        (["--webhook-secret", "/nowhere/secret"], "is to be in /nowhere/secret, which is no file"),
        (["--on-failure", "it's"], "quotation"),
    ],
)
def test_mistakes_are_wrong_usage(tmp_path: Path, options: list[str], sentence: str) -> None:
    done = verb("run", "--path", str(tmp_path / "s"), *options, "--", "true")
    assert (done.returncode, done.stderr.count("\n"), sentence in done.stderr) == (2, 1, True), done.stderr
