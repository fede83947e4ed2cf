"""A command in one string, split into words as a shell does it; no shell runs it."""

from __future__ import annotations

_BLANK = " \t\r\n"


def split_words(text: str) -> list[str]:
    """As ``shlex.split``, which would bring the regular expressions into a process that stays. ``ValueError`` for a quotation
    that is not closed."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    letters = iter(text)
    for letter in letters:
        if quote:
            assert word is not None
            if letter == quote:
                quote = ""
            elif letter == "\\" and quote == '"':
                following = next(letters, "")
                word += following if following in ('"', "\\") else f"\\{following}"
            else:
                word += letter
        elif letter in _BLANK:
            if word is not None:
                words.append(word)
            word = None
        elif letter in "'\"":
            quote, word = letter, word or ""
        elif letter == "\\":
            escaped = next(letters, None)
            if escaped is None:
                raise ValueError(f"{text!r} ends with a backslash")
            word = (word or "") + escaped
        else:
            word = (word or "") + letter
    if quote:
        raise ValueError(f"{text!r} has a quotation that is not closed")
    return words if word is None else [*words, word]
