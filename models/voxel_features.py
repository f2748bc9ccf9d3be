"""Learned voxel features: a small network over the points of each voxel, with no cap on either (dynamic voxelisation).

Points -> 11 features -> linear, norm, ReLU -> beside its voxel's maximum -> once more -> the maximum per voxel. Cost is
linear in points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.grid import BevGrid
from models.pillars import PillarMax, PointLayer
from models.voxels import VOXEL_FEATURES, points_by_voxel

POINT_FEATURES = VOXEL_FEATURES + 6  # 3 offsets to the mean of the voxel's points, 3 to the voxel's centre


class VoxelFeatures(nn.Module):
    """Dynamic voxel feature encoder (Zhou et al. 2020) with two layers, as BEVDistill's teacher has it.

    voxels: the grid of the columns; z_range in metres and height_m of a voxel; channels: of either layer. Features are
    in metres, seconds and 0..255, as released weights know them, so it computes in fp32 under autocast too.
    """

    def __init__(self, voxels: BevGrid, z_range: tuple[float, float], height_m: float, channels: int = 64) -> None:
        super().__init__()
        self.voxels, self.z_range, self.height_m, self.out_channels = voxels, z_range, height_m, channels
        self.first = PointLayer(POINT_FEATURES, channels)
        self.linear = nn.Linear(2 * channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def forward(self, points: list[Tensor]) -> tuple[Tensor, Tensor]:
        """points: B tensors (P, 5). Returns features (V, C) float32 of the voxels that hold a point, and their sites
        (V, 4) int32: sample, z, row, col."""
        grouped = points_by_voxel(points, self.voxels, self.z_range, self.height_m)
        if len(grouped.points) < (2 if self.training else 1):  # too few for statistics; keep the weights in the graph
            unused = sum(parameter.sum() for parameter in self.parameters()) * 0.0
            return grouped.points.new_zeros(len(grouped.counts), self.out_channels) + unused, grouped.sites
        with torch.autocast(grouped.points.device.type, enabled=False):
            xyz = grouped.points[:, :3]
            mean, centre = grouped.mean()[:, :3], self._centres(grouped.sites)
            around = [xyz - of_voxel.index_select(0, grouped.voxel_of) for of_voxel in (mean, centre)]
            features = torch.cat([grouped.points, *around], dim=1)  # (P, 11)
            features = self.first(features, grouped.voxel_of, len(grouped.counts))  # (P, 2 C)
            features = self.norm(self.linear(features))  # (P, C)
            # ReLU after the maximum: the same values for fewer rows
            return F.relu(PillarMax.apply(features, grouped.voxel_of, len(grouped.counts))), grouped.sites

    def _centres(self, sites: Tensor) -> Tensor:
        """(V, 3) x, y, z of the voxels' centres, m."""
        low = torch.tensor([self.voxels.x_min, self.voxels.y_min, self.z_range[0]], device=sites.device)
        size = torch.tensor([self.voxels.cell_m, self.voxels.cell_m, self.height_m], device=sites.device)
        return low + (sites[:, [3, 2, 1]] + 0.5) * size
