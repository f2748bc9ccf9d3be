"""One score taken apart: near and far, small and large, hidden and plain to see, night and rain.

Distance and scenes are scored as `evaluation.subsets` has it, as if nothing else had been there. Sizes and levels of
visibility are not: a prediction has no visibility, and its size may be wrong, so there only objects are counted: how
many of them are found, and how well. mAP of a part is a mean over the classes that have objects in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.frame import Frame, GroundTruth
from cache.plan import Scene
from evaluation.array_metric import PORTION, ArrayMetric
from evaluation.box_arrays import places_of, truth_arrays
from evaluation.match_table import BoxesOf, MatchTable
from evaluation.metrics import TP_ERRORS
from evaluation.resampling import SceneMetric, chosen
from evaluation.subsets import Subset
from evaluation.working_point import found_at

DISTANCES = ((0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 40.0), (40.0, math.inf))
LENGTHS = ((0.0, 1.0), (1.0, 3.0), (3.0, 6.0), (6.0, math.inf))
VISIBILITIES = {1: "0 to 40 % visible", 2: "40 to 60 %", 3: "60 to 80 %", 4: "80 to 100 %", 0: "unknown"}
WORDS = ("night", "rain")


@dataclass(frozen=True)
class Part:
    """One row. group: what is told apart; objects; classes: how many have objects here; mean_ap: NaN where only objects
    are counted; found, found_working: shares of the objects that a prediction found, at any score and at the working
    score; errors (5,): means of `TP_ERRORS` over those found at any score, NaN where there are none."""

    group: str
    name: str
    objects: int
    classes: int
    mean_ap: float
    found: float
    found_working: float
    errors: np.ndarray


def breakdown(
    table: MatchTable,
    metric: SceneMetric,
    working: np.ndarray,
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    boxes_of: BoxesOf,
    scenes: Sequence[Scene],
) -> list[Part]:
    """All parts that have objects. frames, truth, boxes_of: what the table was made of; scenes: of the store, for what
    their descriptions say. Costs about as much as the metric once more."""
    objects, found = table.objects, found_at(table, working)

    def part(group: str, name: str, of: np.ndarray, class_ap: Sequence[float] | None = None) -> Part:
        return _part(table, found, group, name, of, class_ap)

    out = []
    for near_far, class_ap in zip(DISTANCES, _distance_ap(table, frames, truth, boxes_of), strict=True):
        of = (objects.distance >= near_far[0]) & (objects.distance < near_far[1])
        out.append(part("distance", _span(*near_far), of, class_ap))
    for low, high in LENGTHS:
        of = (objects.length >= low) & (objects.length < high)
        out.append(part("longer side", _span(low, high), of))
    for level, name in VISIBILITIES.items():
        out.append(part("visibility", name, objects.visibility == level))
    for name, names in _described(table, scenes):
        times = chosen(table.scene_names, names)
        ap = metric.figures(times).ap.mean(axis=1)
        out.append(part("scenes", name, times[table.scene[objects.frame]] > 0, ap.tolist()))
    return [one for one in out if one.objects]


def _part(
    table: MatchTable, working: np.ndarray, group: str, name: str, of: np.ndarray, class_ap: Sequence[float] | None
) -> Part:
    """of, working (G,) bool: the part's objects, and those that are found at the working scores."""
    count = int(of.sum())
    counts = np.bincount(table.objects.class_ids[of], minlength=len(DETECTION_CLASSES))
    present = [counts[DETECTION_CLASSES.index(name)] > 0 for name in table.classes]
    values = [] if class_ap is None else [ap for ap, here in zip(class_ap, present, strict=True) if here]
    taken = np.nonzero(table.taken >= 0)[0]
    mine = table.errors[taken[of[table.taken[taken]]]]
    known = (~np.isnan(mine)).sum(axis=0)
    errors = np.nansum(mine, axis=0) / np.where(known, known, np.nan) if len(mine) else np.full(len(TP_ERRORS), np.nan)
    return Part(
        group,
        name,
        count,
        int(np.sum(present)),
        float(np.mean(values)) if values else math.nan,
        float(table.objects.found[of, table.tp_column].mean()) if count else math.nan,
        float(working[of].mean()) if count else math.nan,
        errors,
    )


def _distance_ap(
    table: MatchTable, frames: Sequence[Frame], truth: Sequence[GroundTruth], boxes_of: BoxesOf
) -> list[list[float]]:
    """AP of every class within each span of `DISTANCES`, matched anew within it."""
    metrics: list[ArrayMetric | None] = []
    for low, high in DISTANCES:
        asked = table.subset.distance or (0.0, math.inf)
        low, high = max(low, asked[0]), min(high, asked[1])
        subset: Subset | None = replace(table.subset, distance=(low, high)) if low < high else None
        metrics.append(ArrayMetric(table.tokens, table.config, subset) if subset else None)
    for start in range(0, len(frames), PORTION):
        part = slice(start, start + PORTION)
        arrays = places_of(frames[part], truth[part]), truth_arrays(truth[part]), boxes_of(frames[part])
        for metric in filter(None, metrics):
            metric.add_boxes(table.tokens[part], *arrays)
    nothing = [0.0] * len(table.classes)
    done = [metric.result() if metric else None for metric in metrics]
    return [[one.class_ap(name) for name in table.classes] if one else nothing for one in done]


def _described(table: MatchTable, scenes: Sequence[Scene]) -> list[tuple[str, set[str]]]:
    """Names of the parts by description, and their scenes; none where the data set describes no scene."""
    here = [scene for scene in scenes if scene.name in set(table.scene_names)]
    if not any(scene.description for scene in here):
        return []
    out = []
    for words, name in (
        *(((word,), f"“{word}” in the description") for word in WORDS),
        (tuple(f"!{word}" for word in WORDS), "neither"),
    ):
        subset = Subset(description=words)
        names = {scene.name for scene in here if subset.has_scene(scene)}
        if names:
            out.append((f"{name}: {len(names)} scenes", names))
    return out


def _span(low: float, high: float) -> str:
    return f"{low:g} m and more" if math.isinf(high) else f"{low:g} to {high:g} m"
