"""An implementation in another language, written from the reference alone, takes the service over and gives it back."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.support.cast import Actor, Cast

SOURCE = Path(__file__).with_name("go")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system has no pidfds")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Go program, built."""
    go = needs("go", "golang-go")
    place = tmp_path_factory.mktemp("go")
    subprocess.run([go, "build", "-o", str(place / "peer"), "."], cwd=SOURCE, check=True, timeout=300)
    return str(place / "peer")


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    found = Cast(tmp_path)
    yield found
    found.close()


def start(cast: Cast, peer: str, what: str) -> Actor:
    process = subprocess.Popen(
        [peer, what, cast.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    cast.actors.append(Actor(process))
    return cast.actors[-1]


def answer(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as connection, connection.makefile() as lines:
        return lines.readline().strip()


def test_python_to_go_and_back(cast: Cast, peer: str) -> None:
    owner = cast.owner(state=700_000, final=300_000)
    assert answer(cast.port) == str(owner.pid)
    other = start(cast, peer, "take")
    serving = other.hears("serving")
    assert serving["address"] == f"127.0.0.1:{cast.port}"
    assert (serving["generation"], serving["items"], serving["state"]) == (2, 1, 300_000)
    assert owner.ended() == 0
    assert answer(cast.port) == "go 2"
    back = cast.taker()
    taken = back.hears("taken")
    assert (taken["names"], taken["state"]) == (["main"], 300_000)
    assert back.hears("owner")["generation"] == 3
    back.hears("serving")
    assert other.ended() == 0
    assert answer(cast.port) == str(back.pid)


def test_go_owns_first_and_answers_an_operators_question(cast: Cast, peer: str) -> None:
    owner = start(cast, peer, "own")
    cast.port = int(owner.hears("serving")["address"].rpartition(":")[2])
    assert cast.offers(owner)["generation"] == 1
    taker = cast.taker()
    taker.hears("serving")
    assert owner.ended() == 0
    assert answer(cast.port) == str(taker.pid)


def test_go_survives_a_taker_that_dies(cast: Cast, peer: str) -> None:
    owner = start(cast, peer, "own")
    cast.port = int(owner.hears("serving")["address"].rpartition(":")[2])
    taker = cast.taker(wait_before_ready=True)
    taker.hears("taken")
    taker.kill()
    owner.hears("failed")
    assert answer(cast.port) == "go 1"


def test_go_becomes_the_owner_when_the_old_one_dies_before_its_commit(cast: Cast, peer: str) -> None:
    owner = cast.owner(trap={"role": "owner", "state": "COMMITTED", "victim": "owner"})
    other = start(cast, peer, "take")
    assert owner.ended() == -9
    assert other.hears("serving")["generation"] == 2
    assert answer(cast.port) == "go 2"
