"""Which query answers for which object: the cheapest one-to-one assignment, per frame and layer (Carion et al. 2020).

Costs are computed for all layers and frames at once where the answers are, in fp32; the assignments by scipy's
Hungarian method on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
UNMATCHED = -1
WORST = 1e6  # in place of a cost that is not finite, so that the loss, and not the assignment, tells of it


@dataclass(frozen=True)
class SetTargets:
    """The objects of a batch of B frames, K in all, frame by frame.

    sample: (K,) int64; labels: (K,) int64 class ids; boxes: (K, 10) float32 as `models.detector.QueryOutput.boxes`, NaN
    where unknown; counts: of each frame.
    """

    sample: Tensor
    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]


@torch.no_grad()
def match_queries(
    logits: Tensor, boxes: Tensor, targets: SetTargets, *, class_weight: float, box_weight: float, box_numbers: int = 8
) -> Tensor:
    """(L, K) int64: the query that answers for each object in each layer, `UNMATCHED` where there were too few.

    logits: (L, B, Q, classes); boxes: (L, B, Q, 10). Cost: class_weight x focal cost + box_weight x L1 over the first
    `box_numbers` numbers of a box, unknown ones left out.
    """
    cost = class_weight * focal_cost(logits, targets) + box_weight * box_cost(boxes, targets, box_numbers)
    return cheapest(cost, targets.counts)


@torch.no_grad()
def cheapest(cost: Tensor, counts: Sequence[int]) -> Tensor:
    """(L, K) int64: the query of the cheapest one-to-one assignment of each frame, `UNMATCHED` where there were too few
    queries. cost: (L, K, Q) of the frames' K objects with the queries of their own frame; counts: objects a frame."""
    from scipy.optimize import linear_sum_assignment  # half a second to load, and most models match nothing

    costs = torch.nan_to_num(cost, nan=WORST, posinf=WORST, neginf=WORST).double().cpu().numpy()
    found = np.full(costs.shape[:2], UNMATCHED, np.int64)
    for layer, of_layer in enumerate(costs):
        first = 0
        for count in counts:
            objects, queries = linear_sum_assignment(of_layer[first : first + count])
            found[layer, first + objects] = queries
            first += count
    return torch.from_numpy(found).to(cost.device)


def focal_cost(logits: Tensor, targets: SetTargets) -> Tensor:
    """(L, K, Q): what the focal loss of a query would change by if it took the object's class."""
    p = logits.float().sigmoid()
    positive = -(p + 1e-12).log() * FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA
    negative = -(1 - p + 1e-12).log() * (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA
    return (positive - negative).permute(1, 3, 0, 2)[targets.sample, targets.labels].transpose(0, 1)


def box_cost(boxes: Tensor, targets: SetTargets, numbers: int) -> Tensor:
    """(L, K, Q): sum of absolute differences of the first `numbers` numbers."""
    wanted = targets.boxes[None, :, None, :numbers]  # (1, K, 1, numbers)
    error = (boxes.float()[:, targets.sample, :, :numbers] - wanted).abs()
    return torch.where(torch.isnan(wanted), 0.0, error).sum(dim=-1)
