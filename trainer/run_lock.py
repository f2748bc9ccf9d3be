"""One training at a time in a run's folder: two would write each other's log, and remove each other's checkpoints.

The lock is the kernel's (flock) on the folder itself: no file, and gone with its holder however that ends. File systems
without such locks, as some shared ones, go without.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from cache.errors import ConfigError

WAIT_S = 60.0  # for a holder that is ending, as an orphan or a run that saves after SIGTERM
_POLL_S = 0.2


class RunLock:
    """Context manager; holds nothing until `take`."""

    def __init__(self) -> None:
        self._held: int | None = None

    def __enter__(self) -> RunLock:
        return self

    def take(self, run_dir: Path) -> None:
        """Holds the folder from now on, where it is there. ConfigError where another process goes on holding it."""
        if self._held is not None or not run_dir.is_dir():
            return
        folder, ends = os.open(run_dir, os.O_RDONLY), time.monotonic() + WAIT_S
        try:
            while not _locked(folder):
                if time.monotonic() >= ends:
                    raise ConfigError(
                        f"{run_dir}: another process trains in it; wait for its end, or choose another folder"
                    )
                time.sleep(_POLL_S)
        except BaseException:
            os.close(folder)
            raise
        self._held = folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True
