"""The WSGI application of ``wsgi.py`` by werkzeug's own server."""

from __future__ import annotations

import sys

from probation import SECONDS
from wsgi import app

from fdhandoff.servers.werkzeug import run_simple

port, path = sys.argv[1:]
run_simple("127.0.0.1", int(port), app, handoff_path=path, handoff_probation=SECONDS, grace=20)
