"""The cast of a fault test: real processes, ended whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cast import Cast


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    found = Cast(tmp_path)
    yield found
    found.close()
