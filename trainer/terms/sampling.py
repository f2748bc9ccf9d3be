"""A student's map read at places of its own frame: bilinear, and exact where a place is a cell's centre."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_bilinear(bev: Tensor, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """(K, C): the maps `bev` (B, C, H, W) at `samples`, `row`, `col` (K,); in the outer half cell the border value
    holds.

    Equals grid_sample(align_corners=False, padding_mode="border"); reads only the cells that are asked for, so the cost
    follows K, and has the exact value, not one to rounding, where a place is a cell centre.
    """
    batch, channels, height, width = bev.shape
    index, weights = corners(samples, row, col, (height, width))
    rows = bev.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights.to(bev.dtype))


def corners(samples: Tensor, row: Tensor, col: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Flat cells (K, 4) of maps (B, *shape) between which the places (K,) lie, and the share (K, 4) of each."""
    height, width = shape
    row, col = row.clamp(0, height - 1), col.clamp(0, width - 1)
    top, left = row.floor(), col.floor()
    down, right = row - top, col - left
    index, weight = [], []
    for i, row_weight in ((0, 1 - down), (1, down)):
        for j, col_weight in ((0, 1 - right), (1, right)):
            r, c = (top + i).clamp(max=height - 1), (left + j).clamp(max=width - 1)
            index.append((samples * height + r.long()) * width + c.long())
            weight.append(row_weight * col_weight)
    return torch.stack(index, dim=1), torch.stack(weight, dim=1)
