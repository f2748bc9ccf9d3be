"""How long a run's steps take and how long they wait for their batches, all told and since the last log line."""

from __future__ import annotations

import time


class Clock:
    """Frames, seconds and waiting of a run: since its beginning, since the last log line, and of the step at hand."""

    def __init__(self) -> None:
        self._start = self._window = self._last = time.perf_counter()
        self._frames = self._window_frames = 0
        self._stalled = self._window_stalled = self._wait = 0.0
        self._fed = self._start

    def fed(self, stalled_s: float) -> None:
        """A step's batch is there; stalled_s: what all steps so far have waited for theirs."""
        self._wait, self._stalled, self._fed = stalled_s - self._stalled, stalled_s, time.perf_counter()

    def stepped(self, frames: int) -> tuple[float, float]:
        """The step is done: its seconds, and those it waited for its batch."""
        self._last = time.perf_counter()
        self._frames, self._window_frames = self._frames + frames, self._window_frames + frames
        return self._last - self._fed, self._wait

    def left_out(self, seconds: float) -> None:
        """Something else took these, which are not to slow the frames/s since the last log line."""
        self._window += seconds

    def window(self) -> tuple[float, float]:
        """Frames/s and share of waiting since the last call."""
        seconds = max(time.perf_counter() - self._window, 1e-9)
        found = self._window_frames / seconds, (self._stalled - self._window_stalled) / seconds
        self._window, self._window_frames, self._window_stalled = time.perf_counter(), 0, self._stalled
        return found

    def whole_run(self) -> dict[str, float]:
        """Seconds, frames/s and share of waiting since the beginning."""
        seconds = max(self._last - self._start, 1e-9)
        return {
            "seconds": seconds,
            "frames_per_s": self._frames / seconds,
            "stall_share": self._stalled / seconds,
        }
