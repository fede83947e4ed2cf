"""A booted system for each test; when the test fails, what its journal says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import Bed, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Boot = Callable[[int], Bed]

BEDS: pytest.StashKey[list[Bed]] = pytest.StashKey()


@pytest.fixture
def boot(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Boots a release of systemd: ``boot(252)``."""
    beds = request.node.stash.setdefault(BEDS, [])

    def start(version: int) -> Bed:
        folder = tmp_path / f"bed{len(beds)}"
        folder.mkdir(mode=0o755)
        bed = Bed(folder, tree(version))
        beds.append(bed)
        bed.boot()
        return bed

    try:
        yield start
    finally:
        for bed in beds:
            bed.close()


@pytest.fixture
def bed(boot: Boot) -> Bed:
    """This machine's own release."""
    return boot(252)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        for bed in item.stash.get(BEDS, []):
            if bed.running:
                report.sections.append(("journal", bed.log()))
    return report
