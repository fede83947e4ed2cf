"""A log is appended to, and opened anew where somebody moved it away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fdhandoff.errors import SystemCallError
from fdhandoff.system.logfile import open_log

from . import finish, python

WRITE = """
import os, sys
from {package}.system.logfile import reopen
path = sys.argv[1]
for word in ("one", "two"):
    reopen(path)
    os.write(1, word.encode() + b" out\\n")
    os.write(2, word.encode() + b" err\\n")
    os.rename(path, path + "." + word)
try:
    reopen(path + "/nowhere")
except OSError as error:
    os.write(2, str(error).encode())
print(len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 4, flush=True)
"""


def test_both_streams_go_to_the_file_that_is_there_now(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    finish(python(WRITE, str(log)))
    assert (tmp_path / "log.one").read_text() == "before\none out\none err\n"
    lines = (tmp_path / "log.two").read_text().splitlines()
    assert lines[:2] == ["two out", "two err"]
    assert lines[2].startswith(f"opening the log file {log}/nowhere: open failed"), "it stays what it was"
    assert lines[2].endswith("4"), "nothing else is open: the streams, and the listing's own"


def test_a_log_is_made_for_its_group_to_read_and_not_inherited(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        fd = open_log(str(tmp_path / "log"))
    finally:
        os.umask(before)
    try:
        assert os.fstat(fd).st_mode & 0o777 == 0o640
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_one_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemCallError, match=str(tmp_path)):
        open_log(str(tmp_path))
