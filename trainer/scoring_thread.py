"""The metric of one validation in a thread of its own: portions of predictions in, figures out, while training goes on.

numpy lets go of the interpreter lock in most of what it does, so that training loses little; after the last portion of
the 6,019 samples of nuScenes' val split the figures take seconds.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from cache.errors import DataError
from cache.store import FrameStore
from evaluation.array_metric import ArrayMetric
from evaluation.metrics import Metrics
from trainer.loader import CLOSE_S, StuckError
from trainer.loader_options import loader_options
from trainer.metrics import VALIDATION
from trainer.observer import Found
from trainer.predict import Portion
from trainer.watch import Watch, watched

Figures = dict[str, float | str | bool]


class ScoringThread:
    """Scores the rows as their portions come. keep: called with the figures in the thread, says whether they are the
    best so far; after: called last, in the thread too, where there is something to draw."""

    def __init__(self, store: FrameStore, rows: Sequence[int], step: int, keep: Callable[[Metrics], bool]) -> None:
        self._store, self._rows, self._step, self._keep = store, rows, step, keep
        self._portions: queue.SimpleQueue[Portion | None] = queue.SimpleQueue()
        self._cancelled = False
        self._predict_s = 0.0
        self._after: Callable[[], None] | None = None
        self._figures: Figures = {}
        self._error: BaseException | None = None
        self._watch = Watch()
        self._thread = threading.Thread(target=self._run, name="validation", daemon=True)
        self._thread.start()

    def add(self, portion: Portion) -> None:
        """Some of the rows; returns at once."""
        self._portions.put(portion)

    def close(self, predict_s: float, after: Callable[[], None] | None = None) -> None:
        """All rows are there; returns at once."""
        self._predict_s, self._after = predict_s, after
        self._portions.put(None)

    def cancel(self) -> None:
        """Gives up, and waits until the thread has ended; not for a read that hangs."""
        self._cancelled = self._watch.left = True
        self._portions.put(None)
        self._thread.join(CLOSE_S)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Found:
        """Waits for the figures. Raises what went wrong, but for boxes that can't be scored: that is a figure too;
        StuckError where a read of a store does not end in time."""
        limit = loader_options().stuck_s
        while self._thread.is_alive():
            self._thread.join(1.0 if limit is None else min(limit / 4, 1.0))
            idle = time.monotonic() - self._watch.since
            if limit is not None and self._watch.stage == "read" and idle >= limit and self._thread.is_alive():
                raise StuckError(
                    f"the validation after step {self._step} is stuck: {idle:.0f} s at {self._watch.where()}; check "
                    "that disk or network, or give it more time with --stuck-after"
                )
        if self._error is not None:
            raise self._error
        return Found(self._step, self._figures)

    def _run(self) -> None:
        try:
            with watched(self._watch):
                self._figures = self._score()
                if self._after is not None and not self._cancelled:
                    self._after()
        except BaseException as error:
            self._error = error

    def _score(self) -> Figures:
        metric = ArrayMetric([self._store.tokens[row] for row in self._rows])
        wrong = ""
        while (portion := self._portions.get()) is not None and not self._cancelled:
            frames = [self._store.frame(row) for row in portion.rows]
            truth = [self._store.truth(row) for row in portion.rows]
            found = {frame.token: one for frame, one in zip(frames, portion.detections, strict=True)}
            try:
                if not wrong:
                    metric.add(frames, truth, found)
            except DataError as error:
                wrong = str(error)
        if self._cancelled:
            return {}
        start = time.perf_counter()
        said: Figures = {f"{VALIDATION}frames": len(self._rows), f"{VALIDATION}predict_s": round(self._predict_s, 3)}
        if wrong:
            return {**said, f"{VALIDATION}failed": wrong}
        metrics = metric.result()
        if self._cancelled:
            return {}
        best = self._keep(metrics)
        figures = {**metrics.summary(), **{f"AP/{name}": metrics.class_ap(name) for name in metrics.ap}}
        said |= {f"{VALIDATION}{key}": value for key, value in figures.items()}
        return {**said, f"{VALIDATION}best": best, f"{VALIDATION}metric_s": round(time.perf_counter() - start, 3)}
