"""What hypothesis draws: messages, entries, and ways to cut a stream into pieces as the kernel may."""

from __future__ import annotations

from hypothesis import strategies as st

from fdhandoff.listener import KIND_CONNECTION, KIND_FILE, KIND_LISTENER, Entry
from fdhandoff.protocol.messages import ALL, BYTES, NUMBER, TEXT, Items, Message

NUMBERS = st.integers(0, 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=30)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    name = draw(NAMES)
    if draw(st.booleans()):
        return Entry(name, KIND_FILE, mode=draw(st.integers(1, 2**32 - 1)), device=draw(NUMBERS), inode=draw(NUMBERS))
    return Entry(
        name,
        draw(st.sampled_from([KIND_LISTENER, KIND_CONNECTION])),
        family=draw(st.integers(0, 65535)),
        type=draw(st.integers(0, 65535)),
        protocol=draw(st.integers(0, 2**32 - 1)),
        listening=draw(st.booleans()),
        connected=draw(st.booleans()),
        v6only=draw(st.booleans()),
        cookie=draw(NUMBERS),
        address=draw(TEXTS),
        state=draw(st.binary(max_size=20)),
    )


def _values(kind: str) -> st.SearchStrategy:
    return {NUMBER: NUMBERS, TEXT: TEXTS, BYTES: st.binary(max_size=200)}[kind]


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, int]:
    """A message and the number of its descriptors."""
    cls = draw(st.sampled_from(ALL))
    if cls is Items:
        found = draw(st.lists(entries(), max_size=5))
        return Items(first=draw(NUMBERS), entries=found), len(found)
    values = {name: draw(_values(kind)) for _, name, kind, _ in cls.FIELDS}
    return cls(**values), draw(st.integers(0, cls.FDS))


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[int]:
    """Where a stream of ``size`` bytes is cut."""
    return sorted(draw(st.sets(st.integers(1, max(1, size - 1)), max_size=12)))
