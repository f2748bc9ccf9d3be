"""The classic mistakes of detection on nuScenes, told in words: a score says that something is wrong, not what.

Looks at some tens of frames, at which predictions lie on which objects whatever their class, and says a mistake only
where undoing it would explain most of what is seen. Silent on predictions that are right, and on poor ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.frame import Detections, Frame, GroundTruth
from evaluation.box_arrays import BoxArrays, detection_arrays, truth_arrays
from evaluation.boxes import quaternion_product
from evaluation.tp_errors import scale_iou, yaw_of

FRAMES = 64  # looked at, evenly over the split
PAIRS = 20  # fewer prove nothing
_NEAR_M = 2.0
_NEXT_US = 1_100_000  # key frames are half a second apart
_TIMES = 2  # predictions looked at for every object, the best-scored
_MOST = 0.6  # share of the pairs that a mistake must explain
_AGREED = 0.3  # of headings: a third of them right and the rest anywhere give that
_CHANCE = 10  # n * agreement^2 of n random directions is above this once in 20,000 times (Rayleigh's test)
_DIRECTED = [DETECTION_CLASSES.index(name) for name in ("car", "truck", "bus", "trailer", "motorcycle", "bicycle")]


def mistakes_in_detections(
    frames: Sequence[Frame], truth: Sequence[GroundTruth], detections: Mapping[str, Detections]
) -> list[str]:
    """One sentence for each mistake seen in a model's detections."""
    chosen = looked_at(len(frames))
    some = [frames[i] for i in chosen]
    return _mistakes(some, [truth[i] for i in chosen], detection_arrays(some, [detections[f.token] for f in some]))


def mistakes_in_boxes(
    frames: Sequence[Frame], truth: Sequence[GroundTruth], predicted: BoxArrays, whole: Iterable[BoxArrays]
) -> list[str]:
    """The same of the boxes of a submission: of the frames that `looked_at` chose; whole: all, which are counted."""
    found, lost, unknown = _mistakes(frames, truth, predicted), 0, 0
    for boxes in whole:
        lost += int((boxes.points == 0).sum())
        unknown += int(np.isnan(boxes.boxes[:, 10:12]).any(axis=1).sum())
    if lost:
        found.append(
            f'{lost} predictions hold "num_pts": 0, and the metric drops every box with 0 points: leave the key out'
        )
    if unknown:
        found.append(
            f"{unknown} predictions have no velocity (NaN): the metric leaves them out of mAVE, which rewards silence"
        )
    return found


def looked_at(count: int) -> list[int]:
    """Which of `count` frames are looked at; of those alone, all are."""
    if count <= FRAMES:
        return list(range(count))
    first = np.linspace(0, count - 2, FRAMES // 2).astype(int)  # with the next of each: neighbours tell of a shift
    return np.stack([first, first + 1], axis=1).ravel().tolist()


def _mistakes(frames: Sequence[Frame], truth: Sequence[GroundTruth], predicted: BoxArrays) -> list[str]:
    objects = truth_arrays(truth)
    objects = objects.take(objects.points != 0)
    predicted = _best(objects, predicted, len(frames))
    if len(objects) < PAIRS or len(predicted) < PAIRS:
        return []
    out = _wrong_frame(frames, objects, predicted) or _wrong_sample(frames, objects, predicted)
    if out:
        return out  # nothing else can be told apart
    pairs = _pairs(objects, predicted, predicted.boxes[:, :2])
    mine, theirs = predicted.take(pairs.predicted), objects.take(pairs.truth)
    out += _wrong_classes(mine, theirs)
    out += _wrong_sizes(mine, theirs)
    out += _wrong_headings(frames, mine, theirs)
    return out + _no_velocities(mine, theirs)


@dataclass(frozen=True)
class _Pairs:
    """Predictions and objects that are each other's nearest in their frame, closer than 2 m: indices."""

    predicted: np.ndarray
    truth: np.ndarray


def _best(objects: BoxArrays, predicted: BoxArrays, frames: int) -> BoxArrays:
    """Of each frame the best-scored predictions, `_TIMES` as many as it has objects."""
    order = np.lexsort((-predicted.scores, predicted.frame))
    first = np.searchsorted(predicted.frame[order], predicted.frame[order], side="left")
    most = _TIMES * np.bincount(objects.frame, minlength=frames)
    return predicted.take(order[np.arange(len(order)) - first < most[predicted.frame[order]]])


def _pairs(objects: BoxArrays, predicted: BoxArrays, places: np.ndarray) -> _Pairs:
    """places (N, 2): where the predictions are taken to be, global."""
    found: list[np.ndarray] = []
    for frame in np.unique(predicted.frame):
        p, t = (np.nonzero(boxes.frame == frame)[0] for boxes in (predicted, objects))
        if not len(t):
            continue
        apart = np.linalg.norm(places[p, None] - objects.boxes[None, t, :2], axis=-1)
        nearest = apart.argmin(axis=1)
        rows = np.arange(len(p))
        mutual = (apart.argmin(axis=0)[nearest] == rows) & (apart[rows, nearest] < _NEAR_M)
        found.append(np.stack([p[mutual], t[nearest[mutual]]]))
    joined = np.concatenate([np.zeros((2, 0), int), *found], axis=1)
    return _Pairs(joined[0], joined[1])


def _wrong_frame(frames: Sequence[Frame], objects: BoxArrays, predicted: BoxArrays) -> list[str]:
    """Whether boxes land on objects once they are taken to be in another frame than they were said to be in."""
    lidar_to_global = np.stack([frame.lidar_to_global() for frame in frames])
    ego_to_global = np.stack([frame.ego_to_global.matrix() for frame in frames])
    wrong = {
        "they are in the ego vehicle's frame and were read as the LiDAR's": ego_to_global
        @ np.linalg.inv(lidar_to_global),
        "they are in the LiDAR's frame and were read as the ego vehicle's": lidar_to_global
        @ np.linalg.inv(ego_to_global),
        "they are in the LiDAR's frame, and a submission is global": lidar_to_global,
        "they are in the ego vehicle's frame, and a submission is global": ego_to_global,
    }
    as_said = len(_pairs(objects, predicted, predicted.boxes[:, :2]).truth)
    places = np.concatenate([predicted.boxes[:, :3], np.ones((len(predicted), 1))], axis=1)
    hits = {
        what: len(_pairs(objects, predicted, np.einsum("nij,nj->ni", matrices[predicted.frame], places)[:, :2]).truth)
        for what, matrices in wrong.items()
    }
    what = max(hits, key=hits.__getitem__)
    if hits[what] < max(PAIRS, 0.3 * len(objects), 2 * as_said):
        return []
    return [
        f"boxes look to be in the wrong frame: {what}; then {hits[what]} of {len(objects)} objects would have a box, "
        f"now {as_said} have one"
    ]


def _wrong_sample(frames: Sequence[Frame], objects: BoxArrays, predicted: BoxArrays) -> list[str]:
    """Whether boxes land on objects of the neighbouring sample, once they are taken to be seen from there."""
    to_global = np.stack([frame.lidar_to_global() for frame in frames])
    to_lidar = np.linalg.inv(to_global)
    after = np.array([_follows(a, b) for a, b in itertools.pairwise(frames)], bool)
    for step, what in ((1, "early: they fit the next sample"), (-1, "late: they fit the one before")):
        follows = np.append(after, False) if step > 0 else np.insert(after, 0, False)
        mine = predicted.take(follows[predicted.frame])
        there = mine.frame + step
        seen = np.concatenate([mine.boxes[:, :3], np.ones((len(mine), 1))], axis=1)
        places = np.einsum("nij,njk,nk->ni", to_global[there], to_lidar[mine.frame], seen)[:, :2]
        as_said = len(_pairs(objects, mine, mine.boxes[:, :2]).truth)
        hits = len(_pairs(objects, replace(mine, frame=there), places).truth)
        most = int(np.isin(objects.frame, np.nonzero(follows)[0] + step).sum())
        if hits >= max(PAIRS, 0.3 * most, 2 * as_said):
            return [
                f"boxes look to stand one sample {what}, where {hits} of {most} objects would have one; at the sample "
                f"that they are given for {as_said} have one"
            ]
    return []


def _follows(a: Frame, b: Frame) -> bool:
    return a.scene_token == b.scene_token and 0 < b.timestamp_us - a.timestamp_us < _NEXT_US


def _wrong_classes(mine: BoxArrays, theirs: BoxArrays) -> list[str]:
    """Whether another order of the class list would make most labels right."""
    if len(mine) < PAIRS or np.mean(mine.class_ids == theirs.class_ids) > _MOST:
        return []
    from scipy.optimize import linear_sum_assignment  # half a second to load, and hardly ever needed

    table = np.zeros((len(DETECTION_CLASSES),) * 2)
    np.add.at(table, (mine.class_ids, theirs.class_ids), 1)
    said, meant = linear_sum_assignment(-table)
    right, best = np.trace(table) / len(mine), table[said, meant].sum() / len(mine)
    changed = [(s, m) for s, m in zip(said, meant, strict=True) if s != m and table[s, m] >= 0.5 * table[s].sum() > 0]
    if best < _MOST or right > best - 0.3 or not changed:
        return []
    names = ", ".join(f"{DETECTION_CLASSES[s]} lies on {DETECTION_CLASSES[m]}" for s, m in changed[:3])
    return [
        f"classes look to be in another order: {names}{', ...' if len(changed) > 3 else ''}; {right:.0%} of the labels "
        f"on objects are right, in the other order {best:.0%}; the order here is {', '.join(DETECTION_CLASSES)}"
    ]


def _wrong_sizes(mine: BoxArrays, theirs: BoxArrays) -> list[str]:
    """Whether width and length are the wrong way round, seen on objects that are not square."""
    truth, said = theirs.boxes[:, 3:6], mine.boxes[:, 3:6]
    long = np.abs(np.log(truth[:, 1] / truth[:, 0])) > np.log(1.4)
    if long.sum() < PAIRS:
        return []
    now, swapped = scale_iou(truth[long], said[long]), scale_iou(truth[long], said[long][:, [1, 0, 2]])
    if np.mean(swapped > now + 0.1) < _MOST:
        return []
    return [
        f"width and length look swapped: sizes overlap by {np.median(now):.2f}, swapped by {np.median(swapped):.2f}; a "
        "submission has w, l, h, detections have l, w, h"
    ]


def _wrong_headings(frames: Sequence[Frame], mine: BoxArrays, theirs: BoxArrays) -> list[str]:
    """Whether headings are off by one angle, or mirrored, seen on objects that have a front."""
    directed = np.isin(theirs.class_ids, _DIRECTED)
    if directed.sum() < PAIRS:
        return []
    lidar = yaw_of(np.stack([_lidar_quaternion(frame) for frame in frames]))[mine.frame[directed]]
    truth, said = (yaw_of(boxes.boxes[directed, 6:10]) - lidar for boxes in (theirs, mine))
    offset, agreed, sure = _turn_between(truth, said)
    if sure and abs(offset) < np.deg2rad(30):
        return []
    mirror, agreed_mirrored, sure_mirrored = _turn_between(-truth, said)
    # along a road a heading and its mirror image are much the same: what agrees better is said, if all is turned
    if sure_mirrored and agreed_mirrored > agreed + (0.0 if sure else 0.15):
        return [
            f"headings look mirrored (yaw = {np.rad2deg(mirror):.0f} degrees - yaw), as between clockwise and "
            "counter-clockwise; yaw here is counter-clockwise from +x of the frame, in radians"
        ]
    if not sure:
        return []
    return [
        f"headings look turned by {np.rad2deg(offset):+.0f} degrees against the objects'; yaw here is "
        "counter-clockwise from +x of the frame, in radians"
    ]


def _no_velocities(mine: BoxArrays, theirs: BoxArrays) -> list[str]:
    """Whether no prediction moves although objects do."""
    speed = np.hypot(theirs.boxes[:, 10], theirs.boxes[:, 11])
    moving = speed > 1.0
    if moving.sum() < 5 or np.nan_to_num(mine.boxes[:, 10:12]).any():
        return []
    return [
        f"velocities look to be missing: none of {len(mine)} predictions on objects moves, {int(moving.sum())} of the "
        f"objects do, at {np.mean(speed[moving]):.1f} m/s"
    ]


def _lidar_quaternion(frame: Frame) -> np.ndarray:
    return quaternion_product(frame.ego_to_global.rotation, frame.lidar_to_ego.rotation)


def _turn_between(a: np.ndarray, b: np.ndarray) -> tuple[float, float, bool]:
    """The angle from directions a to b (radians), how far all agree on it (0 to 1), and whether that is sure.

    Sure: more than chance, and more than two constants agree: a model that gives every box one heading says nothing of
    objects that mostly point one way."""
    one, other = np.exp(1j * a), np.exp(1j * b)
    mean, constant = (other * one.conj()).mean(), other.mean() * one.mean().conj()
    room = np.sqrt((1 - abs(one.mean()) ** 2) * (1 - abs(other.mean()) ** 2))
    related = abs(mean - constant) / max(room, 1e-3)
    least = max(_AGREED, np.sqrt(_CHANCE / len(a)))
    return float(np.angle(mean)), float(abs(mean)), bool(min(abs(mean), related) > least)
