"""docs/reference/c-api.md is the header, arranged for reading. ``python tests/unit/test_c_api.py`` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "src" / "fdhandoff.h"
PAGE = ROOT / "docs" / "reference" / "c-api.md"

BEGINNING = """\
# C API

What `src/fdhandoff.h` declares: two files, C11, no dependency but the C library. [How to use them](../how-to/c-server.md).
This page is made from the header (`python tests/unit/test_c_api.py`), which is the contract.

"""


def prose(comment: str) -> str:
    lines = [
        re.sub(r"^ ?\* ?", "", line.strip())
        for line in comment.strip().removeprefix("/*").removesuffix("*/").splitlines()
    ]
    return "\n".join(line.rstrip() for line in lines).strip()


def render(header: str) -> str:
    """The conventions, then each section: its comments as text, its declarations as code."""
    intro = re.search(r"/\*.*?\*/", header, re.DOTALL)
    assert intro is not None
    conventions = prose(intro[0]).partition("CONVENTIONS")[2].partition("SPDX")[0]
    parts = [BEGINNING, "## Conventions\n\n```\n", conventions.strip("\n").rstrip(), "\n```\n"]
    body = header.partition("/* cdef: begin")[2].partition("*/")[2].partition("/* cdef: end */")[0]
    for title, section in re.findall(r"/\* --- (.*?) -+ \*/\n(.*?)(?=/\* --- |\Z)", body, re.DOTALL):
        parts.append(f"\n## {title[0].upper()}{title[1:]}\n")
        for block in re.split(r"\n\s*\n", section.strip("\n")):
            comment = re.match(r"/\*.*?\*/", block, re.DOTALL)
            if comment:
                text = re.sub(
                    r"(?<![`\w])(fdh_\w+(?:\(\))?|FDH_\w+|-E[A-Z]+|E[A-Z]{4,}|SO_\w+)(?!\w)", r"`\1`", prose(comment[0])
                )
                text = text.replace("*", r"\*")
                parts.append(f"\n{text}\n")
                block = block[comment.end() :].strip("\n")
            if block.strip():
                parts.append(f"\n```c\n{block}\n```\n")
    return "".join(parts)


@pytest.mark.skipif(not (HEADER.exists() and PAGE.exists()), reason="the documentation is not part of this copy")
def test_the_page_is_what_the_header_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(HEADER.read_text(encoding="utf-8")), (
        "the header has changed: python tests/unit/test_c_api.py"
    )


if __name__ == "__main__":
    PAGE.write_text(render(HEADER.read_text(encoding="utf-8")), encoding="utf-8")
