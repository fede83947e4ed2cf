"""Writes the golden vectors and the state tables of the protocol's reference: ``python -m tests.golden.generate``.

``v1/<message>.json``: one message, its fields and its bytes. ``v1/conversation-<name>.json``: who says what, in order, with the
bytes and the number of descriptors. They are the wire format of version 1 and never change; new fields get new files.
``docs/reference/protocol.md``: what stands between its ``<!-- generated: … -->`` markers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fdhandoff.listener import KIND_CONNECTION, KIND_CONTROL, KIND_COUNTERS, KIND_FILE, KIND_LISTENER, Entry
from fdhandoff.offer import CONTROL_NAME, COUNTERS_NAME
from fdhandoff.protocol import frames
from fdhandoff.protocol.messages import (
    ALL,
    Abort,
    Ack,
    Commit,
    Drained,
    Event,
    Hello,
    Items,
    Message,
    Offer,
    Progress,
    Ready,
    Refused,
    Request,
    Response,
    Serving,
    State,
    Taken,
)
from fdhandoff.protocol.states import FIRST, GIVER, MOVING, OWNER, OWNS, RECEIVER, TABLES, is_final

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "v1"
REFERENCE = HERE.parents[1] / "docs" / "reference" / "protocol.md"

HTTP = Entry("http", KIND_LISTENER, family=2, type=1, protocol=6, listening=True, cookie=4097, address="0.0.0.0:80")
V6 = Entry(
    "http6", KIND_LISTENER, family=10, type=1, protocol=6, listening=True, v6only=True, cookie=4098, address="[::]:80"
)
DNS = Entry("dns", KIND_LISTENER, family=2, type=2, protocol=17, cookie=4099, address="127.0.0.1:53")
LOCAL = Entry("local", KIND_LISTENER, family=1, type=5, listening=True, cookie=4100, address="unix:/run/app.sock")
LOG = Entry("log", KIND_FILE, mode=0o100644, device=65025, inode=131072)
CLIENT = Entry(
    "client",
    KIND_CONNECTION,
    family=2,
    type=1,
    protocol=6,
    connected=True,
    cookie=4101,
    address="10.0.0.1:80",
    state=b"{}",
)
CONTROL = Entry(CONTROL_NAME, KIND_CONTROL, family=1, type=1, listening=True, cookie=4102, address="unix:/run/h.sock")
COUNTERS = Entry(COUNTERS_NAME, KIND_COUNTERS, mode=0o100777, device=1, inode=1043)

SAMPLES: dict[str, tuple[Message, int]] = {
    "hello": (Hello(min_version=1, max_version=1, pid=4242, software="fdhandoff", generation=0), 1),
    "hello-least": (Hello(min_version=1, max_version=3), 0),
    "offer": (
        Offer(
            version=1, generation=2, items=3, state_size=5, pid=4241, software="fdhandoff", ready_ms=60000, probation_ms=5000,
            strict=1,
        ),
        1,
    ),
    "offer-least": (Offer(version=1, generation=1, items=0, state_size=0), 0),
    "items": (Items(first=0, entries=[HTTP, LOG, CONTROL]), 3),
    "items-kinds": (Items(first=3, entries=[V6, DNS, LOCAL, CLIENT, COUNTERS]), 5),
    "ack": (Ack(items=3), 0),
    "state": (State(data=b"hello"), 0),
    "taken": (Taken(items=3), 0),
    "ready": (Ready(), 0),
    "commit": (Commit(), 0),
    "commit-final": (Commit(final=1, state_size=3), 0),
    "serving": (Serving(), 0),
    "progress": (Progress(active=12, oldest_ms=3400, deadline_ms=30000), 0),
    "drained": (Drained(finished=90, forced=1), 0),
    "abort": (Abort(code="deadline", reason="not ready in time"), 0),
    "abort-least": (Abort(), 0),
    "refused": (
        Refused(code="in-progress", reason="pid 4243 is taking over already", pid=4243, min_version=1, max_version=1), 0
    ),
    "request": (Request(min_version=1, max_version=1, verb="status", body=b'{"wait":true}'), 0),
    "event": (Event(body=b'{"schema":1,"step":"offer"}'), 0),
    "response": (Response(code="ok", body=b'{"schema":1,"pid":4241}'), 0),
}  # fmt: skip

OLD, NEW = "owner", "taker"
BEGINNING: list[tuple[str, str | Message, int]] = [
    (NEW, "hello", 1),
    (OLD, "offer", 1),
    (OLD, "items", 3),
    (NEW, "ack", 0),
]
TAKING = [*BEGINNING, (OLD, "state", 0), (NEW, "taken", 0)]
SERVED = [*TAKING, (NEW, "ready", 0), (OLD, "commit", 0), (NEW, "serving", 0)]
CONVERSATIONS: dict[str, list[tuple[str, str | Message, int]]] = {
    "whole": [*SERVED, (OLD, "progress", 0), (OLD, "drained", 0)],
    "final-state": [
        *TAKING, (NEW, "ready", 0), (OLD, State(data=b"fin"), 0), (OLD, "commit-final", 0), (NEW, "serving", 0)
    ],
    "not-ready": [*TAKING, (OLD, "abort", 0)],
    "given-back": [*SERVED, (NEW, Abort(code="given-back"), 0), (OLD, Abort(code="taken-back"), 0)],
    "in-progress": [(NEW, "hello", 1), (OLD, "refused", 0)],
    "moving": [
        (GIVER, "hello-least", 0), (RECEIVER, Ack(items=0), 0), (GIVER, Items(first=0, entries=[CLIENT, CLIENT]), 2),
        (RECEIVER, Ack(items=2), 0), (GIVER, Items(first=2, entries=[CLIENT]), 1), (RECEIVER, Abort(code="stopped"), 0),
    ],
    "verb": [(NEW, "request", 0), (OLD, "event", 0), (OLD, "response", 0)],
}  # fmt: skip


def plain(value: Any) -> Any:
    """For JSON: bytes as ``{"hex": …}``, entries as objects."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, Entry):
        return {field: plain(getattr(value, field)) for field in Entry.__slots__}
    return [plain(one) for one in value] if isinstance(value, list) else value


def vector(message: Message, n_fds: int) -> dict[str, Any]:
    return {
        "message": type(message).__name__.upper(),
        "type": message.TYPE,
        "descriptors": n_fds,
        "fields": {name: plain(getattr(message, name)) for _, name, _, _ in message.FIELDS},
        "hex": frames.encode(message, n_fds).hex(),
    }


def vectors() -> dict[str, Any]:
    """File name → content."""
    found: dict[str, Any] = {f"{name}.json": vector(*sample) for name, sample in SAMPLES.items()}
    for name, steps in CONVERSATIONS.items():
        found[f"conversation-{name}.json"] = [
            {"from": who, **vector(SAMPLES[what][0] if isinstance(what, str) else what, n)} for who, what, n in steps
        ]
    return found


# --- the reference -----------------------------------------------------------------------------------------


def state_table(role: str) -> str:
    lines = ["| state | owns | step → next state |", "|---|---|---|"]
    for state, steps in TABLES[role].items():
        first = " (first)" if state == FIRST[role] else ""
        ways = ", ".join(f"`{step}` → {to}" for step, to in steps.items()) or "(final)"
        lines.append(f"| {state}{first} | {'yes' if state in OWNS[role] else 'no'} | {ways} |")
    return "\n".join(lines)


def diagram(role: str) -> str:
    """The steps that lead elsewhere, those with one target together; the failures of the first states are in the table."""
    failed = "ABORTED" if role == OWNER else "FAILED"
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {FIRST[role]}"]
    for state, steps in TABLES[role].items():
        ways: dict[str, list[str]] = {}
        for step, to in steps.items():
            if to != state:
                ways.setdefault(to, []).append(step)
        for to, which in ways.items():
            label = "any failure" if to == failed and len(which) > 2 else ", ".join(which)
            lines.append(f"    {state} --> {to}: {label}")
        if is_final(role, state):
            lines.append(f"    {state} --> [*]")
    return "\n".join([*lines, "```"])


def message_table() -> str:
    lines = ["| type | message | descriptors | fields: tag name type (default) |", "|---|---|---|---|"]
    for cls in ALL:
        fields = "; ".join(
            f"{tag} `{name}` {kind}" + ("" if default is None or default == () else f" ({_default(default)})")
            for tag, name, kind, default in cls.FIELDS
        )
        n_fds = "as many as entries, 1 to 252" if cls is Items else "0 or 1" if cls.FDS else "0"
        lines.append(f"| {cls.TYPE} | {cls.__name__.upper()} | {n_fds} | {fields or 'none'} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else f'"{value}"' if isinstance(value, str) else str(value)


def move_table(role: str) -> str:
    lines = ["| state | step → next state |", "|---|---|"]
    for state, steps in MOVING[role].items():
        first = " (first)" if state == FIRST[role] else ""
        lines.append(f"| {state}{first} | {', '.join(f'`{step}` → {to}' for step, to in steps.items()) or '(final)'} |")
    return "\n".join(lines)


SECTIONS = {
    "owner-diagram": lambda: diagram(OWNER),
    "owner-table": lambda: state_table(OWNER),
    "taker-diagram": lambda: diagram("taker"),
    "taker-table": lambda: state_table("taker"),
    "giver-table": lambda: move_table(GIVER),
    "receiver-table": lambda: move_table(RECEIVER),
    "messages": message_table,
}


def with_sections(text: str) -> str:
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
        assert count == 1, f"{REFERENCE} has {count} places for {name}"
    return text


def as_text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, content in vectors().items():
        (FOLDER / name).write_text(as_text(content))
    REFERENCE.write_text(with_sections(REFERENCE.read_text()))


if __name__ == "__main__":
    main()
