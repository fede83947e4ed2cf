from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import Containers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    bed = Containers(tmp_path)
    try:
        yield bed
    finally:
        bed.close()
