"""A process that another one started ends when that one is gone, however it went: nothing trains on unseen."""

from __future__ import annotations

import os
import threading
import time


def end_with_parent(poll_s: float = 1.0) -> None:
    """From now on: once the process that started this one is gone, this one ends, with status 1 and without saving."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
