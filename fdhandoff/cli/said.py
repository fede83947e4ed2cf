"""The options of ``run`` on another verb's command line: read as ``run`` reads them, and kept as said, to be passed on."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from ..master.config import SETTINGS
from .arguments import checked
from .outcome import PROGRAM
from .run import help_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Container
    from typing import Any

    from ..master.config import Setting


def own_program() -> list[str]:
    """The words that start this program again."""
    if os.path.basename(sys.argv[0]) == PROGRAM:
        found = shutil.which(sys.argv[0])
        if found is not None:
            return [os.path.abspath(found)]
    return [sys.executable, "-m", __name__.rpartition(".")[0].rpartition(".")[0]]


def add_settings(parser: argparse._ActionsContainer, without: Container[str]) -> None:
    """Each of them but those whose names are in ``without``."""
    for setting in _settings(without):
        parser.add_argument(
            f"--{setting.name}",
            dest=setting.attribute,
            metavar=setting.metavar,
            type=checked(_Text(setting)),
            default=argparse.SUPPRESS,
            help=help_of(setting.help, setting.default, f"--{setting.name} {setting.example}", repeat=setting.repeat),
            **({"action": "append"} if setting.repeat else {}),  # type: ignore[arg-type]
        )


class Said:
    """What was said of them. ``texts`` and ``values`` by attribute; of one that may be repeated a list."""

    def __init__(self, options: Namespace, without: Container[str]) -> None:
        self._settings = [one for one in _settings(without) if hasattr(options, one.attribute)]
        self.texts: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        for setting in self._settings:
            said = getattr(options, setting.attribute)
            pairs = said if setting.repeat else [said]
            self.texts[setting.attribute] = [text for text, _ in pairs]
            values = [value for _, value in pairs]
            self.values[setting.attribute] = values if setting.repeat else values[0]

    def words(self, without: Container[str] = ()) -> list[str]:
        """As they are said to ``run``."""
        return [
            f"--{setting.name}={text}"
            for setting in self._settings
            if setting.name not in without
            for text in self.texts[setting.attribute]
        ]


def setting_named(name: str) -> Setting | None:
    return next((setting for setting in SETTINGS if setting.name == name), None)


def _settings(without: Container[str]) -> list[Setting]:
    return [setting for setting in SETTINGS if setting.name not in without]


class _Text:
    """Reads an option, and keeps the text: (text, value)."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def __call__(self, text: str) -> tuple[str, Any]:
        return text, self._setting.read(text)
