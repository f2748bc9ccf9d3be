"""A whole split matched, flat: what a report explains a score by, and what is resampled for its intervals.

Of every prediction that counts: frame, class, score, what it was matched with, which kind of error it is. Of every
object: where, how large, how visible, whether found. Made from frames in portions; some 50 bytes a prediction stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cache.errors import DataError
from cache.frame import Detections, Frame, GroundTruth
from evaluation.array_metric import PORTION
from evaluation.box_arrays import BoxArrays, Places, detection_arrays, places_of, truth_arrays
from evaluation.error_kinds import prediction_kinds
from evaluation.metric_config import CVPR_2019, MetricConfig
from evaluation.metric_filters import ego_distance
from evaluation.portion import MatchedPortion, match_portion
from evaluation.submission_file import SubmissionArrays
from evaluation.subsets import EVERYTHING, Subset

BoxesOf = Callable[[Sequence[Frame]], BoxArrays]  # of some frames of the split, whose `frame` counts in them


@dataclass(frozen=True)
class Objects:
    """G objects that count: frame (G,) place in the split; class_ids; distance (G,) metres from the ego vehicle; length
    (G,) metres, the longer side; visibility (0 unknown); found (G, T) bool at each threshold."""

    frame: np.ndarray
    class_ids: np.ndarray
    distance: np.ndarray
    length: np.ndarray
    visibility: np.ndarray
    found: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class MatchTable:
    """F frames of S scenes. tokens, scene (F,): index into scene_names. N predictions that count: frame, class_ids,
    scores (N,); hits (N, T) bool; taken, target (N,) row of objects, -1 none: matched with at the threshold of the TP
    errors, and what an error is about; kind (N,): of `evaluation.error_kinds`; errors (N, 5), NaN where not matched."""

    config: MetricConfig
    subset: Subset
    tokens: tuple[str, ...]
    scene: np.ndarray
    scene_names: tuple[str, ...]
    objects: Objects
    frame: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    taken: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    errors: np.ndarray = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that the metric's means go over."""
        return tuple(name for name in self.config.class_range if self.subset.has_class(name))

    @property
    def tp_column(self) -> int:
        """The threshold of the TP errors, as a column."""
        return self.config.dist_ths.index(self.config.dist_th_tp)


def detections_of(detections: Mapping[str, Detections]) -> BoxesOf:
    """Boxes of frames out of a model's detections by token."""
    return lambda frames: detection_arrays(frames, [detections[frame.token] for frame in frames])


def file_boxes_of(read: SubmissionArrays) -> BoxesOf:
    """Boxes of frames out of a submission file. Of equal scores the metric ranks by the order of samples in the file, a
    table by that of the frames it is given."""

    def boxes(frames: Sequence[Frame]) -> BoxArrays:
        found = read.of([frame.token for frame in frames])
        return found.take(np.argsort(found.frame, kind="stable"))

    return boxes


def match_table(
    frames: Sequence[Frame],
    truth: Sequence[GroundTruth],
    boxes_of: BoxesOf,
    *,
    config: MetricConfig = CVPR_2019,
    subset: Subset = EVERYTHING,
) -> MatchTable:
    """The table of frames in their order. Raises DataError as the metric does, and for no frame at all."""
    if not frames or len(frames) != len(truth):
        raise DataError(f"report: {len(frames)} frames and {len(truth)} ground truths, expected as many, at least one")
    parts: list[list[np.ndarray]] = []
    objects: list[Objects] = []
    count = 0
    for start in range(0, len(frames), PORTION):
        part = slice(start, start + PORTION)
        places = places_of(frames[part], truth[part])
        found = match_portion(truth_arrays(truth[part]), boxes_of(frames[part]), places, config, subset)
        parts.append(_predictions(found, config, start, count))
        objects.append(_objects(found, places, config, start))
        count += len(objects[-1])
    names = list(dict.fromkeys(frame.scene_name for frame in frames))
    number = {name: place for place, name in enumerate(names)}
    return MatchTable(
        config,
        subset,
        tuple(frame.token for frame in frames),
        np.array([number[frame.scene_name] for frame in frames], np.int32),
        tuple(names),
        Objects(*(np.concatenate(column) for column in zip(*(vars(one).values() for one in objects), strict=True))),
        *(np.concatenate(column) for column in zip(*parts, strict=True)),
    )


def _predictions(found: MatchedPortion, config: MetricConfig, first_frame: int, first_object: int) -> list[np.ndarray]:
    """Columns of a portion's predictions, in the order of `MatchTable`'s fields from `frame` on."""
    at = config.dist_ths.index(config.dist_th_tp)
    taken, predicted = found.taken[at], found.predicted
    kind, target = prediction_kinds(found.truth, predicted, taken, config.dist_th_tp, max(config.dist_ths))
    errors = np.full((len(predicted), found.errors.shape[1]), np.nan, np.float64)
    errors[found.hit] = found.errors
    return [
        (predicted.frame + first_frame).astype(np.int32),
        predicted.class_ids.astype(np.int8),
        predicted.scores,
        (found.taken >= 0).T.copy(),
        np.where(taken >= 0, taken + first_object, -1),
        np.where(target >= 0, target + first_object, -1),
        kind,
        errors,
    ]


def _objects(found: MatchedPortion, places: Places, config: MetricConfig, first_frame: int) -> Objects:
    truth = found.truth
    seen = np.zeros((len(truth), len(config.dist_ths)), bool)
    for column, taken in enumerate(found.taken):
        seen[taken[taken >= 0], column] = True
    return Objects(
        (truth.frame + first_frame).astype(np.int32),
        truth.class_ids.astype(np.int8),
        ego_distance(truth, places),
        truth.boxes[:, 3:5].max(axis=1, initial=0.0),
        truth.visibility.astype(np.int8),
        seen,
    )


def require_same_frames(tables: Mapping[str, MatchTable]) -> None:
    """DataError naming the first two whose frames, scenes or part of the split differ: no difference means anything."""
    (first, one), *others = tables.items()
    for name, other in others:
        if other.tokens != one.tokens or other.scene_names != one.scene_names:
            raise DataError(
                f"{first} is scored on {len(one.tokens)} frames of {_ends(one)} and {name} on {len(other.tokens)} of "
                f"{_ends(other)}; a comparison needs the same frames in the same order: score both on one split"
            )
        if other.subset != one.subset or other.config != one.config:
            raise DataError(
                f"{first} counts {one.subset} and {name} {other.subset}, or their metrics' settings differ; compare "
                "scores of one kind"
            )


def _ends(table: MatchTable) -> str:
    names = table.scene_names
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
