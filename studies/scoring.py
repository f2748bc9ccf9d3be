"""Scores whatever predicts on a frame store: a trained run, a teacher store, or a submission file.

`./bevcask evaluate` and the demo both come through here, so that their figures are the same figures; what each source
says is in `studies.sources`.
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
from cache.frame import Detections
from cache.layout import frames_place
from cache.store import FrameStore
from evaluation.control import shuffled_over_frames
from evaluation.devkit_summary import devkit_summary, write_devkit_summary
from evaluation.metrics import Metrics
from evaluation.submission import require_annotations
from evaluation.subsets import EVERYTHING, Subset
from evaluation.table import MetricsRow, metrics_table
from studies.outputs import require_outputs
from studies.scored import Scored
from studies.sources import Part, Wanted, metrics_of, run_found, submission_found, teacher_found, truth_of

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
    frames = [store.frame(row) for row in rows]
    return metrics_of(frames, truth_of(store, rows), detections, official=official, subset=subset)


def score_shuffled(store: FrameStore, rows: Sequence[int], detections: Mapping[str, Detections]) -> Metrics:
    """The control: the same predictions handed to frames of other scenes. Looking at the input must beat it by far."""
    tokens = [store.tokens[row] for row in rows]
    scene_of = {store.tokens[row]: store.scene_of(row) for row in rows}
    return score(store, rows, shuffled_over_frames(detections, tokens, SHUFFLE_SEED, scene_of))


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
    scored; a listener, official and export_summary have nothing to work on there, and are a ConfigError.
    """
    start = time.perf_counter()
    if sum(source is not None for source in (run, teacher, submission)) != 1:
        raise ConfigError("give exactly one of --run, --teacher and --submission")
    _require_run_options(run, trusted, weights, processes)
    if subset != EVERYTHING and (official or export is not None or export_summary is not None):
        raise ConfigError(
            "--subset scores a part of the split: leave --official and the exports out, they take it whole"
        )
    if submission is not None and export is not None:
        raise ConfigError("--export writes predictions; a --submission file is already one")
    require_outputs({"--export": export, "--export-summary": export_summary}, {"--submission": submission})
    part = _part(cache, split, subset, annotated_only=export is None)
    if not part.labelled:
        _require_only_export(part, export, official or listener is not None or export_summary is not None)
    lines: list[RenderableType] = _lost_frames(part.store, export)

    wanted = Wanted(export, official, listener is not None)
    if submission is not None:
        found = submission_found(part, submission, wanted)
    elif teacher is not None:
        found = teacher_found(part, cache, teacher, wanted)
    else:
        assert run is not None
        found = run_found(part, run, wanted, trusted=trusted, weights=weights, processes=processes)

    if export is not None:
        lines.append(f"submission of {len(part.rows)} samples written to {escape(str(export))}")
    metrics = found.metrics
    if metrics is None:
        version = part.store.manifest.identity["dataset_version"]
        lines.append(f"{version} has no annotations, so it can't be scored here")
        return Outcome(lines, None, "send the submission to the nuScenes test server")
    if listener is not None:
        assert found.boxes_of is not None
        frames, truth = part.frames(), part.truth()
        said = (found.kind, found.source, found.name, metrics, found.boxes_of)
        listener(Scored(cache, part.store, part.split, subset, frames, truth, *said, weights))
    if export_summary is not None:
        write_devkit_summary(export_summary, devkit_summary(metrics, found.meta, time.perf_counter() - start))
        lines.append(f"figures as the devkit's metrics_summary.json written to {escape(str(export_summary))}")
    counts = metrics.truth_counts
    of_what = part.split if subset == EVERYTHING else f"{part.split}, {escape(str(subset))}"
    lines.append(f"{of_what}: {len(part.rows)} samples, {counts.outside_racks} of {counts.given} annotated boxes count")
    lines.append(metrics_table([MetricsRow(found.name, metrics)]))
    lines += [f"[yellow]{escape(mistake)}[/yellow]" for mistake in found.mistakes]
    first = part.store.token(part.rows[0])
    return Outcome(lines, metrics.summary(), f"./bevcask inspect --cache {cache} --token {first}")


def _require_run_options(run: Path | None, trusted: str, weights: str, processes: int) -> None:
    given = {"--weights": weights != "last", "--nproc": processes != 1, "--callable": bool(trusted)}
    option = next((option for option, is_given in given.items() if is_given), None)
    if run is None and option is not None:
        raise ConfigError(f"{option} belongs to --run; leave it out")
    if weights not in ("last", "best"):
        raise ConfigError(f"--weights {weights!r}: expected last or best")


def _part(cache: str | Path, split: str | None, subset: Subset, *, annotated_only: bool) -> Part:
    """annotated_only: of a split that is annotated in part (`cache-frames --labelled-scenes`), the annotated frames."""
    store = FrameStore(frames_place(cache))
    require_detection_classes(store.classes, str(store.root))
    split = choose_split(store, split)
    whole = store.key_rows(split)
    if annotated_only:
        whole = [row for row in whole if store.is_labelled(row)] or whole
    rows = whole
    if subset != EVERYTHING:
        rows = subset.rows(whole, [store.scene_of(row) for row in whole], store.manifest.scenes)
    return Part(store, split, whole, rows, subset, all(store.is_labelled(row) for row in rows))


def _require_only_export(part: Part, export: Path | None, more: bool) -> None:
    what = f"{part.store.manifest.identity['dataset_version']} ({part.split})"
    if export is None:
        require_annotations([None], what)
    if more:
        raise ConfigError(
            f"{what} has no annotations, so there are no figures to report: leave --report, --export-summary and "
            "--official out, --export alone is written"
        )


def _lost_frames(store: FrameStore, export: Path | None) -> list[RenderableType]:
    """What is said of frames that could not be read; StoreError where a submission is to be written without them."""
    lost = len(store.manifest.quarantined)
    if not lost:
        return []
    if export is not None:
        raise StoreError(
            f"{store.root}: {lost} frames are quarantined, and a submission must have every sample; repair their "
            "files and run cache-frames again"
        )
    which = " (key frames or unlabelled ones)" if store.manifest.header.get("between") else ""
    return [f"[yellow]{lost} frames{which} could not be read when they were cached: they are not scored[/yellow]"]
