"""Where cells, boxes and points of the canonical frame lie on a student's augmented map, whatever the two grids' cells.

Teacher values stay in the canonical frame; the student's map is read at A * p. Rows and columns are whole numbers at
cell centres: flips and the identity map centres onto centres, to the last bit. Computed in float64; the cost follows
the places asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.grid import BevGrid
from models.detector import Batch
from trainer.said import TeacherCells

_SNAP = 1e-6  # cells: closer to a centre than this is rounding of A * p, not a place of its own


def augmentation_of(batch: Batch, device: torch.device | str = "cpu") -> Tensor:
    """(B, 4, 4) float64 canonical -> augmented; the identity where the batch names none."""
    if batch.bev_augmentation is None:
        return torch.eye(4, dtype=torch.float64, device=device).expand(max(len(batch), 1), 4, 4)
    return batch.bev_augmentation.to(device, torch.float64)


def cell_centres(index: Tensor, grid: BevGrid) -> Tensor:
    """(K, 2) float64 x, y (m) of the flat cells `index` (K,)."""
    col, row = index % grid.width, torch.div(index, grid.width, rounding_mode="floor")
    places = torch.stack([col.double() + 0.5, row.double() + 0.5], dim=1) * grid.cell_m
    return places + places.new_tensor([grid.x_min, grid.y_min])


def moved(points: Tensor, matrices: Tensor) -> Tensor:
    """A * p, (..., 2) float64, of points (..., 2) under matrices (..., 4, 4) that broadcast against them."""
    a, (x, y) = matrices.double(), points.double().unbind(-1)
    return torch.stack(
        [
            a[..., 0, 0] * x + a[..., 0, 1] * y + a[..., 0, 3],
            a[..., 1, 0] * x + a[..., 1, 1] * y + a[..., 1, 3],
        ],
        dim=-1,
    )


def canonical_points(points: Tensor, samples: Tensor, matrices: Tensor) -> Tensor:
    """(M, 2) float64: where points (M, 2) of the student's frame lie in the canonical one; matrices: (B, 4, 4)."""
    return moved(points, torch.linalg.inv(matrices.double())[samples])


def rows_and_columns(points: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Row and column (...,) float64 of points (..., 2) x, y (m)."""
    places = (points.double() - points.new_tensor([grid.x_min, grid.y_min], dtype=torch.float64)) / grid.cell_m - 0.5
    whole = places.round()
    col, row = torch.where((places - whole).abs() < _SNAP, whole, places).unbind(-1)
    return row, col


def cells_holding(points: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Row and column (N,) int64 of the cells that hold points (N, 2) x, y (m), which may be off the grid; NaN: -1."""
    low = points.new_tensor([grid.x_min, grid.y_min])
    col, row = torch.nan_to_num(((points - low) / grid.cell_m).floor(), nan=-1.0).long().unbind(-1)
    return row, col


def inside_grid(row: Tensor, col: Tensor, grid: BevGrid) -> Tensor:
    """(...,) bool: whether the place lies on the grid, edges of the outer cells included below and left."""
    return (row >= -0.5) & (row < grid.height - 0.5) & (col >= -0.5) & (col < grid.width - 0.5)


def augmented_cells(
    index: Tensor, samples: Tensor, matrices: Tensor, grid: BevGrid, to: BevGrid | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column (K,) on `to` (None: the same grid) of A[sample] * (centre of cell `index` of `grid`).

    index, samples: (K,) int64; matrices: (B, 4, 4) canonical -> augmented.
    """
    return rows_and_columns(moved(cell_centres(index, grid), matrices[samples]), to or grid)


@dataclass(frozen=True)
class CellPlaces:
    """K stored cells whose centre is on the student's grid and whose weight is above 0. chosen: (N,) bool of the stored
    cells; samples, row, col: (K,) where the student's map is read; weights: (K,)."""

    chosen: Tensor
    samples: Tensor
    row: Tensor
    col: Tensor
    weights: Tensor


def cell_places(cells: TeacherCells, weights: Tensor | None, batch: Batch, grid: BevGrid, to: BevGrid) -> CellPlaces:
    """Where the stored cells lie on the student's map. weights: (N,) of each, or (N, S), of which one must be above 0;
    None for 1; grid: the teacher's; to: the student's."""
    samples = cells.samples()
    row, col = augmented_cells(cells.index, samples, augmentation_of(batch, samples.device), grid, to)
    if weights is None:
        weights = torch.ones(len(cells.index), device=cells.index.device)
    counts = weights > 0 if weights.ndim == 1 else (weights > 0).any(dim=1)
    kept = counts & inside_grid(row, col, to)
    return CellPlaces(kept, samples[kept], row[kept], col[kept], weights[kept])


def column_of(cells: TeacherCells, selector: str) -> Tensor:
    """(N,) weights of the selector's column."""
    return cells.weights[:, cells.selectors.index(selector)]
