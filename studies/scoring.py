"""Scores whatever predicts on a frame store: a trained run, a teacher store, or a submission file.

`./bevcask evaluate` and the demo both come through here, so that their figures are the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from cache.classes import require_detection_classes
from cache.errors import ConfigError, StoreError
from cache.frame import Detections, Frame, GroundTruth
from cache.layout import frames_place, teacher_place
from cache.same_frames import require_same_frames
from cache.store import FrameStore, TeacherStore
from evaluation import array_metric, store_arrays
from evaluation.control import shuffled_over_frames
from evaluation.devkit_summary import devkit_summary, write_devkit_summary
from evaluation.match_table import BoxesOf, detections_of, submission_of
from evaluation.metrics import Metrics
from evaluation.mistakes import looked_at, mistakes_in_boxes, mistakes_in_detections, mistakes_in_submission
from evaluation.submission import export_submission, require_annotations, submission_meta
from evaluation.submission_file import SubmissionArrays, load_submission, read_submission
from evaluation.subsets import EVERYTHING, Subset
from evaluation.table import MetricsRow, metrics_table
from studies.scored import Kind, Scored

SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Outcome:
    """What `./bevcask evaluate` says: lines and tables, the JSON summary (None where nothing was scored), what next."""

    renderables: list[RenderableType]
    summary: dict[str, Any] | None
    next_step: str


def choose_split(store: FrameStore, split: str | None) -> str:
    """The split asked for, or the data set's validation split, or its only one. ConfigError where neither tells."""
    splits = sorted({scene.split for scene in store.manifest.scenes})
    if split is not None:
        store.split_rows(split)  # StoreError naming the splits where there is no such one
        return split
    for name in ("val", "mini_val"):
        if name in splits:
            return name
    if len(splits) == 1:
        return splits[0]
    raise ConfigError(f"{store.root}: has the splits {splits}; choose one with --split")


def frames_of(store: FrameStore, rows: Sequence[int]) -> list[Frame]:
    """The frames of these rows."""
    return [store.frame(row) for row in rows]


def score(
    store: FrameStore,
    rows: Sequence[int],
    detections: Mapping[str, Detections],
    *,
    official: bool = False,
    subset: Subset = EVERYTHING,
) -> Metrics:
    """The official metric of `detections` (by token) on these frames of the store; no raw data set is touched.

    official: by the devkit's own code, which takes minutes where the arrays take seconds. subset: which boxes of these
    frames count. Raises DataError where a frame has no annotations: such a split can be predicted and exported, not
    scored.
    """
    return _scored(frames_of(store, rows), truth_of(store, rows), detections, official, subset)


def _scored(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    detections: Mapping[str, Detections],
    official: bool,
    subset: Subset,
) -> Metrics:
    if not official:
        return array_metric.evaluate(frames, truth, detections, subset=subset)
    from evaluation.official import evaluate  # loading the devkit takes seconds

    return evaluate(frames, truth, detections)


def _scored_results(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    results: Mapping[str, list[dict[str, Any]]],
    official: bool,
    subset: Subset,
) -> Metrics:
    if not official:
        return array_metric.evaluate_submission(frames, truth, results, subset=subset)
    from evaluation.official import evaluate_submission

    return evaluate_submission(frames, truth, results)


def truth_of(store: FrameStore, rows: Sequence[int]) -> list[GroundTruth]:
    """The ground truth of these rows; DataError where a frame has none."""
    version = store.manifest.identity["dataset_version"]
    return require_annotations([store.truth(row) if store.is_labelled(row) else None for row in rows], version)


def score_shuffled(store: FrameStore, rows: Sequence[int], detections: Mapping[str, Detections]) -> Metrics:
    """The control: the same predictions handed to frames of other scenes. Looking at the input must beat it by far."""
    tokens = [store.tokens[row] for row in rows]
    scene_of = {store.tokens[row]: store.scene_of(row) for row in rows}
    return score(store, rows, shuffled_over_frames(detections, tokens, SHUFFLE_SEED, scene_of))


def teacher_detections(store: FrameStore, rows: Sequence[int], place: str | Path) -> dict[str, Detections]:
    """What a teacher store says of these frames."""
    teacher = TeacherStore(place)
    teacher_rows = require_same_frames(store, teacher, rows)
    return {store.tokens[row]: teacher.detections(found) for row, found in zip(rows, teacher_rows, strict=True)}


def evaluate_source(
    cache: str | Path,
    *,
    run: Path | None = None,
    teacher: str | None = None,
    submission: Path | None = None,
    split: str | None = None,
    export: Path | None = None,
    trusted: str = "",
    weights: str = "last",
    processes: int = 1,
    official: bool = False,
    subset: Subset = EVERYTHING,
    listener: Callable[[Scored], None] | None = None,
    export_summary: Path | None = None,
) -> Outcome:
    """Scores exactly one of run, teacher and submission on a split's key frames, and exports the predictions if asked.
    trusted: the callable that a run's student may be made with. weights: of a run, `last` or `best`. processes: that
    predict a run, of this machine; the figures are the same.

    official: by the devkit's own code. subset: on a part of the split, by our code only. What looks like one of the
    classic mistakes is told after the table. listener: is given all that was scored, to report it. export_summary:
    where to write the figures as the devkit's metrics_summary.json. Where the split has no annotations nothing is
    scored: without `export` that is a DataError, with it the export is written and the outcome says that it can't be
    scored.
    """
    start = time.perf_counter()
    if subset != EVERYTHING and (official or export is not None or export_summary is not None):
        raise ConfigError(
            "--subset scores a part of the split: leave --official and the exports out, they take it whole"
        )
    if sum(source is not None for source in (run, teacher, submission)) != 1:
        raise ConfigError("give exactly one of --run, --teacher and --submission")
    if run is None and (weights != "last" or processes != 1):
        raise ConfigError(f"{'--weights' if weights != 'last' else '--nproc'} belongs to --run; leave it out")
    if weights not in ("last", "best"):
        raise ConfigError(f"--weights {weights!r}: expected last or best")
    store = FrameStore(frames_place(cache))
    require_detection_classes(store.classes, str(store.root))
    split = choose_split(store, split)
    whole = rows = store.key_rows(split)
    if subset != EVERYTHING:
        rows = subset.rows(whole, [store.scene_of(row) for row in whole], store.manifest.scenes)
    labelled = all(store.is_labelled(row) for row in rows)
    if not labelled and export is None:
        require_annotations([None], f"{store.manifest.identity['dataset_version']} ({split})")
    lost = len(store.manifest.quarantined)
    lines: list[RenderableType] = []
    boxes_of: BoxesOf | None = None
    if lost:
        which = " (key frames or unlabelled ones)" if store.manifest.header.get("between") else ""
        lines.append(
            f"[yellow]{lost} frames{which} could not be read when they were cached: they are not scored[/yellow]"
        )
        if export is not None:
            raise StoreError(
                f"{store.root}: {lost} frames are quarantined, and a submission must have every sample; repair their "
                "files and run cache-frames again"
            )
    if submission is not None:
        if export is not None:
            raise ConfigError("--export writes predictions; a --submission file is already one")
        name, tokens = submission.name, [store.token(row) for row in whole]
        if official or listener is not None:
            read = load_submission(submission, tokens)
            frames, truth, meta = frames_of(store, rows), truth_of(store, rows), read.meta
            counted = {frame.token for frame in frames}
            results = {token: boxes for token, boxes in read.results.items() if token in counted}
            metrics = _scored_results(frames, truth, results, official, subset)
            mistakes = mistakes_in_submission(frames, truth, results)
            boxes_of = submission_of(results)
        else:
            metrics, mistakes, meta = _score_read(store, rows, read_submission(submission, tokens), subset)
    elif teacher is not None and export is None and not official and listener is None:
        name, meta = teacher, submission_meta(lidar=True)
        metrics, mistakes = _score_teacher(store, rows, teacher_place(cache, teacher), subset)
    else:
        detections: dict[str, Detections] | None = None
        if teacher is not None:
            name, modality = teacher, "lidar"
            detections = teacher_detections(store, rows, teacher_place(cache, teacher))
        else:
            from studies.run_scoring import detections_of_run, score_run  # torch, which no other source needs
            from trainer.predict_run import RunModel

            assert run is not None
            source = RunModel(run, "best" if weights == "best" else "last", trusted)
            model = source.load(0)
            name, modality = run.name, model.modality
            if export is not None or official or listener is not None:
                detections = detections_of_run(source, model, store, rows, processes=processes)
            else:
                scored = score_run(source, model, store, rows, processes=processes, subset=subset)
                metrics, mistakes = scored.metrics, scored.mistakes
        meta = submission_meta(camera=modality == "camera", lidar=modality == "lidar")
        if export is not None:
            assert detections is not None
            export_submission(export, frames_of(store, rows), detections, meta)
            lines.append(f"submission of {len(rows)} samples written to {export}")
        if not labelled:
            lines.append(f"{store.manifest.identity['dataset_version']} has no annotations, so it can't be scored here")
            return Outcome(lines, None, "send the submission to the nuScenes test server")
        if detections is not None:
            frames, truth = frames_of(store, rows), truth_of(store, rows)
            metrics = _scored(frames, truth, detections, official, subset)
            mistakes = mistakes_in_detections(frames, truth, detections)
            boxes_of = detections_of(detections)
    if listener is not None and boxes_of is not None:
        kind: Kind = "run" if run is not None else "teacher" if teacher is not None else "submission"
        said = str(run or teacher or submission)
        listener(Scored(cache, store, split, subset, frames, truth, kind, said, name, metrics, boxes_of))
    if export_summary is not None:
        write_devkit_summary(export_summary, devkit_summary(metrics, meta, time.perf_counter() - start))
        lines.append(f"figures as the devkit's metrics_summary.json written to {export_summary}")
    counts = metrics.truth_counts
    part = "" if subset == EVERYTHING else f", {escape(str(subset))}"
    lines.append(f"{split}{part}: {len(rows)} samples, {counts.outside_racks} of {counts.given} annotated boxes count")
    lines.append(metrics_table([MetricsRow(name, metrics)]))
    lines += [f"[yellow]{escape(mistake)}[/yellow]" for mistake in mistakes]
    return Outcome(lines, metrics.summary(), f"./bevcask inspect --cache {cache} --token {store.token(rows[0])}")


def _score_teacher(
    store: FrameStore, rows: Sequence[int], place: str | Path, subset: Subset
) -> tuple[Metrics, list[str]]:
    """The metric of a teacher store from arrays alone, and the mistakes seen in some of its frames."""
    teacher = TeacherStore(place)
    teacher_rows = require_same_frames(store, teacher, rows)
    metrics = store_arrays.evaluate_teacher(store, rows, teacher, teacher_rows, subset=subset)
    some = looked_at(len(rows))
    seen = [rows[i] for i in some]
    detections = {store.token(rows[i]): teacher.detections(teacher_rows[i]) for i in some}
    return metrics, mistakes_in_detections(frames_of(store, seen), truth_of(store, seen), detections)


def _score_read(
    store: FrameStore, rows: Sequence[int], read: SubmissionArrays, subset: Subset
) -> tuple[Metrics, list[str], Mapping[str, Any]]:
    """The metric of a submission file on these rows from arrays alone, the mistakes seen, and its meta."""
    metrics = store_arrays.evaluate_read(store, rows, read, subset=subset)
    seen = [rows[i] for i in looked_at(len(rows))]
    boxes = read.of([store.token(row) for row in seen])
    whole = (of_portion for _, of_portion in read.portions)
    return metrics, mistakes_in_boxes(frames_of(store, seen), truth_of(store, seen), boxes, whole), read.meta


def figures(metrics: Metrics) -> dict[str, Any]:
    """All of a score as plain JSON values, for `result.json` of a study."""
    return metrics.to_dict()
