"""The package is a house of floors, and imports only go down. ``ast`` sees every import, also those inside functions and
those for type checkers alone. The package's own ``__init__`` is the façade and may import from every floor."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fdhandoff

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(fdhandoff.__file__).parent
WORDS = {"errors", "listener", "generation", "deadline"}
FACES = {"servers", "supervisors", "releases", "jobs", "daemon", "testing"}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").parts
    for path in PACKAGE.rglob("*.py")
    if path.name != "build_ffi.py" and path != PACKAGE / "__init__.py"
)


def floor(room: str) -> int:
    """The floor of a module or folder at the package's top. The command line stands on the other faces; ``python -m`` comes in
    through the roof."""
    if room in WORDS:
        return 0
    return {"protocol": 1, "system": 2, "cli": 5, "__main__": 6}.get(room, 4 if room in FACES else 3)


def imports(module: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line, and dotted name as parts from the package's top; absolute ones begin with an empty part."""
    tree = ast.parse(PACKAGE.joinpath(*module).with_suffix(".py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, ("", *alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = module[: len(module) - node.level] if node.level else ("",)
            start += tuple((node.module or "").split(".")) if node.module else ()
            yield from ((node.lineno, (*start, alias.name)) for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=".".join)
def test_imports_only_go_down(module: tuple[str, ...]) -> None:
    here = module[0]
    for line, target in imports(module):
        where = f"{'/'.join(module)}.py:{line}"
        there = target[0]
        if there == "":
            assert target[1] != "fdhandoff", f"{where}: the package's own modules are imported relatively"
            continue
        if "_native" in target:
            assert module == ("system", "native"), f"{where}: only system/native.py touches the compiled module"
            continue
        if there == "__version__":
            continue
        assert floor(there) <= floor(here), f"{where}: {here} (floor {floor(here)}) looks up to {'.'.join(target)}"
        assert {here, there} != {"protocol", "system"}, f"{where}: the protocol and the system do not know each other"
        assert here == there or floor(here) != 4 or floor(there) != 4, f"{where}: faces do not know each other"


def test_the_house_has_rooms() -> None:
    assert {floor(module[0]) for module in MODULES} >= {0, 1, 2, 3}
