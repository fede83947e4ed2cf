"""The program on a server's page does what the page says."""

from __future__ import annotations

import http.client
import os
import re
import sys
from pathlib import Path

import pytest

from ..cli import PACKAGE, environment
from ..master import Service, quick

PAGES = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "servers"

pytestmark = pytest.mark.skipif(not PAGES.is_dir(), reason="the documentation is not part of this copy")


NAMES = ["cheroot", "daphne", "flask", "granian", "sanic", "tornado", "twisted", "waitress", "wsgiref"]


@pytest.mark.parametrize("name", NAMES)
def test_the_program_on_the_page_is_upgraded(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'fdhandoff[test]'")
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    program = tmp_path / "program.py"
    program.write_text(found.group(1), encoding="utf-8")
    with Service(tmp_path, *quick("--ready", "http:/"), command=[sys.executable, str(program)]) as service:
        for number in (1, 2):
            assert f"generation {number}" in get(service.address()), service.running.text()
            if number == 1:
                service.upgrade()
        assert service.stop() == 0


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_the_django_application_on_the_page_is_upgraded(server: str, tmp_path: Path) -> None:
    for needed in ("django", server):
        pytest.importorskip(needed, reason=f"needs {needed}: pip install 'fdhandoff[test]'")
    text = (PAGES / "django-asgi.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    line = re.search(rf"-- python (-m fdhandoff\.servers\.{server} .*)", text)
    assert found is not None
    assert line is not None
    (tmp_path / "site_of_mine.py").write_text(found.group(1), encoding="utf-8")
    command = ["env", f"PYTHONPATH={tmp_path}{os.pathsep}{environment()['PYTHONPATH']}", sys.executable]
    words = line.group(1).replace("fdhandoff", PACKAGE).split()
    with Service(tmp_path, *quick("--ready", "http:/"), command=[*command, *words]) as service:
        for number in (1, 2):
            assert f"generation {number}" in get(service.address()), service.running.text()
            if number == 1:
                service.upgrade()
        assert service.stop() == 0


def get(address: tuple[str, int]) -> str:
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
