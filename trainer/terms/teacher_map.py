"""The teacher's stored map read at any place: bilinear over the stored cells, in the canonical frame.

A place is known where all the cells that it lies between are stored; of a store with every cell it always is. What is
read equals `trainer.terms.sampling.sample_bilinear` on the whole map; the cost follows the places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.grid import BevGrid
from trainer.said import TeacherCells


def cell_table(cells: TeacherCells, grid: BevGrid) -> Tensor:
    """(B * H * W,) int64: each cell's position among the stored ones, -1 where it is not stored."""
    area = grid.height * grid.width
    frames = len(cells.offsets) - 1
    table = torch.full((frames * area,), -1, dtype=torch.int64, device=cells.index.device)
    table[cells.samples() * area + cells.index] = torch.arange(len(cells.index), device=table.device)
    return table


def teacher_at(cells: TeacherCells, grid: BevGrid, samples: Tensor, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Values (M, C) and whether they are known (M,) at `samples`, `row`, `col` (M,) of the teacher's grid; 0 where not.

    Rows and columns are whole at cell centres; in the outer half cell the border value holds.
    """
    table = cell_table(cells, grid)
    row, col = row.clamp(0, grid.height - 1), col.clamp(0, grid.width - 1)
    top, left = row.floor(), col.floor()
    positions, shares = [], []
    for i, of_row in ((0, 1 - (row - top)), (1, row - top)):
        for j, of_col in ((0, 1 - (col - left)), (1, col - left)):
            r, c = (top + i).clamp(max=grid.height - 1).long(), (left + j).clamp(max=grid.width - 1).long()
            positions.append(table[(samples * grid.height + r) * grid.width + c])
            shares.append(of_row * of_col)
    position, share = torch.stack(positions, dim=1), torch.stack(shares, dim=1)  # (M, 4)
    known = ((position >= 0) | (share == 0)).all(dim=1)
    values = cells.values if cells.values.dtype == torch.float64 else cells.values.float()
    if not len(values):
        return values.new_zeros(len(row), values.shape[1]), known
    weights = (share * known[:, None]).to(values.dtype)
    return F.embedding_bag(position.clamp(min=0), values, mode="sum", per_sample_weights=weights), known


def canonical_points(points: Tensor, samples: Tensor, bev_augmentation: Tensor) -> Tensor:
    """(M, 2) float64 x, y: where points (M, 2) of the student's frame lie in the canonical one."""
    back = torch.linalg.inv(bev_augmentation.double())[samples]
    return torch.einsum("mij,mj->mi", back[:, :2, :2], points.double()) + back[:, :2, 3]
