"""Points to voxels: the mean of the points in each, with no cap on points or voxels.

One sort and one scatter for a whole batch; cost is linear in points, whatever the volume of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.grid import BevGrid

VOXEL_FEATURES = 5  # x, y, z (m), intensity (0..255), dt (s)


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


def points_by_voxel(points: list[Tensor], grid: BevGrid, z_range: tuple[float, float], height_m: float) -> VoxelPoints:
    """points: B tensors (P, 5); grid: of the columns; z_range: (low, high) m; height_m: of a voxel. Points outside, or
    with a NaN coordinate, are dropped."""
    cloud = torch.cat(points).float()
    sizes = torch.tensor([len(sample) for sample in points], device=cloud.device)
    sample = torch.repeat_interleave(torch.arange(len(points), device=cloud.device), sizes)
    height, width = grid.shape
    layers = round((z_range[1] - z_range[0]) / height_m)
    col = torch.floor((cloud[:, 0] - grid.x_min) / grid.cell_m)
    row = torch.floor((cloud[:, 1] - grid.y_min) / grid.cell_m)
    layer = torch.floor((cloud[:, 2] - z_range[0]) / height_m)
    inside = (col >= 0) & (col < width) & (row >= 0) & (row < height) & (layer >= 0) & (layer < layers)
    cell = ((sample[inside] * layers + layer[inside].long()) * height + row[inside].long()) * width + col[inside].long()
    cell, order = torch.sort(cell, stable=True)
    voxels, voxel_of, counts = torch.unique_consecutive(cell, return_inverse=True, return_counts=True)
    sites = [voxels // (width * height * layers), voxels // (width * height) % layers, voxels // width % height]
    kept = cloud[inside].index_select(0, order)
    return VoxelPoints(kept, voxel_of, counts, torch.stack([*sites, voxels % width], dim=1).int())


def mean_voxels(
    points: list[Tensor], grid: BevGrid, z_range: tuple[float, float], height_m: float
) -> tuple[Tensor, Tensor]:
    """The voxels that hold a point: features (V, 5) float32, means in the points' units, and sites (V, 4) int32.

    Arguments and order as `points_by_voxel` has them.

    Source: the mean voxel encoding of SECOND and CenterPoint. Released code keeps the first 10 points of a voxel and a
    limited number of voxels, by the order of the points; here all are kept, so their order does not matter.
    """
    grouped = points_by_voxel(points, grid, z_range, height_m)
    return grouped.mean(), grouped.sites
