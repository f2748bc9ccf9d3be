"""Where the cells of a teacher's grid lie on a student's map, whatever the two grids' cells: A * (cell centre).

`sampling.augmented_cells` for two grids: a further level of the teacher or of the student has cells of its own. On one
and the same grid both give the same numbers. Also here: the same for any point, and A at each of a batch's cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.grid import BevGrid
from models.detector import Batch
from trainer.terms.sampling import augmented_cells, inside_grid

_SNAP = 1e-6  # cells, as in `sampling`: closer to a centre than this is rounding of A * p


def augmentation_of(batch: Batch) -> Tensor:
    """(B, 4, 4) canonical -> augmented; the terms' batches always say it, also where it is the identity."""
    assert batch.bev_augmentation is not None
    return batch.bev_augmentation


def cell_centres(index: Tensor, grid: BevGrid) -> Tensor:
    """(K, 2) float64 x, y (m) of flat cells (K,)."""
    col, row = index % grid.width, torch.div(index, grid.width, rounding_mode="floor")
    x = grid.x_min + (col.double() + 0.5) * grid.cell_m
    y = grid.y_min + (row.double() + 0.5) * grid.cell_m
    return torch.stack([x, y], dim=1)


def augmented_places(points: Tensor, samples: Tensor, bev_augmentation: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Row and column (K,) float64 on `grid`, whole numbers at cell centres, of A[sample] * point; points: (K, 2)
    canonical x, y (m)."""
    a = bev_augmentation.double()[samples]
    x = a[:, 0, 0] * points[:, 0] + a[:, 0, 1] * points[:, 1] + a[:, 0, 3]
    y = a[:, 1, 0] * points[:, 0] + a[:, 1, 1] * points[:, 1] + a[:, 1, 3]
    return places_on(x, y, grid)


def places_on(x: Tensor, y: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Row and column, whole numbers at cell centres, of places x, y (m) in the frame of the map."""
    return _snapped((y - grid.y_min) / grid.cell_m - 0.5), _snapped((x - grid.x_min) / grid.cell_m - 0.5)


def places_of_cells(
    index: Tensor, samples: Tensor, bev_augmentation: Tensor, teacher: BevGrid, student: BevGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column (K,) on the student's map of A * (centre of the teacher's cell `index`), and which (K,) lie on it."""
    if teacher == student:
        row, col = augmented_cells(index, samples, bev_augmentation, student)
    else:
        row, col = augmented_places(cell_centres(index, teacher), samples, bev_augmentation, student)
    return row, col, inside_grid(row, col, student)


def _snapped(position: Tensor) -> Tensor:
    whole = position.round()
    return torch.where((position - whole).abs() < _SNAP, whole, position)
