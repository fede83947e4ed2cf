"""Flask's own server, upgraded without a failed request: ``run(app, …)`` in place of ``app.run(…)``, and
``python -m fdhandoff.servers.flask …`` in place of ``flask …``, with Flask's own options (``--app x run --port 8000``).
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

try:
    import flask.cli as command_line
    from werkzeug import serving
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(f"this needs Flask: pip install 'flask>=3.1' ({error})") from None

from ..adapting import named, service_name, split, taken
from ..errors import HandoffError
from .werkzeug import run_simple

if TYPE_CHECKING:
    from typing import Any

    from flask import Flask


def run(
    app: Flask,
    host: str | None = None,
    port: int | None = None,
    *,
    grace: float | None = 30.0,
    **options: Any,
) -> None:
    """``app.run(host, port, **options)`` until a newer generation serves, or until it is told to stop. The handoff's own
    options and what is raised: as for ``fdhandoff.servers.werkzeug.run_simple``."""
    ours = named(taken(options), service_name(app.import_name, "flask"))
    before = serving.run_simple
    serving.run_simple = partial(run_simple, grace=grace, **ours)
    try:
        app.run(host, port, **options)
    finally:
        serving.run_simple = before


def main() -> None:
    """Flask's own command line, our options taken out."""
    try:
        ours, words = split(sys.argv[1:])
        ours.setdefault("handoff_name", service_name(_application(words), "flask"))
        command_line.run_simple = partial(run_simple, **ours)  # type: ignore[attr-defined]
        command_line.cli.main(args=words, prog_name="python -m fdhandoff.servers.flask")
    except (ValueError, HandoffError) as error:
        print(f"fdhandoff: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _application(words: list[str]) -> str:
    """As ``--app`` or ``FLASK_APP`` names it."""
    import os

    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("--app", "-A"):
            return following
        if word.startswith("--app="):
            return word[6:]
    return os.environ.get("FLASK_APP", "app")


if __name__ == "__main__":
    main()
