"""Words as a shell would have them, held against ``shlex``."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import example, given, settings, strategies

from fdhandoff.master.splitting import split_words


@settings(max_examples=500)
@given(strategies.text(alphabet="ab \t\n\\\"'#$=é", max_size=14))
@example("a\\")
@example("'' \"\"")
@example('"a\\"b" c\\ d')
def test_words_are_those_of_shlex(text: str) -> None:
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"ends with a backslash|not closed"):
            split_words(text)
    else:
        assert split_words(text) == expected
