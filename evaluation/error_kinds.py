"""What is wrong with each prediction, and what mAP would be without one kind of error: TIDE's question, from above.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020), tells errors apart by the
overlap of 2-D boxes; nuScenes matches by the distance of centres on the ground, so distances stand in its place here:
right below `near_m` (2 m, where the metric takes its TP errors from), of some use below `reach_m` (4 m, its largest
threshold). docs/evaluation.md has the definition in words; the test has it as loops. Costs all pairs of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cache.classes import DETECTION_CLASSES
from evaluation.box_arrays import BoxArrays
from evaluation.metric_config import MetricConfig
from evaluation.recall_curves import average_precision, recall_curve

if TYPE_CHECKING:
    from evaluation.match_table import MatchTable

# of predictions, by number; objects that nothing accounts for are the sixth kind, "missed"
RIGHT, DUPLICATE, LOCALISATION, CLASS, BACKGROUND = range(5)
KINDS = ("right", "duplicate", "localisation", "class", "background")
ERROR_KINDS = (*KINDS[1:], "missed")


def prediction_kinds(
    truth: BoxArrays, predicted: BoxArrays, taken: np.ndarray, near_m: float, reach_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """kind (N,) int8, an index of `KINDS`, and target (N,) int64: the object that a localisation or class error is
    about, -1 for the other kinds. taken (N,): the object that each prediction is matched with at near_m, -1 none.

    The nearest object counts, of equally near ones the first. Memory goes with predictions x objects of a frame.
    """
    wrong = np.nonzero(taken < 0)[0]
    who, object_, distance = _pairs(truth, predicted, wrong, reach_m)
    same = truth.class_ids[object_] == predicted.class_ids[who]
    own, own_m = _nearest(who[same], object_[same], distance[same], len(predicted))
    other, other_m = _nearest(who[~same], object_[~same], distance[~same], len(predicted))
    kind = np.full(len(predicted), BACKGROUND, np.int8)
    target = np.full(len(predicted), -1, np.int64)
    confused, displaced, doubled = other_m < near_m, own_m < reach_m, own_m < near_m
    for chosen, number, objects in ((confused, CLASS, other), (displaced, LOCALISATION, own), (doubled, DUPLICATE, -1)):
        kind[chosen] = number  # a later one overrules
        target[chosen] = objects[chosen] if isinstance(objects, np.ndarray) else objects
    kind[taken >= 0], target[taken >= 0] = RIGHT, -1
    return kind, target


def _pairs(
    truth: BoxArrays, predicted: BoxArrays, ask: np.ndarray, reach_m: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of the predictions that are asked for with objects of their frame closer than reach_m, and how close."""
    order = np.argsort(truth.frame, kind="stable")
    begin = np.searchsorted(truth.frame[order], predicted.frame[ask], side="left")
    counts = np.searchsorted(truth.frame[order], predicted.frame[ask], side="right") - begin
    who = np.repeat(ask, counts)
    object_ = order[np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(len(who))]
    apart = predicted.boxes[who, :2] - truth.boxes[object_, :2]
    squared = np.square(apart[:, 0]) + np.square(apart[:, 1])
    near = np.nonzero(squared < reach_m * reach_m)[0]
    return who[near], object_[near], np.sqrt(squared[near])


def _nearest(who: np.ndarray, object_: np.ndarray, distance: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """By prediction the nearest object, -1 none, and its distance, inf."""
    order = np.lexsort((object_, distance, who))
    who, object_, distance = who[order], object_[order], distance[order]
    first = np.concatenate([[True], who[1:] != who[:-1]]) if len(who) else np.zeros(0, bool)
    nearest, nearest_m = np.full(count, -1, np.int64), np.full(count, np.inf)
    nearest[who[first]], nearest_m[who[first]] = object_[first], distance[first]
    return nearest, nearest_m


@dataclass(frozen=True)
class ErrorSummary:
    """counts, confident: errors of each kind of `ERROR_KINDS`, all of them and those of predictions that reach their
    class's working score (missed: objects that no such prediction accounts for); gain: what mAP at `near_m` would gain
    without the kind; mean_ap: that mAP; class_gain: (C, 5) by class, in the order of `classes` and `ERROR_KINDS`."""

    near_m: float
    reach_m: float
    counts: Mapping[str, int]
    confident: Mapping[str, int]
    gain: Mapping[str, float]
    mean_ap: float
    classes: tuple[str, ...]
    class_gain: np.ndarray


def summarise_errors(table: MatchTable, working_scores: np.ndarray) -> ErrorSummary:
    """Counts of every kind and what fixing it would give. working_scores (10,): by class id, inf where none."""
    confident = table.scores >= working_scores[table.class_ids]
    names = table.classes
    base = np.array([_class_ap(table, name, None) for name in names])
    fixed = np.array([[_class_ap(table, name, kind) for kind in ERROR_KINDS] for name in names])
    gains = fixed - base[:, None]
    near_m, reach_m = table.config.dist_th_tp, max(table.config.dist_ths)
    return ErrorSummary(
        near_m,
        reach_m,
        _counts(table, np.ones(len(confident), bool)),
        _counts(table, confident),
        dict(zip(ERROR_KINDS, (float(value) for value in gains.mean(axis=0)), strict=True)),
        float(base.mean()),
        names,
        gains,
    )


def confusions(table: MatchTable, working_scores: np.ndarray) -> np.ndarray:
    """(C + 1, C + 1) int64 of predictions that reach their class's working score. Rows: the class of the object, last
    none (background); columns: the class that is said, last none (missed). Duplicates and localisations are left out of
    the rows: they say the right class."""
    labels = [DETECTION_CLASSES.index(name) for name in table.classes]
    column = np.full(len(DETECTION_CLASSES) + 1, len(labels))
    column[labels] = np.arange(len(labels))
    said = table.scores >= working_scores[table.class_ids]
    out = np.zeros((len(labels) + 1, len(labels) + 1), np.int64)
    about = np.where(table.kind == RIGHT, table.taken, table.target)
    for chosen in (said & (table.kind == RIGHT), said & (table.kind == CLASS)):
        np.add.at(out, (column[table.objects.class_ids[about[chosen]]], column[table.class_ids[chosen]]), 1)
    np.add.at(out[-1], column[table.class_ids[said & (table.kind == BACKGROUND)]], 1)
    np.add.at(out[:, -1], column[table.objects.class_ids[~_accounted(table, said)]], 1)
    return out


def _counts(table: MatchTable, said: np.ndarray) -> dict[str, int]:
    """Errors among the predictions `said` (N,) bool, and the objects that these leave unaccounted for."""
    numbers = np.bincount(table.kind[said], minlength=len(KINDS))
    missed = int((~_accounted(table, said)).sum())
    return {**{name: int(n) for name, n in zip(KINDS[1:], numbers[1:], strict=True)}, "missed": missed}


def _accounted(table: MatchTable, said: np.ndarray) -> np.ndarray:
    """(G,) bool: objects that a prediction of `said` (N,) bool is matched with or errs about."""
    out = np.zeros(len(table.objects), bool)
    out[table.taken[said & (table.taken >= 0)]] = True
    out[table.target[said & (table.target >= 0)]] = True
    return out


def _class_ap(table: MatchTable, name: str, fixed: str | None) -> float:
    """AP at near_m of a class where errors of the kind `fixed` are mended, or of all as they are."""
    label = DETECTION_CLASSES.index(name)
    mine = table.class_ids == label
    hit = table.taken >= 0
    objects = int((table.objects.class_ids == label).sum())
    found = table.objects.found[:, table.config.dist_ths.index(table.config.dist_th_tp)]
    if fixed in ("duplicate", "background"):
        mine = mine & (table.kind != KINDS.index(fixed))
    elif fixed in ("localisation", "class"):
        erring = table.kind == KINDS.index(fixed)
        mended = _best_claims(table, np.nonzero(erring)[0], ~found, label)
        hit = hit.copy()
        hit[mended] = True
        mine = mine & ~erring
        mine[mended] = True
    elif fixed == "missed":
        accounted = found.copy()
        accounted[table.target[table.target >= 0]] = True
        left = objects - int((~accounted & (table.objects.class_ids == label)).sum())
        if objects and not left:  # nothing is left to find: right where nothing is said
            return 0.0 if mine.any() else 1.0
        objects = left
    rows = np.nonzero(mine)[0]
    rows = rows[np.argsort(table.scores[rows], kind="stable")[::-1]]
    return _ap(hit[rows], table.scores[rows], objects, name, table.config)


def _best_claims(table: MatchTable, claims: np.ndarray, free: np.ndarray, label: int) -> np.ndarray:
    """Of the erring predictions the best-ranked one for each free object of the class."""
    claims = claims[np.argsort(table.scores[claims], kind="stable")[::-1]]
    target = table.target[claims]
    useful = free[target] & (table.objects.class_ids[target] == label)
    _, first = np.unique(target[useful], return_index=True)
    return claims[useful][first]


def _ap(hits: np.ndarray, scores: np.ndarray, objects: int, name: str, config: MetricConfig) -> float:
    return average_precision(recall_curve(hits, scores, objects, name), config.min_recall, config.min_precision)
