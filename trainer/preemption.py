"""A run that is asked to stop: SIGTERM, as schedulers send before they take a machine away, or Ctrl-C.

The signal only leaves a note. All ranks read each other's notes before every step, so that they stop after the same one
and save it. SIGTERM may come while stores are opened: then the run stops before its first step.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType

from cache.errors import BevcaskError

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again
_IMPATIENT_S = 3.0


class PreemptedError(BevcaskError):
    """The run was asked to stop and has saved its state. Exit status 75, or Ctrl-C's where a person stopped it."""

    def __init__(self, message: str, by_hand: bool = False) -> None:
        super().__init__(message)
        self.exit_status = 130 if by_hand else PREEMPTED


class StopRequest:
    """Context manager that takes SIGTERM and SIGINT while it is open; only in the main thread, elsewhere it takes none.

    A second SIGINT some seconds after the first raises KeyboardInterrupt at once, without saving.
    """

    def __init__(self) -> None:
        self.asked = self.by_hand = False
        self._first = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.asked and now - self._first > _IMPATIENT_S:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._first = True, now
            self.by_hand = number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
