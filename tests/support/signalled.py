"""A signal where Python's main thread does not feel it."""

from __future__ import annotations

import signal
import sys
import threading
import time


def by_another_thread(number: int) -> None:
    """As the kernel may choose to: the main thread, which waits by then, is not woken by it."""
    main = threading.get_ident()
    asleep = ("wait", "poll", "select", "_comes")
    started: list[bool] = []

    def send() -> None:
        while not started or sys._current_frames()[main].f_code.co_name not in asleep:
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), number)

    threading.Thread(target=send, daemon=True).start()
    started.append(True)  # that, too, had waited
