"""What a teacher store, a run or a submission file says of a split, scored: one function a source.

Each has a lean way, for a table alone: boxes go into the metric in portions and are forgotten. What is asked for beyond
it (a report, an export, the devkit's own code) has its price in memory, which the function says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import DataError
from cache.frame import Detections, Frame, GroundTruth
from cache.layout import teacher_place
from cache.same_frames import require_same_frames
from cache.store import FrameStore, TeacherStore
from evaluation import array_metric, store_arrays
from evaluation.match_table import BoxesOf, detections_of, file_boxes_of
from evaluation.metrics import Metrics
from evaluation.mistakes import looked_at, mistakes_in_boxes, mistakes_in_detections
from evaluation.submission import export_submission, require_annotations, submission_meta
from evaluation.submission_file import read_submission
from evaluation.subsets import Subset
from studies.scored import Kind


@dataclass(frozen=True)
class Part:
    """What is scored: rows: the key frames of a split of a store that count; whole: all of them; subset: which of their
    boxes; labelled: whether all have annotations, without which nothing is scored."""

    store: FrameStore
    split: str
    whole: Sequence[int]
    rows: Sequence[int]
    subset: Subset
    labelled: bool

    def frames(self, some: Sequence[int] | None = None) -> list[Frame]:
        """Of these rows, or of all that count."""
        return [self.store.frame(row) for row in (self.rows if some is None else some)]

    def truth(self, some: Sequence[int] | None = None) -> list[GroundTruth]:
        """As `frames`. DataError where a frame has no annotations."""
        return truth_of(self.store, self.rows if some is None else some)


@dataclass(frozen=True)
class Wanted:
    """What is asked for beyond the table. export: where to write the predictions; official: figures by the devkit's own
    code; boxes: what is said of frames stays at hand, as reports need it."""

    export: Path | None = None
    official: bool = False
    boxes: bool = False

    @property
    def more(self) -> bool:
        return self.export is not None or self.official or self.boxes


@dataclass(frozen=True)
class Found:
    """One source scored. source: as it was given; meta: of a submission of it; metrics: None where nothing is
    annotated; mistakes: one sentence for each that was seen; boxes_of: None where it was not asked for."""

    kind: Kind
    source: str
    name: str
    meta: Mapping[str, Any]
    metrics: Metrics | None
    mistakes: Sequence[str]
    boxes_of: BoxesOf | None = None


def submission_found(part: Part, path: Path, wanted: Wanted) -> Found:
    """A submission file, read sample by sample into arrays, 160 bytes a box. The devkit's own code takes an object for
    each box, some 2 kB. Raises as `evaluation.submission_file.read_submission`."""
    tokens = [part.store.token(row) for row in part.whole]
    if wanted.official:
        from evaluation.official import DevkitBoxes, evaluate_boxes  # loading the devkit takes seconds

        theirs = DevkitBoxes()
        read = read_submission(path, tokens, each=theirs.add)
        with _devkit_stop_told():
            metrics = evaluate_boxes(part.frames(), part.truth(), theirs.boxes)
    else:
        read = read_submission(path, tokens)
        metrics = store_arrays.evaluate_read(part.store, part.rows, read, subset=part.subset)
    seen = [part.rows[i] for i in looked_at(len(part.rows))]
    whole = (boxes for _, boxes in read.portions)
    some = read.of([part.store.token(row) for row in seen])
    mistakes = mistakes_in_boxes(part.frames(seen), part.truth(seen), some, whole)
    boxes_of = file_boxes_of(read) if wanted.boxes else None
    return Found("submission", str(path), path.name, read.meta, metrics, mistakes, boxes_of)


def teacher_found(part: Part, cache: str | Path, name: str, wanted: Wanted) -> Found:
    """A teacher store, from arrays alone where only the table is asked for; else its detections are held."""
    meta, place = submission_meta(lidar=True), teacher_place(cache, name)
    if wanted.more:
        return _of_detections(
            part, "teacher", name, name, meta, teacher_detections(part.store, part.rows, place), wanted
        )
    teacher = TeacherStore(place)
    teacher_rows = require_same_frames(part.store, teacher, part.rows)
    metrics = store_arrays.evaluate_teacher(part.store, part.rows, teacher, teacher_rows, subset=part.subset)
    chosen = looked_at(len(part.rows))
    seen = [part.rows[i] for i in chosen]
    some = {part.store.token(part.rows[i]): teacher.detections(teacher_rows[i]) for i in chosen}
    mistakes = mistakes_in_detections(part.frames(seen), part.truth(seen), some)
    return Found("teacher", name, name, meta, metrics, mistakes)


def run_found(
    part: Part, run: Path, wanted: Wanted, *, trusted: str = "", weights: str = "last", processes: int = 1
) -> Found:
    """A trained run, scored while it predicts where only the table is asked for; else its detections are held."""
    from studies.run_scoring import detections_of_run, score_run  # torch, which no other source needs
    from trainer.predict_run import RunModel

    source = RunModel(run, "best" if weights == "best" else "last", trusted)
    model = source.load(0)
    meta = submission_meta(camera=model.modality == "camera", lidar=model.modality == "lidar")
    if wanted.more:
        detections = detections_of_run(source, model, part.store, part.rows, processes=processes)
        return _of_detections(part, "run", str(run), run.name, meta, detections, wanted)
    scored = score_run(source, model, part.store, part.rows, processes=processes, subset=part.subset)
    return Found("run", str(run), run.name, meta, scored.metrics, scored.mistakes)


def _of_detections(
    part: Part,
    kind: Kind,
    source: str,
    name: str,
    meta: Mapping[str, Any],
    detections: Mapping[str, Detections],
    wanted: Wanted,
) -> Found:
    """All of a source's detections, by token: exported, and scored where there are annotations."""
    frames = part.frames()
    if wanted.export is not None:
        export_submission(wanted.export, frames, detections, meta)
    if not part.labelled:
        return Found(kind, source, name, meta, None, ())
    truth = part.truth()
    metrics = metrics_of(frames, truth, detections, official=wanted.official, subset=part.subset)
    mistakes = mistakes_in_detections(frames, truth, detections)
    return Found(kind, source, name, meta, metrics, mistakes, detections_of(detections))


def metrics_of(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    detections: Mapping[str, Detections],
    *,
    official: bool,
    subset: Subset,
) -> Metrics:
    """The metric of detections by token, by the arrays or by the devkit's own code, which takes no subset."""
    if not official:
        return array_metric.evaluate(frames, truth, detections, subset=subset)
    from evaluation.official import evaluate  # loading the devkit takes seconds

    with _devkit_stop_told():
        return evaluate(frames, truth, detections)


@contextmanager
def _devkit_stop_told() -> Iterator[None]:
    """DataError where the devkit's code stops at an assertion, as it does at scores below 0, without a word."""
    try:
        yield
    except AssertionError as error:
        raise DataError(
            "the devkit's own code stopped at an assertion, mostly for scores below 0; the same command without "
            "--official says what is wrong"
        ) from error


def truth_of(store: FrameStore, rows: Sequence[int]) -> list[GroundTruth]:
    """The ground truth of these rows; DataError where a frame has none."""
    version = store.manifest.identity["dataset_version"]
    return require_annotations([store.truth(row) if store.is_labelled(row) else None for row in rows], version)


def teacher_detections(store: FrameStore, rows: Sequence[int], place: str | Path) -> dict[str, Detections]:
    """What a teacher store says of these frames, by token."""
    teacher = TeacherStore(place)
    teacher_rows = require_same_frames(store, teacher, rows)
    return {store.tokens[row]: teacher.detections(found) for row, found in zip(rows, teacher_rows, strict=True)}
