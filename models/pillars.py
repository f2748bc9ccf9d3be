"""Points to a bird's-eye-view image: the dynamic pillar encoder of PointPillars, with no cap on points or pillars.

Takes clouds (P, 5), gives a dense canvas (B, C, H, W) that is zero where no point fell. Points are sorted by pillar
once, so every later gather walks memory in order; cost is linear in points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.grid import BevGrid

INTENSITY_UNIT = 32.0  # of the raw 0..255: most returns lie below 60
DT_UNIT_S = 0.1  # two sweeps
POINT_FEATURES = 10  # x, y, z, intensity, dt, 3 offsets to the pillar's mean point, 2 to its centre


class PillarEncoder(nn.Module):
    """PointPillars' pillar feature net (Lang et al. 2019, section 2.1) in the dynamic form of OpenPCDet.

    channels: C of the canvas; grid: of the pillars; z_range: (low, high) in metres, points outside are dropped.
    """

    def __init__(self, channels: int, grid: BevGrid, z_range: tuple[float, float]) -> None:
        super().__init__()
        self.grid, self.z_range, self.channels = grid, z_range, channels
        self.linear = nn.Linear(POINT_FEATURES, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def forward(self, points: list[Tensor]) -> Tensor:
        """points: B tensors (P, 5) x, y, z, intensity (0..255), dt_s. Returns (B, C, H, W), channels last in memory."""
        batch, (height, width) = len(points), self.grid.shape
        cloud, cell = self._by_pillar(points)
        if len(cloud) < 2:  # too few for statistics; keep the weights in the graph
            unused = sum(parameter.sum() for parameter in self.parameters()) * 0.0
            return cloud.new_zeros(batch, self.channels, height, width) + unused
        pillars, pillar_of, counts = torch.unique_consecutive(cell, return_inverse=True, return_counts=True)
        features = self._features(cloud, cell, pillar_of, counts)  # (P, 10)
        features = self.norm(self.linear(features))  # (P, C)
        # ReLU after the maximum: the same values for a third of the rows
        highest = F.relu(_PillarMax.apply(features, pillar_of, len(pillars)))  # (pillars, C)
        canvas = highest.new_zeros(batch * height * width, self.channels).index_copy(0, pillars, highest)
        return canvas.view(batch, height, width, self.channels).permute(0, 3, 1, 2)

    def _by_pillar(self, points: list[Tensor]) -> tuple[Tensor, Tensor]:
        """All points inside the range (P, 5), and their flat cell (P,) b * H * W + row * W + col, ascending."""
        cloud = torch.cat(points).float()
        sizes = torch.tensor([len(sample) for sample in points], device=cloud.device)
        sample = torch.repeat_interleave(torch.arange(len(points), device=cloud.device), sizes)
        col = torch.floor((cloud[:, 0] - self.grid.x_min) / self.grid.cell_m)
        row = torch.floor((cloud[:, 1] - self.grid.y_min) / self.grid.cell_m)
        height, width = self.grid.shape
        z = cloud[:, 2]
        inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)  # NaN compares false, so it is dropped
        inside &= (z >= self.z_range[0]) & (z < self.z_range[1])
        outside = len(points) * height * width  # sorts behind every cell
        cell = torch.where(inside, (sample * height + row.long()) * width + col.long(), outside)
        cell, order = torch.sort(cell.int(), stable=True)
        count = int(inside.sum())
        return cloud.index_select(0, order[:count]), cell[:count].long()

    def _features(self, cloud: Tensor, cell: Tensor, pillar_of: Tensor, counts: Tensor) -> Tensor:
        """(P, 10), fp32. Units make all columns of order one, which bf16's 8 bits and the first steps of training need:
        in metres x drowns the offsets, and with dt in seconds moving boxes' velocity is learned half as fast."""
        grid, xyz = self.grid, cloud[:, :3]
        mean = xyz.new_zeros(len(counts), 3).index_add_(0, pillar_of, xyz) / counts[:, None]
        height, width = grid.shape
        centre_x = grid.x_min + (cell % width + 0.5) * grid.cell_m
        centre_y = grid.y_min + (cell // width % height + 0.5) * grid.cell_m
        half_range = max(abs(grid.x_min), abs(grid.x_max), abs(grid.y_min), abs(grid.y_max))
        return torch.cat(
            [
                xyz[:, :2] / half_range,
                xyz[:, 2:],
                cloud[:, 3:4] / INTENSITY_UNIT,
                cloud[:, 4:5] / DT_UNIT_S,
                (xyz - mean.index_select(0, pillar_of)) / grid.cell_m,
                torch.stack([xyz[:, 0] - centre_x, xyz[:, 1] - centre_y], dim=1) / grid.cell_m,
            ],
            dim=1,
        )


class _PillarMax(torch.autograd.Function):
    """Maximum over each pillar's points, (P, C) -> (pillars, C); every pillar has a point.

    As `scatter_reduce("amax")`, whose backward pass takes 2 to 3 times as long on CPU as it counts and shares ties;
    here every tied point gets the whole gradient (in bf16 1.6 % of the maxima are ties).
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features: Tensor, pillar_of: Tensor, pillars: int) -> Tensor:
        index = pillar_of[:, None].expand_as(features)
        highest = features.new_empty(pillars, features.shape[1])
        highest.scatter_reduce_(0, index, features, "amax", include_self=False)
        ctx.save_for_backward(features, pillar_of, highest)
        return highest

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        features, pillar_of, highest = ctx.saved_tensors  # type: ignore[attr-defined]
        lower = features != highest.index_select(0, pillar_of)
        return gradients[0].index_select(0, pillar_of).masked_fill_(lower, 0.0), None, None
