"""The reference pages know every public name, every error and every variable; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fdhandoff
from fdhandoff import errors, events, metrics
from fdhandoff.system import environment

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"]) if DOCS.is_dir() else []

pytestmark = pytest.mark.skipif(not PAGES, reason="the documentation is not part of this copy")

ERRORS = sorted(
    name
    for name, thing in vars(errors).items()
    if isinstance(thing, type) and issubclass(thing, errors.HandoffError) and thing.__module__ == errors.__name__
)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ERRORS)
def test_each_error_is_listed_under_its_base(name: str) -> None:
    rows = [line for line in page("reference/errors.md").splitlines() if re.match(rf"\| *\W*`{name}`", line)]
    assert rows, f"errors.md has no row for {name}"
    assert name in fdhandoff.__all__


@pytest.mark.parametrize("name", [name for name in fdhandoff.__all__ if name not in ERRORS])
def test_each_public_name_has_its_paragraph(name: str) -> None:
    assert re.search(rf"^###? `{name}\b", page("reference/api.md"), re.MULTILINE), f"api.md has no heading for {name}"


def test_each_public_method_of_a_service_is_described() -> None:
    text = page("reference/api.md")
    internal = {
        "become", "check_turn", "claim_turn", "finish", "forget_in_child", "make_state", "offer_again", "say", "take_back",
        "tell", "tell_health", "answers_for_health", "event", "upgrade_in_turn", "ask_stop", "leave", "drain_seconds_left",
        "may_accept", "hurried",
    }  # fmt: skip
    names = [name for name in vars(fdhandoff.Service) if not name.startswith("_") and name not in internal]
    assert [name for name in names if not re.search(rf"`{name}\b", text)] == []


@pytest.mark.parametrize("name", [*environment.FOR_ONE_PROCESS, environment.RUNTIME_DIR])
def test_each_variable_is_described(name: str) -> None:
    assert f"`{name}" in page("reference/environment.md")


@pytest.mark.parametrize("event", events.EVENTS)
def test_each_event_is_described(event: str) -> None:
    fields = ", ".join(f"`{field}`" for field in events.EVENTS[event])
    assert re.search(rf"^\| `{re.escape(event)}` \| [^|]+ \| {fields} \|", page("reference/events.md"), re.MULTILINE)


@pytest.mark.parametrize("family", metrics.FAMILIES, ids=lambda family: family.name)
def test_each_metric_is_described(family: metrics.Family) -> None:
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in ("service", *family.labels))
    assert f"| `{name}` | {family.kind} | {labels} | {family.help} |" in page("reference/metrics.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"
