"""Points to a bird's-eye-view image: the dynamic pillar encoder of PointPillars, with no cap on points or pillars
unless one is asked for.

Takes clouds (P, 5), gives a dense canvas (B, C, H, W) that is zero where no point fell. Points are sorted by pillar
once, so every later gather walks memory in order; cost is linear in points.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.grid import BevGrid
from models.ragged_linear import RaggedLinear
from models.voxels import NO_CAPS, CapsConfig, sound, within_caps

INTENSITY_UNIT = 32.0  # of the raw 0..255: most returns lie below 60
DT_UNIT_S = 0.1  # two sweeps
POINT_FEATURES = 10  # x, y, z, intensity, dt, 3 offsets to the pillar's mean point, 2 to its centre
RELEASED_FEATURES = 11  # 3 offsets to the pillar's centre


class PillarEncoder(nn.Module):
    """PointPillars' pillar feature net (Lang et al. 2019, section 2.1) in the dynamic form of OpenPCDet.

    channels: C of the canvas; grid: of the pillars; z_range: (low, high) in metres, points outside are dropped.
    layers: 2 has every point see its pillar's maximum of a first layer (OpenPCDet), 1 is the paper's (mmdetection3d).
    released: the 11 features in metres, seconds and 0..255 of released weights, in fp32 always, in place of 10 in units
    of order one. padding: mmdetection3d fills pillars up to this many points with rows of zeros, which take part in the
    maximum; 0 is without. The norm's statistics are of real points only, so padding is for weights that exist.
    caps: of points and pillars, see `models.voxels`.
    """

    def __init__(
        self,
        channels: int,
        grid: BevGrid,
        z_range: tuple[float, float],
        *,
        layers: int = 1,
        released: bool = False,
        padding: int = 0,
        caps: CapsConfig = NO_CAPS,
    ) -> None:
        super().__init__()
        self.grid, self.z_range, self.channels, self.out_channels = grid, z_range, channels, channels
        self.released, self.padding, self.caps = released, padding, caps
        features = RELEASED_FEATURES if released else POINT_FEATURES
        self.first = PointLayer(features, channels // 2) if layers == 2 else None
        self.linear = RaggedLinear(channels if layers == 2 else features, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def forward(self, points: list[Tensor]) -> Tensor:
        """points: B tensors (P, 5) x, y, z, intensity (0..255), dt_s. Returns (B, C, H, W), channels last in memory."""
        batch, (height, width) = len(points), self.grid.shape
        cloud, cell = self._by_pillar(points)
        if len(cloud) < (2 if self.norm.training else 1):  # too few for statistics; keep the weights in the graph
            unused = sum(parameter.sum() for parameter in self.parameters()) * 0.0
            return cloud.new_zeros(batch, self.channels, height, width) + unused
        pillars, pillar_of, counts = torch.unique_consecutive(cell, return_inverse=True, return_counts=True)
        with torch.autocast(cloud.device.type, enabled=False) if self.released else contextlib.nullcontext():
            features = self._features(cloud, cell, pillar_of, counts)  # (P, 10) or (P, 11)
            if self.first is not None:
                features = self.first(features, pillar_of, len(pillars))  # (P, C)
            features = self.norm(self.linear(features))  # (P, C)
            # ReLU after the maximum: the same values for a third of the rows
            highest = F.relu(PillarMax.apply(features, pillar_of, len(pillars)))  # (pillars, C)
        if self.padding:
            highest = torch.where((counts < self.padding)[:, None], torch.maximum(highest, self._padded()), highest)
        canvas = highest.new_zeros(batch * height * width, self.channels).index_copy_(0, pillars, highest)
        return canvas.view(batch, height, width, self.channels).permute(0, 3, 1, 2)

    def _padded(self) -> Tensor:
        """(C,): what a row of zeros comes out as."""
        norm = self.norm
        zeros = torch.zeros(1, self.channels, device=norm.weight.device)
        return F.relu(F.batch_norm(zeros, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)[0])

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
        inside &= (z >= self.z_range[0]) & (z < self.z_range[1]) & sound(cloud)
        outside = len(points) * height * width  # sorts behind every cell
        cell = torch.where(inside, (sample * height + row.long()) * width + col.long(), outside)
        cell, order = torch.sort(cell.int(), stable=True)
        count = int(inside.sum())
        cell, order = cell[:count].long(), order[:count]
        if self.caps != NO_CAPS:
            within = within_caps(cell, order, height * width, self.caps)
            cell, order = cell[within], order[within]
        return cloud.index_select(0, order), cell

    def _features(self, cloud: Tensor, cell: Tensor, pillar_of: Tensor, counts: Tensor) -> Tensor:
        """(P, 10), or (P, 11) as released, fp32. Units make the 10 of order one, which bf16's 8 bits and the first
        steps of training need: in metres x drowns the offsets, and with dt in seconds moving boxes' velocity is learned
        half as fast."""
        grid, xyz = self.grid, cloud[:, :3]
        mean = xyz.new_zeros(len(counts), 3).index_add_(0, pillar_of, xyz) / counts[:, None]
        height, width = grid.shape
        centre_x = grid.x_min + (cell % width + 0.5) * grid.cell_m
        centre_y = grid.y_min + (cell // width % height + 0.5) * grid.cell_m
        if self.released:
            centre_z = torch.full_like(centre_x, sum(self.z_range) / 2)
            centre = torch.stack([centre_x, centre_y, centre_z], dim=1)
            return torch.cat([cloud, xyz - mean.index_select(0, pillar_of), xyz - centre], dim=1)
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


class PointLayer(nn.Module):
    """Linear, norm and ReLU of every point, beside the maximum over its pillar: (P, F) -> (P, 2 * channels)."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.linear = RaggedLinear(features, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

    def forward(self, features: Tensor, pillar_of: Tensor, pillars: int) -> Tensor:
        """pillar_of: (P,) int64, the pillar of every point."""
        points = F.relu(self.norm(self.linear(features)))
        highest = PillarMax.apply(points, pillar_of, pillars)
        return torch.cat([points, highest.index_select(0, pillar_of)], dim=1)


class PillarMax(torch.autograd.Function):
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
