"""The same story for every kind of source: one release after the other, a broken one among them, under load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..cli import verb
from ..master import Load
from . import BROKEN, Watched
from .publishers import PUBLISHERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .publishers import Publisher


@pytest.fixture(params=sorted(PUBLISHERS))
def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Publisher]:
    one = PUBLISHERS[request.param](tmp_path)
    try:
        yield one
    finally:
        one.close()


def test_releases_come_one_after_the_other_and_a_broken_one_serves_nobody(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("one")
    told = {"words": tuple(publisher.words), "env": dict(publisher.env)}
    with Watched(tmp_path, publisher.source, *publisher.options, **told) as service:
        master = service.pid
        assert service.answers() == "one"
        with Load(service.address()) as load:
            publisher.publish("two")
            service.comes("two")
            publisher.publish("three", BROKEN)
            service.says("is not tried again before it changes")
            load.heard(2)
            assert service.answers() == "two"
            publisher.publish("four")
            service.comes("four")
            load.heard(4)
        assert load.failures == {}
        assert set(load.generations()) == {1, 2, 4}, "the third was release three, which serves no user"
        assert service.said("is not tried again before it changes") == 1
        assert service.pid == master
        assert service.fates() == ["serving", "failed", "served", "served"]
        done = verb("releases", str(service.path))
        assert "failed because" in done.stdout, done.stderr
        assert service.stop() == 0
