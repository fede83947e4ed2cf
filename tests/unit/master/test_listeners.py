"""Which listeners an upgrade binds, keeps and gives up."""

from __future__ import annotations

from fdhandoff.master.listeners import match
from fdhandoff.master.outlet import Outlet


def outlet(text: str) -> Outlet:
    one = Outlet()
    one.text = text
    return one


def matched(bound: list[str], wanted: list[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    pairs, removed = match([outlet(text) for text in bound], wanted)
    return [(text, [one.text for one in found]) for text, found in pairs], [one.text for one in removed]


def test_the_same_stays_whatever_its_order() -> None:
    assert matched(["a=:1", "b=:2"], ["b=:2", "a=:1"]) == ([("b=:2", ["b=:2"]), ("a=:1", ["a=:1"])], [])


def test_a_new_one_comes_and_a_missing_one_goes() -> None:
    assert matched(["a=:1"], ["b=:2"]) == ([("b=:2", [])], ["a=:1"])


def test_a_new_name_or_option_is_no_new_listener() -> None:
    assert matched(["a=:1"], ["b=:1?backlog=5"]) == ([("b=:1?backlog=5", ["a=:1"])], [])


def test_of_two_with_one_address_each_finds_its_own() -> None:
    pairs, removed = matched(["a=h:0", "b=h:0"], ["b=h:0", "c=h:0"])
    assert (pairs, removed) == ([("b=h:0", ["b=h:0"]), ("c=h:0", ["a=h:0"])], [])


def test_both_families_of_one_address_go_together() -> None:
    assert matched(["a=localhost:1", "a=localhost:1"], []) == ([], ["a=localhost:1"] * 2)


def test_what_was_inherited_stays() -> None:
    assert matched([""], ["a=:1"]) == ([("a=:1", [])], [])
