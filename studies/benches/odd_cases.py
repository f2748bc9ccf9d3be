"""Which odd cases of the metric a world holds, so that a test can tell that none of them is claimed without occurring.

Plain loops over boxes, and over the matches of `evaluation.portion`. In order: filters, matching, errors, files,
settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from cache.classes import DETECTION_CLASSES
from evaluation.box_arrays import BoxArrays, Places, places_of, submission_arrays, truth_arrays
from evaluation.metric_config import CVPR_2019, MetricConfig
from evaluation.metric_filters import ego_distance, in_racks
from evaluation.portion import MatchedPortion, match_portion
from evaluation.subsets import EVERYTHING
from studies.benches.odd_worlds import OddWorld

_CYCLES = [DETECTION_CLASSES.index(name) for name in ("bicycle", "motorcycle")]
_BARRIER, _CONE = (DETECTION_CLASSES.index(name) for name in ("barrier", "traffic_cone"))
CASES = (
    *("truth on the ring of its range", "prediction on the ring of its range", "truth beyond its range"),
    *("truth without points", "prediction with num_pts 0", "prediction with num_pts above 0"),
    *("cycle in a rack", "predicted cycle in a rack", "predicted cycle on a rack's face", "cycle beside a rack"),
    *("another class in a rack", "rack turned", "rack of zero rotation", "two racks in a sample"),
    *("class with predictions, without truth", "class with truth, without predictions", "class without both"),
    *("class without a match", "prediction of distance exactly a threshold", "equal scores in a class and sample"),
    *("equal scores in a class across samples", "several predictions near one object", "objects equally near"),
    *("nearest object taken, another one near", "matched at one threshold, not at another"),
    *("matched truth without attribute", "matched truth without velocity", "matched prediction without velocity"),
    *("matched prediction of infinite velocity", "first match without attribute", "no match with attribute"),
    *("all matches of score 0", "score above 1", "score below 0", "recall of a class below 0.1", "perfect class"),
    *("matched barrier", "matched cone", "matched barrier the other way round", "matched attribute of another class"),
    *("matched box of zero rotation", "matched box of a rotation of another length", "matched tilted box"),
    *("sample without predictions", "sample without truth", "no prediction at all", "no truth at all"),
    *("samples in another order", "sample of 500 boxes", "one sample", "all classes", "one class"),
    *("other thresholds", "one threshold", "other order of classes", "min_recall 0", "min_recall 0.9"),
    *("min_precision 0", "mean_ap_weight 0"),
)


def cases(world: OddWorld, config: MetricConfig) -> set[str]:
    """The names in `CASES` of what this world holds under these settings."""
    frames, truth, results = world
    place = {frame.token: number for number, frame in enumerate(frames)}
    objects, predicted, places = truth_arrays(truth), submission_arrays(place, results), places_of(frames, truth)
    found = set(_of_boxes(objects, predicted, places, config))
    found |= set(_of_files(world, objects, predicted))
    found |= set(_of_settings(config))
    if len(predicted) and (predicted.boxes[:, 3:6] > 0).all():
        matched = match_portion(objects, predicted, places, config, EVERYTHING)
        found |= set(_of_matches(matched, config)) | set(_of_classes(matched, config))
    return found


def count_cases(worlds: Iterable[tuple[OddWorld, MetricConfig]]) -> Counter[str]:
    """In how many worlds each case occurs; 0 where it never does."""
    counts = Counter(dict.fromkeys(CASES, 0))
    for world, config in worlds:
        counts.update(cases(world, config))
    return counts


def _of_boxes(objects: BoxArrays, predicted: BoxArrays, places: Places, config: MetricConfig) -> Iterable[str]:
    ranges = config.ranges()
    for boxes, what in ((objects, "truth"), (predicted, "prediction")):
        distance, limit = ego_distance(boxes, places), ranges[boxes.class_ids]
        if (distance == limit).any():
            yield f"{what} on the ring of its range"
        if what == "truth" and (distance > limit).any():
            yield "truth beyond its range"
    if ((objects.points == 0) & (ego_distance(objects, places) < ranges[objects.class_ids])).any():
        yield "truth without points"
    if (predicted.points == 0).any():
        yield "prediction with num_pts 0"
    if (predicted.points > 0).any():
        yield "prediction with num_pts above 0"
    for boxes, what in ((objects, "cycle"), (predicted, "predicted cycle")):
        inside = in_racks(boxes, places, np.ones(len(boxes), bool))
        if inside.any():
            yield f"{what} in a rack"
        beside = np.isin(boxes.class_ids, _CYCLES) & ~inside & np.isin(boxes.frame, places.rack_frame)
        if beside.any():
            yield "cycle beside a rack"
    yield from _of_racks(predicted, places)


def _of_racks(predicted: BoxArrays, places: Places) -> Iterable[str]:
    if len(np.unique(places.rack_frame)) < len(places.rack_frame):
        yield "two racks in a sample"
    for rack, frame in zip(places.racks, places.rack_frame, strict=True):
        if not rack[6:10].any():
            yield "rack of zero rotation"
            continue
        if abs(rack[6]) < 0.99 * np.linalg.norm(rack[6:10]):
            yield "rack turned"
        straight = not rack[7:9].any() and abs(rack[9]) < 1e-12
        here = predicted.frame == frame
        for box, label in zip(predicted.boxes[here], predicted.class_ids[here], strict=True):
            room = rack[[4, 3, 5]] / 2 - np.abs(box[:3] - rack[:3])
            if label in _CYCLES and straight and (room >= 0).all() and not room.all():
                yield "predicted cycle on a rack's face"
            elif label not in _CYCLES and (np.abs(box[:3] - rack[:3]) < 0.2).all():
                yield "another class in a rack"


def _of_matches(matched: MatchedPortion, config: MetricConfig) -> Iterable[str]:
    predicted, truth = matched.predicted, matched.truth
    at = config.dist_ths.index(config.dist_th_tp)
    for i in range(len(predicted)):
        same = (truth.frame == predicted.frame[i]) & (truth.class_ids == predicted.class_ids[i])
        distance = np.array([np.linalg.norm(box[:2] - predicted.boxes[i, :2]) for box in truth.boxes[same]])
        if np.isin(distance, config.dist_ths).any():
            yield "prediction of distance exactly a threshold"
        if len(distance) > 1 and np.sort(distance)[0] == np.sort(distance)[1]:
            yield "objects equally near"
        near = (distance < config.dist_th_tp).sum()
        nearest = np.nonzero(same)[0][distance.argmin()] if len(distance) else -1
        if near > 1 and matched.taken[at, i] >= 0 and matched.taken[at, i] != nearest:
            yield "nearest object taken, another one near"
        if near and matched.taken[at, i] < 0:
            yield "several predictions near one object"
        taken = matched.taken[:, i] >= 0
        if taken.any() and not taken.all():
            yield "matched at one threshold, not at another"
        rivals = (predicted.class_ids == predicted.class_ids[i]) & (predicted.scores == predicted.scores[i])
        rivals[i] = False
        if (rivals & (predicted.frame == predicted.frame[i])).any():
            yield "equal scores in a class and sample"
        if (rivals & (predicted.frame != predicted.frame[i])).any():
            yield "equal scores in a class across samples"
    for i in matched.hit:
        yield from _of_a_match(predicted.take(np.array([i])), truth.take(matched.taken[at, i : i + 1]))


def _of_a_match(ours: BoxArrays, theirs: BoxArrays) -> Iterable[str]:
    label, box, other = int(ours.class_ids[0]), ours.boxes[0], theirs.boxes[0]
    if theirs.attribute_ids[0] < 0:
        yield "matched truth without attribute"
    elif ours.attribute_ids[0] != theirs.attribute_ids[0]:
        yield "matched attribute of another class"
    if np.isnan(other[10:]).any():
        yield "matched truth without velocity"
    if np.isnan(box[10:]).any():
        yield "matched prediction without velocity"
    if np.isinf(box[10:]).any():
        yield "matched prediction of infinite velocity"
    if label == _CONE:
        yield "matched cone"
    for one in (box, other):
        length = np.linalg.norm(one[6:10])
        if not length:
            yield "matched box of zero rotation"
        elif abs(length - 1) > 0.01:
            yield "matched box of a rotation of another length"
        if one[7:9].any():
            yield "matched tilted box"
    if label == _BARRIER:
        yield "matched barrier"
        if not box[7:9].any() and not other[7:9].any() and box[6:10].any() and other[6:10].any():
            turn = 2 * (np.arctan2(box[9], box[6]) - np.arctan2(other[9], other[6]))
            if np.cos(turn) < -0.5:
                yield "matched barrier the other way round"


def _of_classes(matched: MatchedPortion, config: MetricConfig) -> Iterable[str]:
    predicted, truth = matched.predicted, matched.truth
    at = config.dist_ths.index(config.dist_th_tp)
    for label in range(len(DETECTION_CLASSES)):
        mine, objects = predicted.class_ids == label, int((truth.class_ids == label).sum())
        if not mine.any() or not objects:
            lacking = "with predictions, without truth" if mine.any() else "with truth, without predictions"
            yield f"class {lacking}" if mine.any() or objects else "class without both"
            continue
        hits = np.nonzero(mine & (matched.taken[at] >= 0))[0]
        if not len(hits):
            yield "class without a match"
            continue
        if len(hits) < 0.1 * objects:
            yield "recall of a class below 0.1"
        if len(hits) == objects == mine.sum():
            yield "perfect class"
        if not predicted.scores[hits].any():
            yield "all matches of score 0"
        attributes = truth.attribute_ids[matched.taken[at, hits]]
        if (attributes < 0).all():
            yield "no match with attribute"
        elif attributes[np.argsort(-predicted.scores[hits], kind="stable")[0]] < 0:
            yield "first match without attribute"


def _of_files(world: OddWorld, objects: BoxArrays, predicted: BoxArrays) -> Iterable[str]:
    frames, truth, results = world
    if any(not boxes for boxes in results.values()):
        yield "sample without predictions"
    if any(not len(one) for one in truth):
        yield "sample without truth"
    if not len(predicted):
        yield "no prediction at all"
    if not len(objects):
        yield "no truth at all"
    if [*results] != [frame.token for frame in frames]:
        yield "samples in another order"
    if max(map(len, results.values())) == CVPR_2019.max_boxes_per_sample:
        yield "sample of 500 boxes"
    if len(frames) == 1:
        yield "one sample"
    if (predicted.scores > 1).any():
        yield "score above 1"
    if (predicted.scores < 0).any():
        yield "score below 0"
    present = len(np.unique(np.concatenate([objects.class_ids, predicted.class_ids])))
    if present == len(DETECTION_CLASSES):
        yield "all classes"
    if present == 1:
        yield "one class"


def _of_settings(config: MetricConfig) -> Iterable[str]:
    if config.dist_ths != CVPR_2019.dist_ths:
        yield "one threshold" if len(config.dist_ths) == 1 else "other thresholds"
    if [*config.class_range] != [*CVPR_2019.class_range]:
        yield "other order of classes"
    for key, values in (("min_recall", (0.0, 0.9)), ("min_precision", (0.0,)), ("mean_ap_weight", (0,))):
        if getattr(config, key) in values:
            yield f"{key} {getattr(config, key):g}"
