"""Which of the student's queries answers for which of the teacher's objects: the cheapest one-to-one assignment.

Cost of a pair, as released: soft binary cross-entropy between the query's class logits and the teacher's class scores,
summed over classes, plus L1 over the first eight numbers of the boxes' codes. Costs are made where the answers are, for
all layers of a frame at once; the assignments by scipy on the CPU. Source: Chen et al. 2022 and its released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MATCHED_NUMBERS = 8  # of a box's code: velocities do not decide
WORST = 1e6  # in place of a cost that is not finite: the loss, not the assignment, tells of it


@dataclass(frozen=True)
class Matches:
    """M pairs. layer, sample, query: of the student's queries; item: of the teacher's objects, all frames in one list.
    All (M,) int64."""

    layer: Tensor
    sample: Tensor
    query: Tensor
    item: Tensor


def soft_class_cost(logits: Tensor, probs: Tensor) -> Tensor:
    """(..., Q, T): sum over classes of BCE(logits (..., Q, classes), targets (T, classes) in 0..1)."""
    return F.softplus(logits).sum(dim=-1, keepdim=True) - logits @ probs.T


@torch.no_grad()
def match_sets(
    logits: Tensor, codes: Tensor, probs: Tensor, wanted: Tensor, counts: tuple[int, ...], weights: tuple[float, float]
) -> Matches:
    """The student's queries for the teacher's objects, in each layer and frame by itself.

    logits: (L, B, Q, classes); codes: (L, B, Q, 10); probs: (T, classes) and wanted: (T, 10) of all frames one after
    another, counts of them in each; weights: of the class cost and of the box cost. Where there are more objects than
    queries the dearest objects stay without one.
    """
    found: list[Tensor] = []
    first = 0
    for sample, count in enumerate(counts):
        items = slice(first, first + count)
        theirs = wanted[items, :MATCHED_NUMBERS].float().expand(len(codes), -1, -1)
        distance = torch.cdist(codes[:, sample, :, :MATCHED_NUMBERS].float(), theirs, p=1)
        cost = weights[0] * soft_class_cost(logits[:, sample].float(), probs[items].float()) + weights[1] * distance
        costs = torch.nan_to_num(cost, nan=WORST, posinf=WORST, neginf=WORST).double().cpu().numpy()  # (L, Q, T)
        for layer, of_layer in enumerate(costs):
            query, item = (torch.from_numpy(side) for side in linear_sum_assignment(of_layer))
            place = torch.tensor([[layer], [sample]]).expand(2, len(query))
            found.append(torch.cat([place, torch.stack([query, first + item])]))
        first += count
    joined = torch.cat(found, dim=1) if found else torch.zeros(4, 0, dtype=torch.int64)
    return Matches(*joined.to(logits.device))
