"""A run scored while it predicts: batches come in, go into the metric and are forgotten, figures so far stand in the
bar.

What is kept of a frame is what `evaluation.array_metric.ArrayMetric` keeps, and of some tens of frames everything, to
look for mistakes: memory does not grow with the model's maps, images or clouds, and hardly with the split.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cache.frame import Detections, Frame, GroundTruth
from cache.store import FrameStore
from evaluation.array_metric import ArrayMetric
from evaluation.metrics import Metrics
from evaluation.mistakes import looked_at, mistakes_in_detections
from evaluation.subsets import EVERYTHING, Subset
from models.detector import Detector
from trainer.predict import Portion
from trainer.predict_run import RunModel, predict_run
from trainer.progress import Bar

_SHARE = 0.02  # of the time, at most, goes into figures that are only looked at


@dataclass(frozen=True)
class RunScore:
    """The figures of a run, and one sentence for each mistake seen in its detections."""

    metrics: Metrics
    mistakes: list[str]


def score_run(
    source: RunModel,
    model: Detector,
    store: FrameStore,
    rows: Sequence[int],
    *,
    processes: int = 1,
    subset: Subset = EVERYTHING,
) -> RunScore:
    """Predicts these rows, all annotated, with so many processes, and scores them meanwhile.

    source, model: as `trainer.predict_run.predict_run`, which says what is raised; DataError for boxes that the metric
    does not take.
    """
    receiver = _Receiver(store, rows, subset)
    with Bar("predict", len(rows)) as bar:
        predict_run(
            source, model, store, rows, receiver.add, processes=processes,
            progress=lambda done, total: bar.update(done, f"frames{receiver.said()}"),
        )  # fmt: skip
    return receiver.score()


def detections_of_run(
    source: RunModel, model: Detector, store: FrameStore, rows: Sequence[int], *, processes: int = 1
) -> dict[str, Detections]:
    """All that a run says of these rows, by token in their order, for an export or the devkit's own code."""
    found: dict[int, Detections] = {}

    def keep(portion: Portion) -> None:
        found.update(zip(portion.rows, portion.detections, strict=True))

    with Bar("predict", len(rows)) as bar:
        predict_run(
            source, model, store, rows, keep, processes=processes, progress=lambda n, _: bar.update(n, "frames")
        )
    return {store.tokens[row]: found[row] for row in rows}


class _Receiver:
    """Portions in; figures so far, and in the end, out."""

    def __init__(self, store: FrameStore, rows: Sequence[int], subset: Subset) -> None:
        self.store = store
        self.metric = ArrayMetric([store.tokens[row] for row in rows], subset=subset)
        self.place = {row: number for number, row in enumerate(rows)}
        self.watched = {rows[position] for position in looked_at(len(rows))}
        self.kept: dict[int, tuple[Frame, GroundTruth, Detections]] = {}
        self.text, self.due = "", time.monotonic()

    def add(self, portion: Portion) -> None:
        frames = [self.store.frame(row) for row in portion.rows]
        truth = [self.store.truth(row) for row in portion.rows]
        found = {frame.token: one for frame, one in zip(frames, portion.detections, strict=True)}
        self.metric.add(frames, truth, found)
        whole = zip(frames, truth, portion.detections, strict=True)
        self.kept.update((row, one) for row, one in zip(portion.rows, whole, strict=True) if row in self.watched)

    def said(self) -> str:
        """Figures of the frames seen; made anew as often as costs next to nothing."""
        start = time.monotonic()
        if start >= self.due:
            now = self.metric.so_far()
            self.text = f"  so far mAP {now.mAP:.3f}  NDS {now.NDS:.3f}"
            self.due = time.monotonic() + (time.monotonic() - start) / _SHARE
        return self.text

    def score(self) -> RunScore:
        kept = [self.kept[row] for row in sorted(self.kept, key=self.place.__getitem__)]
        frames, truth = [one[0] for one in kept], [one[1] for one in kept]
        found = {frame.token: one[2] for frame, one in zip(frames, kept, strict=True)}
        return RunScore(self.metric.result(), mistakes_in_detections(frames, truth, found))
