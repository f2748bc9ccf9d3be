"""Suppression: of two boxes of one class that are too close, the weaker one goes. Close by the distance of centres
(circle), or by their overlap seen from above (rotated).

Greedy in score order like any NMS, but settled for a whole class at once, over the pairs that are close; costs the
distances between all boxes of a class, 15 ms for 3,000 boxes of ten classes on one core, and for `rotated` the overlap
of pairs that could touch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.rotated_iou import paired_iou


def circle_suppress(centres: Tensor, labels: Tensor, radius_m: Tensor) -> Tensor:
    """Which boxes (K,) bool stay.

    centres: (K, 2) x, y in metres, sorted by score, best first; labels: (K,) class ids; radius_m: (classes,) metres,
    0 keeps all of a class.
    """
    stays = torch.ones(len(centres), dtype=torch.bool, device=centres.device)
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        places = centres[mine].float()
        distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
        better, worse = (distance < radius_m[label].to(distance)).triu(diagonal=1).nonzero(as_tuple=True)
        stays[mine] = _settled(len(mine), better, worse)
    return stays


def rotated_suppress(boxes: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
    """Which boxes (K,) bool stay.

    boxes: (K, 7 or more) x, y, z, l, w, h, yaw, sorted by score, best first; labels: (K,) class ids; iou: (classes,)
    overlap above which the weaker box goes, 0 keeps all of a class.
    """
    stays = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    flat = boxes[:, [0, 1, 3, 4, 6]].double()
    reach = flat[:, 2:4].norm(dim=1) / 2
    for label in labels.unique().tolist():
        if iou[label] <= 0:
            continue
        mine = (labels == label).nonzero()[:, 0]
        places, radius = flat[mine, :2], reach[mine]
        distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
        near = (distance < radius[:, None] + radius[None]).triu(diagonal=1)
        better, worse = near.nonzero(as_tuple=True)
        over = paired_iou(flat[mine[better]], flat[mine[worse]]) > iou[label].to(flat)
        stays[mine] = _settled(len(mine), better[over], worse[over])
    return stays


def _settled(count: int, better: Tensor, worse: Tensor) -> Tensor:
    """Which of `count` boxes stay, given the pairs that are close: a box stays iff no better box that stays is close to
    it. Repeating that rule from "all stay" settles box i after at most i rounds, at the greedy answer; in practice
    after a few."""
    stays = torch.ones(count, dtype=torch.bool, device=better.device)
    while True:
        settled = torch.ones_like(stays)
        settled[worse[stays[better]]] = False
        if torch.equal(settled, stays):
            return stays
        stays = settled
