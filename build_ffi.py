"""Builds the compiled module ``fdhandoff._native`` from ``src/fdhandoff.h`` (which is the cdef) and ``src/fdhandoff.c``.

``ffibuilder`` is what setup.py hands to setuptools. As a program:

    python build_ffi.py --in-place               compiles into the package folder, for development
    python build_ffi.py --vendor DESTINATION     copies the package, its C source and this file, for vendoring

A vendored copy carries src/ and build_ffi.py inside the package folder, and is built under its new name where it lies:

    python build_ffi.py --vendor yourserver/_vendor/fdhandoff
    python yourserver/_vendor/fdhandoff/build_ffi.py --in-place --name yourserver._vendor.fdhandoff

Environment: CC and CFLAGS as usual; FDHANDOFF_SANITIZE=address,undefined (or thread) builds with these sanitizers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# In a checkout the package folder lies beside this file; in a vendored copy it is this file's own folder.
PACKAGE = HERE / "fdhandoff" if (HERE / "fdhandoff").is_dir() else HERE
VENDORED = PACKAGE == HERE
HEADER = HERE / "src" / "fdhandoff.h"
SOURCE = HERE / "src" / "fdhandoff.c"

# Below Python 3.15 a free-threaded interpreter knows no stable ABI.
LIMITED_API = not (sysconfig.get_config_var("Py_GIL_DISABLED") and sys.version_info < (3, 15))

try:
    from cffi import FFI
except ImportError:
    FFI = None  # type: ignore[assignment,misc]


def cdef() -> str:
    """What stands in the header between its two markers, without comments."""
    text = HEADER.read_text(encoding="utf-8")
    match = re.search(r"/\* cdef: begin\b.*?\*/\n(.*?)/\* cdef: end \*/", text, re.DOTALL)
    if match is None:
        raise SystemExit(f"build_ffi.py: {HEADER} lacks the markers 'cdef: begin' and 'cdef: end'")
    return re.sub(r"/\*.*?\*/", " ", match[1], flags=re.DOTALL)


def flags() -> tuple[list[str], list[str]]:
    """The compiler's and the linker's extra arguments."""
    compiling = ["-std=c11", "-O2", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # What cffi generates around our code is not ours to keep free of these.
    compiling += ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]
    linking = []
    sanitizers = os.environ.get("FDHANDOFF_SANITIZE")
    if sanitizers:
        compiling += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
        linking += [f"-fsanitize={sanitizers}"]
    return compiling, linking


def ffi_builder(name: str = "fdhandoff", root: str = "") -> Any:
    """cffi's recipe for the compiled module of the package called ``name``; source paths begin with ``root``."""
    if FFI is None:
        raise SystemExit(f"build_ffi.py: cffi is missing: {sys.executable} -m pip install 'cffi>=1.17' setuptools")
    compiling, linking = flags()
    builder = FFI()
    builder.cdef(cdef())
    builder.set_source(
        f"{name}._native",
        '#include "fdhandoff.h"',
        sources=[os.path.join(root, "src", "fdhandoff.c")],
        include_dirs=[os.path.join(root, "src")],
        depends=[os.path.join(root, "src", "fdhandoff.h")],
        define_macros=[] if LIMITED_API else [("_CFFI_NO_LIMITED_API", "1")],
        extra_compile_args=compiling,
        extra_link_args=linking,
        py_limited_api=LIMITED_API,
    )
    return builder


def build_in_place(name: str) -> Path:
    """Compiles elsewhere and puts the result into the package folder in one step: a process that uses the one that was
    there before keeps it."""
    try:
        import setuptools  # noqa: F401
    except ImportError:
        raise SystemExit(
            f"build_ffi.py: setuptools is missing, which cffi compiles with: {sys.executable} -m pip install setuptools"
        ) from None
    builder = ffi_builder(name, root=str(HERE))
    with tempfile.TemporaryDirectory(prefix="fdhandoff-build-") as scratch:
        before = os.getcwd()
        os.chdir(scratch)  # setuptools reads a pyproject.toml or setup.cfg of the working directory
        try:
            built = Path(builder.compile(tmpdir=scratch, verbose=bool(os.environ.get("V"))))
        finally:
            os.chdir(before)
        target = PACKAGE / built.name
        with tempfile.NamedTemporaryFile(dir=PACKAGE, prefix=".native-", delete=False) as fresh:
            fresh.write(built.read_bytes())
        os.chmod(fresh.name, 0o755)
        os.replace(fresh.name, target)
    return target


def vendor(destination: Path) -> None:
    """Copies what a vendored copy needs: the package folder, and in it src/ and this file."""
    if destination.exists() and any(destination.iterdir()):
        raise SystemExit(f"build_ffi.py: {destination} is there and not empty; remove it first")
    skip = shutil.ignore_patterns("__pycache__", "*.so", ".native-*", "src", "build_ffi.py")
    shutil.copytree(PACKAGE, destination, ignore=skip, dirs_exist_ok=True)
    (destination / "src").mkdir()
    for file in (HEADER, SOURCE):
        shutil.copy2(file, destination / "src")
    shutil.copy2(HERE / "build_ffi.py", destination)
    license_file = HERE / "LICENSE"
    if license_file.exists():
        shutil.copy2(license_file, destination)


def main() -> None:
    parser = argparse.ArgumentParser(prog="build_ffi.py", description="Builds or vendors the package.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--in-place", action="store_true", help="compile into the package folder")
    action.add_argument("--vendor", metavar="DESTINATION", type=Path, help="copy what vendoring needs to this folder")
    parser.add_argument("--name", metavar="PACKAGE", help="the package's dotted name; a vendored copy's must be given")
    options = parser.parse_args()
    if options.vendor:
        vendor(options.vendor)
        print(f"copied to {options.vendor}; build it with: "
              f"python {options.vendor}/build_ffi.py --in-place --name YOUR.PACKAGE.{options.vendor.name}")  # fmt: skip
        return
    if VENDORED and not options.name:
        parser.error("a vendored copy is built under its own name: --name yourserver._vendor.fdhandoff")
    print(build_in_place(options.name or "fdhandoff"))


if __name__ == "__main__":
    main()
elif FFI is not None:
    ffibuilder = ffi_builder()
