"""Every interleaving of the two tables: never two owners, and nobody only where that is known."""

from __future__ import annotations

import pytest

from fdhandoff.protocol.states import OWNER, OWNS, TABLES, TAKER, is_final
from tests.support.model import World, explore, forced, story


@pytest.fixture(scope="module")
def worlds() -> dict[World, tuple[World | None, str]]:
    return explore()


def test_never_two_owners_in_any_order_of_words_deaths_and_losses(worlds: dict) -> None:
    for world in worlds:
        assert len(world.owners()) < 2, story(worlds, world)


def test_somebody_owns_whenever_both_live_and_nothing_is_on_its_way(worlds: dict) -> None:
    known = {
        # The commit was neither confirmed nor disproved, and the old side listens no more: it returned, or heard nonsense.
        ("COMMITTED", "FAILED"): lambda world: not world.owner.open or world.owner.deaf,
        # The new side stopped accepting by itself; the old one's drain, or the end of either, gives it the service again.
        ("DRAINING", "GIVING_BACK"): lambda world: world.owner.open,
        # The same, with nonsense between them.
        ("COMMITTED", "GIVING_BACK"): lambda world: world.owner.deaf,
        ("PROBATION", "GIVING_BACK"): lambda world: world.owner.deaf,
        ("TAKEN_BACK", "GIVING_BACK"): lambda world: False,
    }
    for world in worlds:
        if world.owner.alive and world.taker.alive and not forced(world) and not world.owners():
            exception = known.get((world.owner.state, world.taker.state))
            deaf = world.taker.deaf and world.taker.state == "GIVING_BACK"
            assert deaf or (exception and exception(world)), story(worlds, world)


def test_a_survivor_becomes_or_stays_the_owner_or_holds_nothing(worlds: dict) -> None:
    for world in worlds:
        if forced(world) or world.owner.alive == world.taker.alive or world.owners():
            continue
        if world.owner.alive:
            state = world.owner.state
            # It left when it had given up waiting for a confirmation, or after probation; else it would have noticed.
            assert state in ("DRAINING", "DONE") or (state == "COMMITTED" and not world.owner.open), story(
                worlds, world
            )
        else:
            # Not taken yet, or given up before: every descriptor is closed in these states.
            assert world.taker.state in ("FAILED", "REFUSED", "GAVE_BACK"), story(worlds, world)


def test_every_state_is_reached_and_every_final_state_is_named_by_who_owns(worlds: dict) -> None:
    for role, table in TABLES.items():
        reached = {world.side(role).state for world in worlds}
        assert reached == set(table), f"{role}: never {set(table) - reached}"
        assert OWNS[role] <= set(table)


def test_the_tables_lead_only_to_states_that_they_have() -> None:
    for role, table in TABLES.items():
        for state, steps in table.items():
            assert set(steps.values()) <= set(table), (role, state)


def test_a_final_state_can_be_reached_from_every_state() -> None:
    for role, table in TABLES.items():
        for state in table:
            reached, todo = {state}, [state]
            while todo:
                new = set(table[todo.pop()].values()) - reached
                reached |= new
                todo += new
            assert any(is_final(role, end) for end in reached), (role, state)


def test_ownership_changes_with_commit_and_with_proofs_only() -> None:
    gains = {
        (role, state, step)
        for role, table in TABLES.items()
        for state, steps in table.items()
        for step, to in steps.items()
        if to in OWNS[role] and state not in OWNS[role]
    }
    assert gains == {
        (TAKER, "WAITING", "got COMMIT"),
        (TAKER, "TAKEN", "death"),
        (TAKER, "WAITING", "death"),
        (TAKER, "GIVING_BACK", "got REFUSED"),
        (TAKER, "GIVING_BACK", "got DRAINED"),
        (TAKER, "GIVING_BACK", "unsent"),
        (TAKER, "GIVING_BACK", "eof"),
        (TAKER, "GIVING_BACK", "death"),
        (OWNER, "COMMITTED", "death"),
        (OWNER, "COMMITTED", "unsent"),
        (OWNER, "PROBATION", "death"),
        (OWNER, "RECLAIMING", "say ABORT"),
        (OWNER, "RECLAIMING", "unsent"),
        (OWNER, "RECLAIMING", "death"),
    }
