"""Voxels to a bird's-eye-view image: SECOND's encoder of sparse 3-D convolutions with residual blocks, on spconv.

Points -> mean voxels -> submanifold blocks, halved three times in all directions -> the remaining z layers stacked as
channels. Convolutions run on occupied voxels only, in fp32 under autocast too. Layers are named after the figure of the
paper; weights lie as spconv 2 has them, (out, z, y, x, in).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cache.grid import BevGrid
from models.config import AtLeastOne, Config
from models.spconv_runtime import algorithm_for, load_spconv
from models.voxel_features import VoxelFeatures
from models.voxels import NO_CAPS, VOXEL_FEATURES, CapsConfig, mean_voxels
from models.width import narrowed


class SparseEncoderConfig(Config):
    """channels: per stage, each after the first at half the resolution; blocks: residual blocks of a stage;
    out_channels: of the last convolution, which halves z once more.
    """

    channels: tuple[AtLeastOne, ...] = Field(default=(16, 32, 64, 128), min_length=1)
    blocks: int = Field(default=2, ge=0)
    out_channels: int = Field(default=128, ge=1)

    @property
    def stride(self) -> int:
        """Voxels per cell of the canvas, along one side."""
        return 2 ** (len(self.channels) - 1)

    def at_width(self, factor: float) -> SparseEncoderConfig:
        """With all channels times `factor`; ValueError where they are no whole numbers."""
        channels = tuple(narrowed(width, factor, "sparse.channels") for width in self.channels)
        out = narrowed(self.out_channels, factor, "sparse.out_channels")
        return self.model_copy(update={"channels": channels, "out_channels": out})

    def layers_left(self, layers: int) -> int:
        """z layers of the canvas from those of the voxels: 41 -> 21 -> 11 -> 5 -> 2 at full size."""
        for stage in range(1, len(self.channels)):
            layers = (layers + 2 * _z_padding(stage, len(self.channels)) - 3) // 2 + 1
        return (layers - 3) // 2 + 1


class SparseEncoder(nn.Module):
    """VoxelResBackBone8x of OpenPCDet, SparseEncoder with basic blocks of mmdetection3d: one computation.

    voxels: the grid of the columns; z_range in metres and height_m of a voxel. `grid` is that of the canvas. caps: of
    points and voxels. voxel_features: learned features of the same voxels; without them a voxel's are the mean of its
    points.
    """

    def __init__(
        self,
        voxels: BevGrid,
        z_range: tuple[float, float],
        height_m: float,
        config: SparseEncoderConfig,
        caps: CapsConfig = NO_CAPS,
        voxel_features: VoxelFeatures | None = None,
    ) -> None:
        super().__init__()
        self.voxels, self.z_range, self.height_m, self.caps = voxels, z_range, height_m, caps
        # One z layer more than there are voxels: from 41, unlike 40, three halvings lose nothing.
        self.layers = round((z_range[1] - z_range[0]) / height_m) + 1
        self.layers_out = config.layers_left(self.layers)
        self.stride, self.out_channels = config.stride, config.out_channels * self.layers_out
        first, last = config.channels[0], config.channels[-1]
        self.voxel_features = voxel_features
        in_channels = voxel_features.out_channels if voxel_features is not None else VOXEL_FEATURES
        self.input = SparseConvNorm(in_channels, first, "stage0")
        self.stages = nn.ModuleList(
            SparseStage(config.channels[max(i - 1, 0)], width, config.blocks, i, len(config.channels))
            for i, width in enumerate(config.channels)
        )
        self.output = SparseConvNorm(last, config.out_channels, None, (3, 1, 1), (2, 1, 1), (0, 0, 0))
        self.convolutions = [part for part in self.modules() if isinstance(part, load_spconv().SparseModule)]

    def forward(self, points: list[Tensor]) -> Tensor:
        """points: B tensors (P, 5) x, y, z, intensity (0..255), dt_s. Returns (B, C, H, W), fp32, channels last in
        memory; channel c * layers + z."""
        height, width = (cells // self.stride for cells in self.voxels.shape)
        if self.voxel_features is not None:
            features, sites = self.voxel_features(points)
        else:
            features, sites = mean_voxels(points, self.voxels, self.z_range, self.height_m, self.caps)
        if not len(features):  # spconv takes no empty tensor; keep the weights in the graph
            unused = sum(parameter.sum() for parameter in self.parameters()) * 0.0
            return features.new_zeros(len(points), self.out_channels, height, width) + unused
        with torch.autocast(features.device.type, enabled=False):
            for conv in self.convolutions:
                conv.algo = algorithm_for(features.device)
            shape = [self.layers, *self.voxels.shape]
            x = self.input(load_spconv().SparseConvTensor(features, sites, shape, len(points)))
            for stage in self.stages:
                x = stage(x)
            x = self.output(x)
        sample, layer, row, col = x.indices.long().unbind(1)
        cell = ((sample * height + row) * width + col) * self.layers_out + layer
        rows = len(points) * height * width * self.layers_out
        canvas = x.features.new_zeros(rows, x.features.shape[1]).index_copy_(0, cell, x.features)
        canvas = canvas.view(len(points), height, width, self.layers_out, -1).transpose(3, 4)
        return canvas.flatten(3).permute(0, 3, 1, 2)


class SparseStage(nn.Module):
    """A halving (none in the first stage), then residual blocks on the sites it left."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stage: int, stages: int) -> None:
        super().__init__()
        padding = (_z_padding(stage, stages), 1, 1)
        self.down = SparseConvNorm(in_channels, channels, None, 3, 2, padding) if stage else None
        self.blocks = nn.ModuleList(ResidualBlock(channels, f"stage{stage}") for _ in range(blocks))

    def forward(self, x: Any) -> Any:
        if self.down is not None:
            x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return x


class SparseConvNorm(nn.Module):
    """Convolution, batch norm, ReLU. With a `key` it is submanifold: its sites stay, and all of one key share them."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        key: str | None,
        kernel: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 1,
    ) -> None:
        super().__init__()
        spconv = load_spconv()
        if key is not None:
            self.conv = spconv.SubMConv3d(in_channels, channels, kernel, bias=False, indice_key=key)
        else:
            self.conv = spconv.SparseConv3d(in_channels, channels, kernel, stride, padding, bias=False)
        self.norm = SiteNorm(channels)

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        return x.replace_feature(F.relu(self.norm(x.features)))


class ResidualBlock(nn.Module):
    """Two submanifold convolutions beside the identity.

    Each has a bias that the norm after it makes needless, as released weights have; it is added here because spconv's
    CPU kernels know none in evaluation mode.
    """

    def __init__(self, channels: int, key: str) -> None:
        super().__init__()
        spconv = load_spconv()
        self.conv1 = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key=key)
        self.bias1 = nn.Parameter(torch.zeros(channels))
        self.norm1 = SiteNorm(channels)
        self.conv2 = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key=key)
        self.bias2 = nn.Parameter(torch.zeros(channels))
        self.norm2 = SiteNorm(channels)

    def forward(self, x: Any) -> Any:
        y = self.conv1(x)
        y = self.conv2(y.replace_feature(F.relu(self.norm1(y.features + self.bias1))))
        return y.replace_feature(F.relu(self.norm2(y.features + self.bias2) + x.features))


class SiteNorm(nn.BatchNorm1d):
    """Batch norm over sites (V, C). A single site has no statistics: it is normalised by the running ones."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, features: Tensor) -> Tensor:
        if len(features) > 1:
            return super().forward(features)
        return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def _z_padding(stage: int, stages: int) -> int:
    """The last halving pads z not at all, so that 11 layers become 5."""
    return 0 if stage == stages - 1 else 1
