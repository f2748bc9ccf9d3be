"""Where cells, boxes and points of the canonical frame lie on a student's augmented map, whatever its grid.

`trainer.terms.sampling` answers it for a student on the teacher's grid; here teacher and student may have grids of
their own. All in float64; cost follows the places asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.grid import BevGrid
from models.detector import Batch
from trainer.said import TeacherCells

_SNAP = 1e-6  # cells: closer to a centre than this is rounding of A * p, as in `trainer.terms.sampling`


def cell_centres(index: Tensor, grid: BevGrid) -> Tensor:
    """(K, 2) float64 x, y (m) of the flat cells `index` (K,)."""
    col, row = index % grid.width, torch.div(index, grid.width, rounding_mode="floor")
    places = torch.stack([col.double() + 0.5, row.double() + 0.5], dim=1) * grid.cell_m
    return places + places.new_tensor([grid.x_min, grid.y_min])


def moved(points: Tensor, matrices: Tensor) -> Tensor:
    """A * p, (..., 2) float64, of points (..., 2) under matrices (..., 4, 4) that broadcast against them."""
    a = matrices.double()
    return (a[..., :2, :2] @ points.double()[..., None])[..., 0] + a[..., :2, 3]


def rows_and_columns(points: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Row and column (...,) float64 of points (..., 2); whole numbers at cell centres."""
    places = (points.double() - points.new_tensor([grid.x_min, grid.y_min], dtype=torch.float64)) / grid.cell_m - 0.5
    whole = places.round()
    col, row = torch.where((places - whole).abs() < _SNAP, whole, places).unbind(-1)
    return row, col


def augmentation_of(batch: Batch, frames: int, device: torch.device) -> Tensor:
    """(B, 4, 4) float64; the identity where the batch names none."""
    if batch.bev_augmentation is None:
        return torch.eye(4, dtype=torch.float64, device=device).expand(frames, 4, 4)
    return batch.bev_augmentation.to(device, torch.float64)


def cells_on(cells: TeacherCells, teacher: BevGrid, batch: Batch, student: BevGrid) -> tuple[Tensor, Tensor, Tensor]:
    """sample (K,) int64, row and column (K,) float64 on the student's grid of every stored cell's centre."""
    samples = cells.samples()
    matrices = augmentation_of(batch, len(cells.offsets) - 1, samples.device)
    row, col = rows_and_columns(moved(cell_centres(cells.index, teacher), matrices[samples]), student)
    return samples, row, col


def stored_positions(cells: TeacherCells, grid: BevGrid, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """(N,) int64: the position among the stored cells of the cell (sample, row, col), all (N,) int64; -1 where it is
    not stored or off the grid. Cost N log K."""
    size = grid.height * grid.width
    inside = (row >= 0) & (row < grid.height) & (col >= 0) & (col < grid.width)
    keys = cells.samples() * size + cells.index  # rises: frame by frame, and within each
    wanted = torch.where(inside, samples * size + row * grid.width + col, -1)
    if not len(keys):
        return torch.full_like(wanted, -1)
    found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[found] == wanted, found, -1)


def stored_bilinear(
    cells: TeacherCells, grid: BevGrid, samples: Tensor, row: Tensor, col: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (N, C) of the stored map at places (N,) float64, and whether each place is on the grid with every cell
    that counts there stored (N,) bool; 0 elsewhere. Equals bilinear sampling of the whole map, borders included."""
    inside = (row >= -0.5) & (row < grid.height - 0.5) & (col >= -0.5) & (col < grid.width - 0.5)
    row, col = row.clamp(0, grid.height - 1), col.clamp(0, grid.width - 1)
    top, left = row.floor(), col.floor()
    total = cells.values.new_zeros(len(row), cells.values.shape[1], dtype=torch.float64)
    known = inside
    for i, row_share in ((0, 1 - (row - top)), (1, row - top)):
        for j, col_share in ((0, 1 - (col - left)), (1, col - left)):
            share = row_share * col_share
            at = stored_positions(cells, grid, samples, (top + i).long(), (left + j).long())
            known = known & ((at >= 0) | (share == 0))
            counts = (at >= 0) & (share > 0)
            total[counts] += share[counts, None] * cells.values[at[counts]].double()
    return torch.where(known[:, None], total, 0.0), known
