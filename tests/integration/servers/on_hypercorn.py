"""The ASGI application of these tests on hypercorn with its adapter: a port, a handoff path, and options of hypercorn's."""

from __future__ import annotations

import sys

from probation import SECONDS

from fdhandoff.servers import hypercorn

# This file is hypercorn's configuration, too: its own limit would have a busy client connect again now and then.
keep_alive_max_requests = 1_000_000


def main() -> None:
    port, path, *options = sys.argv[1:]
    sys.argv[1:] = [
        "tests.integration.servers.app:app", "--bind", f"127.0.0.1:{port}", "--keep-alive", "60", "--graceful-timeout", "20",
        "--config", f"file:{__file__}", "--handoff-path", path, "--handoff-probation", f"{SECONDS}s", *options,
    ]  # fmt: skip
    sys.exit(hypercorn.main())


if __name__ == "__main__":
    main()
