"""A second process for one function: forked, so that it is real and starts at once; it hands its result back as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


class Forked:
    """Runs ``work()`` in a child; ``result()`` is what it returned. The child ends without any clean-up."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        try:
            os.close(self._read)
            data = json.dumps(work()).encode()
            while data:
                data = data[os.write(write, data) :]
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def result(self) -> Any:
        with os.fdopen(self._read, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with status {status}"
        return json.loads(data)

    def end(self) -> None:
        """It is killed, whatever it does, and nothing of it is left."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._read)
