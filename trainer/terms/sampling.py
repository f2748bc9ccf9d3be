"""Where a cached cell lies on an augmented map, and the map's value there: bilinear, exact where it meets a cell
centre.

Teacher values stay in the canonical frame; the student's map is read at A * p for each cell centre p. Flips and the
identity map centres onto centres, and there the very value of the cell comes out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.grid import BevGrid

_SNAP = 1e-6  # cells: closer to a centre than this is rounding of A * p, not a place of its own


def augmented_cells(index: Tensor, samples: Tensor, bev_augmentation: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Row and column (K,) float64, whole numbers at cell centres, of A[sample] * (centre of cell `index`).

    index: (K,) flat cells; samples: (K,); bev_augmentation: (B, 4, 4) canonical -> augmented. Outside the grid the row
    is below -0.5 or not below H - 0.5, likewise the column.
    """
    col, row = index % grid.width, torch.div(index, grid.width, rounding_mode="floor")
    x = grid.x_min + (col.double() + 0.5) * grid.cell_m
    y = grid.y_min + (row.double() + 0.5) * grid.cell_m
    a = bev_augmentation.double()[samples]  # (K, 4, 4)
    moved_x = a[:, 0, 0] * x + a[:, 0, 1] * y + a[:, 0, 3]
    moved_y = a[:, 1, 0] * x + a[:, 1, 1] * y + a[:, 1, 3]
    return _snapped((moved_y - grid.y_min) / grid.cell_m - 0.5), _snapped((moved_x - grid.x_min) / grid.cell_m - 0.5)


def grid_places(points: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Row and column (K,) float64, as `augmented_cells` gives them, of points (K, 2) x, y (m)."""
    x, y = points[:, 0].double(), points[:, 1].double()
    return _snapped((y - grid.y_min) / grid.cell_m - 0.5), _snapped((x - grid.x_min) / grid.cell_m - 0.5)


def _snapped(position: Tensor) -> Tensor:
    whole = position.round()
    return torch.where((position - whole).abs() < _SNAP, whole, position)


def inside_grid(row: Tensor, col: Tensor, grid: BevGrid) -> Tensor:
    """(K,) bool: whether the place lies on the grid, edges of the outer cells included below and left."""
    return (row >= -0.5) & (row < grid.height - 0.5) & (col >= -0.5) & (col < grid.width - 0.5)


def sample_bilinear(bev: Tensor, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """(K, C): the maps `bev` (B, C, H, W) at `samples`, `row`, `col` (K,); in the outer half cell the border value
    holds.

    Equals grid_sample(align_corners=False, padding_mode="border"); reads only the cells that are asked for, so the cost
    follows K, and has the exact value, not one to rounding, where a place is a cell centre.
    """
    batch, channels, height, width = bev.shape
    row, col = row.clamp(0, height - 1), col.clamp(0, width - 1)
    top, left = row.floor(), col.floor()
    down, right = row - top, col - left
    index, weight = [], []
    for i, row_weight in ((0, 1 - down), (1, down)):
        for j, col_weight in ((0, 1 - right), (1, right)):
            r, c = (top + i).clamp(max=height - 1), (left + j).clamp(max=width - 1)
            index.append((samples * height + r.long()) * width + c.long())
            weight.append(row_weight * col_weight)
    rows = bev.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    weights = torch.stack(weight, dim=1).to(bev.dtype)
    return F.embedding_bag(torch.stack(index, dim=1), rows, mode="sum", per_sample_weights=weights)
