"""A weighted distance between two features over stored cells, and the ways to normalise its sum.

With weights w_k and distances d_k of the cells k:

    per cell:  squared  r_c (S - T)^2        norm  sqrt(r_c (S - T)^2)         r_c = mean or sum over channels
    mass:      sum_k w_k d_k / max(sum_k w_k, 1), over the cells of the whole batch                (released)
    area:      mean over frames of sum_k w_k d_k / (H W max_k w_k)                                 (the paper)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.detector import LossPart

Reduce = Literal["mean", "sum"]
Distance = Literal["squared", "norm"]
Normaliser = Literal["mass", "area"]


def distance_per_cell(difference: Tensor, reduce: Reduce, distance: Distance) -> Tensor:
    """(K,) of (K, C). The norm's gradient at 0 is 0."""
    if distance == "norm":
        length = torch.linalg.vector_norm(difference, dim=1)
        return length / difference.shape[1] ** 0.5 if reduce == "mean" else length
    error = difference.square()
    return error.mean(dim=1) if reduce == "mean" else error.sum(dim=1)


def weighted_part(
    per_cell: Tensor, weights: Tensor, samples: Tensor, frames: int, normaliser: Normaliser, cells: int, factor: float
) -> LossPart:
    """per_cell, weights, samples: (K,); cells: H * W; factor: the part's weight. `area` counts frames with a cell."""
    if normaliser == "mass":
        return LossPart((weights * per_cell).sum()[None], weights.sum()[None], factor)
    largest = weights.new_zeros(frames).scatter_reduce(0, samples, weights, "amax")
    share = weights / (cells * largest[samples])
    return LossPart((share * per_cell).sum()[None], (largest > 0).sum()[None].to(weights.dtype), factor)
