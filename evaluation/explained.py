"""A score and all that a report explains it by, computed once: what reports and comparisons are written from.

At the size of nuScenes val (6,019 frames, 200 boxes each) some ten seconds on a core, half of them the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache.frame import Frame, GroundTruth
from cache.plan import Scene
from evaluation.breakdown import Part, breakdown
from evaluation.error_kinds import ErrorSummary, summarise_errors
from evaluation.match_table import BoxesOf, MatchTable, match_table
from evaluation.metrics import Metrics
from evaluation.resampling import DRAWS, Bootstrap, SceneMetric, bootstrap
from evaluation.subsets import EVERYTHING, Subset
from evaluation.working_point import FrameCounts, frame_counts, working_scores


@dataclass(frozen=True)
class Explained:
    """One model. drawn: None where the split has too few scenes to draw from; working (10,): scores to act on."""

    name: str
    metrics: Metrics
    table: MatchTable
    drawn: Bootstrap | None
    working: np.ndarray
    errors: ErrorSummary
    parts: Sequence[Part]
    counts: FrameCounts


@dataclass(frozen=True)
class Model:
    """Something that was scored: its name, its figures, and what it says of frames."""

    name: str
    metrics: Metrics
    boxes_of: BoxesOf


def explain(
    models: Sequence[Model],
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    scenes: Sequence[Scene],
    *,
    subset: Subset = EVERYTHING,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Explained]:
    """Every model on the same frames, intervals drawn together, so that differences are paired. Raises DataError as
    `evaluation.match_table`."""
    tables = {one.name: match_table(frames, truth, one.boxes_of, subset=subset) for one in models}
    metrics = {name: SceneMetric(table) for name, table in tables.items()}
    drawn = bootstrap(metrics, draws=draws, seed=seed)
    out = []
    for one in models:
        table = tables[one.name]
        working = working_scores(table)
        errors = summarise_errors(table, working)
        parts = breakdown(table, metrics[one.name], working, frames, truth, one.boxes_of, scenes)
        counts = frame_counts(table, working)
        out.append(Explained(one.name, one.metrics, table, drawn.get(one.name), working, errors, parts, counts))
    return out
