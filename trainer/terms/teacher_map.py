"""The teacher's stored map read at any place: bilinear over the stored cells, in the canonical frame.

A place is known where it lies on the map and all the cells that it lies between are stored; of a store with every cell
it is known everywhere on the map. What is read equals `trainer.terms.sampling.sample_bilinear` on the whole map; the
cost follows the places, and B * H * W for the table of positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cache.grid import BevGrid
from trainer.said import TeacherCells
from trainer.terms.places import inside_grid
from trainer.terms.precision import at_least_fp32


def stored_positions(cells: TeacherCells, grid: BevGrid, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """(...,) int64: the position among the stored cells of the cell (sample, row, col), all int64 of shapes that
    broadcast; -1 where it is not stored or off the grid."""
    area, frames = grid.height * grid.width, len(cells.offsets) - 1
    table = torch.full((frames * area + 1,), -1, dtype=torch.int64, device=cells.index.device)  # the last: off the grid
    table[cells.samples() * area + cells.index] = torch.arange(len(cells.index), device=table.device)
    inside = (row >= 0) & (row < grid.height) & (col >= 0) & (col < grid.width)
    return table[torch.where(inside, samples * area + row * grid.width + col, frames * area)]


def stored_bilinear(
    cells: TeacherCells, grid: BevGrid, samples: Tensor, row: Tensor, col: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (M, C) and whether they are known (M,) at `samples`, `row`, `col` (M,) of the teacher's grid; 0 where not.

    Rows and columns are whole at cell centres; in the outer half cell the border value holds.
    """
    known = inside_grid(row, col, grid)
    row, col = row.clamp(0, grid.height - 1), col.clamp(0, grid.width - 1)
    top, left = row.floor(), col.floor()
    down, right = row - top, col - left
    rows = torch.stack([top, top, top + 1, top + 1], dim=1).clamp(max=grid.height - 1).long()  # (M, 4)
    cols = torch.stack([left, left + 1, left, left + 1], dim=1).clamp(max=grid.width - 1).long()
    share = torch.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], dim=1)
    position = stored_positions(cells, grid, samples[:, None], rows, cols)
    known = known & ((position >= 0) | (share == 0)).all(dim=1)
    values = at_least_fp32(cells.values)
    if not len(values):
        return values.new_zeros(len(row), values.shape[1]), known
    weights = (share * known[:, None]).to(values.dtype)
    return F.embedding_bag(position.clamp(min=0), values, mode="sum", per_sample_weights=weights), known
