"""Points to voxels: the mean of the points in each, with no cap on points or voxels unless one is asked for.

One sort and one scatter for a whole batch; cost is linear in points, whatever the volume of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from cache.grid import BevGrid
from models.config import Config

VOXEL_FEATURES = 5  # x, y, z (m), intensity (0..255), dt (s)


class CapsConfig(Config):
    """Hard voxelisation, as released code has it: the first `points` points of a voxel or pillar, in the cloud's order,
    and of a frame the `cells` voxels or pillars whose first points come first. 0 is no cap, the default: then the order
    of points matters to nothing."""

    points: int = Field(default=0, ge=0)
    cells: int = Field(default=0, ge=0)


NO_CAPS = CapsConfig()


@dataclass(frozen=True)
class VoxelPoints:
    """The points of a batch, ordered by voxel. V voxels hold a point, in the order sample, z, y, x.

    points: (P, 5) float32; voxel_of: (P,) int64, ascending; counts: (V,) int64; sites: (V, 4) int32: sample, z, row,
    col.
    """

    points: Tensor
    voxel_of: Tensor
    counts: Tensor
    sites: Tensor

    def mean(self) -> Tensor:
        """(V, 5) float32: of each voxel's points."""
        sums = self.points.new_zeros(len(self.counts), self.points.shape[1])
        return sums.index_add_(0, self.voxel_of, self.points) / self.counts[:, None]


def points_by_voxel(
    points: list[Tensor],
    grid: BevGrid,
    z_range: tuple[float, float],
    height_m: float,
    caps: CapsConfig = NO_CAPS,
) -> VoxelPoints:
    """points: B tensors (P, 5); grid: of the columns; z_range: (low, high) m; height_m: of a voxel. Points outside, or
    with a number that is not finite, are dropped, and what is beyond `caps`."""
    cloud = torch.cat(points).float()
    sizes = torch.tensor([len(sample) for sample in points], device=cloud.device)
    sample = torch.repeat_interleave(torch.arange(len(points), device=cloud.device), sizes)
    height, width = grid.shape
    layers = round((z_range[1] - z_range[0]) / height_m)
    col = torch.floor((cloud[:, 0] - grid.x_min) / grid.cell_m)
    row = torch.floor((cloud[:, 1] - grid.y_min) / grid.cell_m)
    layer = torch.floor((cloud[:, 2] - z_range[0]) / height_m)
    inside = (col >= 0) & (col < width) & (row >= 0) & (row < height) & (layer >= 0) & (layer < layers)
    inside &= sound(cloud)
    cell = ((sample[inside] * layers + layer[inside].long()) * height + row[inside].long()) * width + col[inside].long()
    cell, order = torch.sort(cell, stable=True)
    if caps != NO_CAPS:
        within = within_caps(cell, order, layers * height * width, caps)
        cell, order = cell[within], order[within]
    voxels, voxel_of, counts = torch.unique_consecutive(cell, return_inverse=True, return_counts=True)
    sites = [voxels // (width * height * layers), voxels // (width * height) % layers, voxels // width % height]
    kept = cloud[inside].index_select(0, order)
    return VoxelPoints(kept, voxel_of, counts, torch.stack([*sites, voxels % width], dim=1).int())


def sound(cloud: Tensor) -> Tensor:
    """(P,) bool: points (P, 5) whose intensity and dt are finite. One that is not would make a whole map NaN, and the
    norms' statistics; a coordinate that is not lies in no cell anyway."""
    return torch.isfinite(cloud[:, 3] + cloud[:, 4])


def mean_voxels(
    points: list[Tensor],
    grid: BevGrid,
    z_range: tuple[float, float],
    height_m: float,
    caps: CapsConfig = NO_CAPS,
) -> tuple[Tensor, Tensor]:
    """The voxels that hold a point: features (V, 5) float32, means in the points' units, and sites (V, 4) int32.

    Arguments and order as `points_by_voxel` has them.

    Source: the mean voxel encoding of SECOND and CenterPoint. Released code keeps the first 10 points of a voxel and a
    limited number of voxels, by the order of the points; `caps` does the same.
    """
    grouped = points_by_voxel(points, grid, z_range, height_m, caps)
    return grouped.mean(), grouped.sites


def within_caps(cell: Tensor, order: Tensor, cells_per_sample: int, caps: CapsConfig) -> Tensor:
    """Which points (P,) bool stay, of points sorted by cell.

    cell: (P,) int, ascending, sample * cells_per_sample + the place within; order: (P,) int64, each point's number in
    the clouds, one after another, ascending within a cell.
    """
    cells, cell_of, counts = torch.unique_consecutive(cell, return_inverse=True, return_counts=True)
    start = counts.cumsum(0) - counts
    stays = torch.ones_like(cell, dtype=torch.bool)
    if caps.points:
        stays &= torch.arange(len(cell), device=cell.device) - start[cell_of] < caps.points
    if caps.cells:
        by_first_point = torch.argsort(order[start])  # samples follow one another in the clouds, so they do here
        sample = torch.div(cells[by_first_point], cells_per_sample, rounding_mode="floor")
        _, sample_of, sizes = torch.unique_consecutive(sample, return_inverse=True, return_counts=True)
        rank = torch.arange(len(cells), device=cell.device) - (sizes.cumsum(0) - sizes)[sample_of]
        early = torch.zeros_like(cells, dtype=torch.bool)
        early[by_first_point] = rank < caps.cells
        stays &= early[cell_of]
    return stays
