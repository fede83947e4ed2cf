"""What is distributed: a source distribution that builds alone, one wheel for every CPython, and both complete."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ..conftest import needs_that

SOURCE = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (SOURCE / "pyproject.toml").exists() or not (SOURCE / "build_ffi.py").exists(),
    reason="these tests were copied away from the source, which they package",
)


def run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        **options,
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_that(importlib.util.find_spec("build") is not None, "build: pip install build")
    place = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", place, SOURCE)
    (made,) = place.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked source distribution alone."""
    place = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(place, filter="data")
        else:
            archive.extractall(place)
    run(
        sys.executable, "-m", "build", "--wheel", "--outdir", place / "dist", place / sdist.name.removesuffix(".tar.gz")
    )
    (made,) = (place / "dist").iterdir()
    return made


def test_the_source_distribution_has_what_its_build_and_its_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"src/fdhandoff.c", "src/fdhandoff.h", "build_ffi.py", "setup.py", "pyproject.toml", "LICENSE"}
    assert names >= {"fdhandoff/__init__.py", "fdhandoff/py.typed", "tests/conftest.py", "Makefile"}
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_one_wheel_serves_every_cpython_from_3_10_on(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name


def test_the_wheel_has_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {str(path.relative_to(SOURCE)) for path in (SOURCE / "fdhandoff").rglob("*.py*") if path.suffix != ".pyc"}
    assert names >= inside | {"fdhandoff/py.typed", "fdhandoff/_native.abi3.so"}
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fdhandoff"}


def test_the_compiled_module_uses_the_stable_interface_alone(wheel: Path) -> None:
    needs_that(importlib.util.find_spec("abi3audit") is not None, "abi3audit: pip install abi3audit")
    run(sys.executable, "-m", "abi3audit", "--strict", wheel)


def test_the_wheel_works_where_nothing_else_is_installed(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    program = "import fdhandoff, fdhandoff.system.native; print(fdhandoff.__version__, fdhandoff.__file__)"
    version, file = run(python, "-c", program, cwd=tmp_path).split()
    assert wheel.name.split("-")[1] == version
    assert file.startswith(str(tmp_path))
    assert (python.parent / "fdhandoff-cli").exists()
