"""The package, copied into another project under another name, built there, passes its own unit tests there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import needs_that

SOURCE = Path(__file__).parents[2]
NAME = "yourserver._vendor.fdhandoff"
PROOF = f'''
import sys

import {NAME} as vendored


def test_the_vendored_copy_is_what_was_tested():
    loaded = [name for name in sys.modules if name.split(".")[0] == "fdhandoff"]
    assert loaded == ["fdhandoff"], "only the entry that forbids the original"
    assert sys.modules["fdhandoff"] is None
    assert vendored.__file__.startswith(sys.path[0] if sys.path[0] else ".")
    assert sys.modules["{NAME}._native"].__file__.startswith(vendored.__path__[0])
'''

pytestmark = pytest.mark.skipif(
    not (SOURCE / "build_ffi.py").exists(), reason="these tests were copied away from the source, which they vendor"
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


def under_its_new_name(text: str, modules: str) -> str:
    """A test's source, with every import of the package (also in the programs that it writes) renamed."""
    text = re.sub(rf"(?<![\w./-])fdhandoff(?=\.(?:{modules})\b)", NAME, text)
    text = re.sub(r"\bfrom fdhandoff import\b", f"from {NAME} import", text)
    return re.sub(r"(?m)\bimport fdhandoff(?=$|[;,\"' ])", f"import {NAME}; import {NAME} as fdhandoff", text)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the package in it, built there, and the package's unit tests beside it."""
    needs_that(importlib.util.find_spec("setuptools") is not None, "setuptools: pip install setuptools")
    place = tmp_path_factory.mktemp("project")
    vendored = place.joinpath(*NAME.split("."))
    run(sys.executable, SOURCE / "build_ffi.py", "--vendor", vendored)
    for folder in (place / "yourserver", place / "yourserver" / "_vendor"):
        (folder / "__init__.py").touch()
    run(sys.executable, vendored / "build_ffi.py", "--in-place", "--name", NAME, cwd=place)

    shutil.copy(SOURCE / "pyproject.toml", place)
    others = shutil.ignore_patterns("__pycache__", "c", "fault", "integration", "property", "soak")
    shutil.copytree(SOURCE / "tests", place / "tests", ignore=others)
    modules = "|".join(sorted({path.stem for path in vendored.iterdir()}))
    for test in (place / "tests").rglob("*.py"):
        test.write_text(under_its_new_name(test.read_text(encoding="utf-8"), modules), encoding="utf-8")
    (place / "tests" / "unit" / "test_vendored.py").write_text(PROOF)
    # Read by every interpreter that the tests start: the original can't be imported, wherever it may be installed.
    (place / "sitecustomize.py").write_text('import sys\n\nsys.modules["fdhandoff"] = None\n')
    return place


def test_the_unit_tests_pass_under_the_new_name(project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    shown = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit", cwd=project, env=environment
    )
    assert re.search(r"\b[1-9]\d* passed", shown), shown


def test_the_vendored_copy_never_names_itself_absolutely(project: Path) -> None:
    for module in project.joinpath(*NAME.split(".")).rglob("*.py"):
        for line in module.read_text(encoding="utf-8").splitlines():
            assert not re.match(r"\s*(from|import) fdhandoff\b", line), f"{module}: {line}"


def test_a_vendored_copy_can_be_vendored_again(project: Path, tmp_path: Path) -> None:
    original = project.joinpath(*NAME.split("."))
    run(sys.executable, original / "build_ffi.py", "--vendor", tmp_path / "again")
    built = {path.name for path in original.iterdir() if path.suffix == ".so" or path.name == "__pycache__"}
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in original.iterdir()} - built
    assert {path.name for path in (tmp_path / "again" / "src").iterdir()} == {"fdhandoff.c", "fdhandoff.h"}


def test_a_vendored_copy_is_not_built_without_its_name(project: Path) -> None:
    build = project.joinpath(*NAME.split(".")) / "build_ffi.py"
    refused = subprocess.run([sys.executable, build, "--in-place"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "--name" in refused.stderr


def test_nothing_is_vendored_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    refused = subprocess.run(
        [sys.executable, SOURCE / "build_ffi.py", "--vendor", tmp_path], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert "not empty" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
