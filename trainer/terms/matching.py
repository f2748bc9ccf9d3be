"""Which of the student's queries answers for which of the teacher's objects: the cheapest one-to-one assignment.

`models.matching` with soft classes. Cost of a pair, as released: binary cross-entropy between the query's class logits
and the teacher's class scores, summed over classes, plus L1 over the first eight numbers of the boxes' codes.
Source: Chen et al. 2022 and its released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.matching import UNMATCHED, cheapest

MATCHED_NUMBERS = 8  # of a box's code: velocities do not decide


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
    costs, first = [logits.new_zeros(len(logits), 0, logits.shape[2], dtype=torch.float32)], 0
    for sample, count in enumerate(counts):  # frame by frame: gathered by object, logits would be copied for each
        items = slice(first, first + count)
        theirs = wanted[items, :MATCHED_NUMBERS].float().expand(len(codes), -1, -1)
        distance = torch.cdist(codes[:, sample, :, :MATCHED_NUMBERS].float(), theirs, p=1)
        cost = weights[0] * soft_class_cost(logits[:, sample].float(), probs[items].float()) + weights[1] * distance
        costs.append(cost.transpose(1, 2))  # (L, count, Q)
        first += count
    query = cheapest(torch.cat(costs, dim=1), counts)  # (L, T)
    layer, item = (query != UNMATCHED).nonzero(as_tuple=True)
    frame = torch.repeat_interleave(torch.tensor(counts)).to(item.device)
    return Matches(layer, frame[item], query[layer, item], item)
