"""The metric's filters over arrays, in its order: range from the ego vehicle, points inside, bicycle racks.

Applied alike to ground truth and predictions. Equal to the devkit's to the last bit: where rounding could decide (a
centre on the face of a rack), the devkit's own function is asked.
"""

from __future__ import annotations

import numpy as np

from cache.classes import DETECTION_CLASSES
from evaluation.box_arrays import BoxArrays, Places
from evaluation.metric_config import MetricConfig
from evaluation.metrics import FilterCounts
from evaluation.tp_errors import rotation_matrices

_CYCLES = [DETECTION_CLASSES.index("bicycle"), DETECTION_CLASSES.index("motorcycle")]
_DOUBT = 1e-6  # share of a rack's side, far above the rounding of coordinates of 1e4 m


def ego_distance(boxes: BoxArrays, places: Places) -> np.ndarray:
    """(N,) float64 metres in the ground plane from each box to the ego vehicle of its frame."""
    offset = boxes.boxes[:, :2] - places.ego[boxes.frame, :2]
    return np.sqrt(np.square(offset[:, 0]) + np.square(offset[:, 1]))


def filtered(boxes: BoxArrays, places: Places, config: MetricConfig) -> tuple[BoxArrays, FilterCounts]:
    """What the metric counts, order kept, and how many boxes each filter left."""
    near = ego_distance(boxes, places) < config.ranges()[boxes.class_ids]
    seen = near & (boxes.points != 0)
    kept = seen & ~in_racks(boxes, places, seen)
    counts = FilterCounts(len(boxes), int(near.sum()), int(seen.sum()), int(kept.sum()))
    return boxes.take(kept), counts


def in_racks(boxes: BoxArrays, places: Places, ask: np.ndarray) -> np.ndarray:
    """(N,) bool: bicycles and motorcycles, of those that `ask` marks, whose centre lies in a rack of their frame."""
    out = np.zeros(len(boxes), bool)
    if not len(places.racks):
        return out
    cycles = np.nonzero(ask & np.isin(boxes.class_ids, _CYCLES))[0]
    order = np.argsort(places.rack_frame, kind="stable")
    first = np.searchsorted(places.rack_frame[order], boxes.frame[cycles], side="left")
    counts = np.searchsorted(places.rack_frame[order], boxes.frame[cycles], side="right") - first
    cycle = np.repeat(cycles, counts)
    rack = order[np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(len(cycle))]
    racks = places.racks[rack]
    offset = boxes.boxes[cycle, :3] - racks[:, :3]
    along = np.einsum("nij,ni->nj", rotation_matrices(racks[:, 6:10]), offset)  # in the rack's axes: l, w, h
    # signed room to the nearest face, as a share of the side: above 0 inside
    with np.errstate(divide="ignore", invalid="ignore"):  # a rack without extent
        room = (0.5 - np.abs(along) / racks[:, [4, 3, 5]]).min(axis=1)
    inside = room >= 0
    for pair in np.nonzero(~(np.abs(room) > _DOUBT))[0]:
        inside[pair] = _devkit_in_rack(racks[pair], boxes.boxes[cycle[pair], :3])
    np.logical_or.at(out, cycle, inside)
    return out


def _devkit_in_rack(rack: np.ndarray, point: np.ndarray) -> bool:
    from nuscenes.utils.data_classes import Box  # two seconds to load, and hardly ever needed
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    box = Box(rack[:3].tolist(), rack[3:6].tolist(), Quaternion(rack[6:10].tolist()))
    return bool(np.sum(points_in_box(box, np.expand_dims(point, axis=1))) > 0)
