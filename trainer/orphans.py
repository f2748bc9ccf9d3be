"""A process that another one started ends when that one is gone, however it went: nothing trains on unseen."""

from __future__ import annotations

import os
import threading
import time

PARENT = "BEVCASK_PARENT"


def started_from_here() -> dict[str, str]:
    """What the environment of a process that this one starts should have, so that `end_with_parent` knows whom to look
    for: the parent may be gone before that is called, while torch is still being loaded."""
    return {PARENT: str(os.getpid())}


def end_with_parent(poll_s: float = 1.0) -> None:
    """From now on: once the process that started this one is gone, this one ends, with status 1 and without saving.
    The parent is the one that the environment names, else the present one."""
    named = os.environ.pop(PARENT, "")  # those that are started from here have another
    parent = int(named) if named.isdecimal() else os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
