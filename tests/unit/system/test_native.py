from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fdhandoff.errors import SystemCallError
from fdhandoff.system import native
from fdhandoff.system.native import FEATURE_NAMES, check, features, lib

from . import PACKAGE


def test_features_are_words_of_the_known_ones() -> None:
    assert features() <= set(FEATURE_NAMES)
    if sys.platform == "linux":
        assert "atomic_cloexec" in features()


def test_check_passes_results_and_conditions_through() -> None:
    assert check("open", 0) == 0
    assert check("open", lib.FDH_AGAIN) == native.FDH_AGAIN == 1


def test_check_raises_the_failed_calls_name_number_and_purpose() -> None:
    with pytest.raises(SystemCallError, match="binding x: bind failed: Permission denied") as caught:
        check("bind", -errno.EACCES, "binding x")
    assert (caught.value.call, caught.value.errno) == ("bind", errno.EACCES)
    assert isinstance(caught.value, OSError)


def test_every_function_and_constant_of_the_protocol_class_exists_in_the_module() -> None:
    source = Path(native.__file__).read_text(encoding="utf-8")
    wanted = {word for line in source.splitlines() for word in [line.strip().split("(")[0].removeprefix("def ")]
              if word.startswith("fdh_")}  # fmt: skip
    wanted |= {line.strip().partition(":")[0] for line in source.splitlines() if line.strip().startswith("FDH_")
               and ": int" in line}  # fmt: skip
    assert len(wanted) > 50
    assert [name for name in sorted(wanted) if not hasattr(lib, name)] == []


def test_every_function_of_the_module_is_in_the_protocol_class() -> None:
    source = Path(native.__file__).read_text(encoding="utf-8")
    missing = [name for name in dir(lib) if name.startswith("fdh_") and f"def {name}(" not in source]
    assert missing == []


def test_a_missing_extension_says_how_to_build_it(tmp_path: Path) -> None:
    package = tmp_path / "copy"
    (package / "system").mkdir(parents=True)
    here = Path(native.__file__).parent
    for name in ("__init__.py", "native.py"):
        (package / "system" / name).write_text((here / name).read_text(encoding="utf-8"), encoding="utf-8")
    (package / "errors.py").write_text((here.parent / "errors.py").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-c", "import copy_.system.native"]
    package.rename(tmp_path / "copy_")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ImportError: copy_._native, the compiled part, can't be loaded" in result.stderr
    assert "python build_ffi.py --in-place" in result.stderr


def test_the_package_is_the_one_that_the_tests_import() -> None:
    assert native.__name__ == f"{PACKAGE}.system.native"
