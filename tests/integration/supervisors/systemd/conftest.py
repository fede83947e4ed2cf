"""A booted system for each test; when the test fails, what its journal says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import Bed, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Boot = Callable[[int], Bed]


@pytest.fixture
def boot(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Boots a release of systemd: ``boot(252)``."""
    beds: list[Bed] = []

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
        report = getattr(request.node, "report_of_call", None)
        for bed in beds:
            try:
                if bed.leader and (report is None or report.failed):
                    request.node.add_report_section("call", "journal", bed.log())
            finally:
                bed.close()


@pytest.fixture
def bed(boot: Boot) -> Bed:
    """This machine's own release."""
    return boot(252)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.report_of_call = report
    return report
