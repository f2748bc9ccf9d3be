"""SECOND's 2-D backbone with a feature pyramid: the bird's-eye view at several resolutions for a transformer.

(B, C, H, W) -> stages at falling resolution -> one pyramid of equal channels (Lin et al. 2017), whose coarsest levels
are every other cell of the level before. Dense convolutions only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from models.bev_backbone import batch_norm, second_stages
from models.config import AtLeastOne, Config


class BevPyramidConfig(Config):
    """layers, strides, filters: one entry per stage, as `models.bev_backbone`. first: the stage that level 0 has the
    resolution of; channels: of every level; levels: how many there are, those beyond the last stage by subsampling.
    """

    layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    strides: tuple[AtLeastOne, ...]
    filters: tuple[AtLeastOne, ...]
    first: int = Field(default=0, ge=0)
    channels: int = Field(default=256, ge=4, multiple_of=4)
    levels: int = Field(default=4, ge=1, le=8)

    @model_validator(mode="after")
    def _check(self) -> BevPyramidConfig:
        if len({len(self.layers), len(self.strides), len(self.filters)}) != 1:
            raise ValueError("layers, strides and filters need one entry per stage")
        if not self.first < len(self.layers) <= self.first + self.levels:
            raise ValueError(f"{self.levels} levels from stage {self.first} on do not end at stage {len(self.layers)}")
        return self

    @property
    def stride(self) -> int:
        """Cells of the input per cell of level 0, along one side."""
        return math.prod(self.strides[: self.first + 1])

    def shapes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(H, W) of every level, of an input of height x width cells."""
        strides = [math.prod(self.strides[: i + 1]) for i in range(self.first, len(self.strides))]
        strides += [strides[-1] * 2 ** (i + 1) for i in range(self.levels - len(strides))]
        return tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in strides)


class BevPyramid(nn.Module):
    """Stages, then lateral 1x1 convolutions, top-down sums, and a 3x3 convolution per stage; all with norm and ReLU."""

    def __init__(self, in_channels: int, config: BevPyramidConfig) -> None:
        super().__init__()
        self.first, self.levels = config.first, config.levels
        self.blocks = second_stages(in_channels, config.layers, config.strides, config.filters)
        merged = config.filters[config.first :]
        self.laterals = nn.ModuleList(_conv_norm_relu(width, config.channels, 1) for width in merged)
        self.outputs = nn.ModuleList(_conv_norm_relu(config.channels, config.channels, 3) for _ in merged)

    def forward(self, canvas: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> `levels` maps (B, channels, H_i, W_i), finest first."""
        stages = []
        for block in self.blocks:
            canvas = block(canvas)
            stages.append(canvas)
        pyramid = top_down([lateral(x) for lateral, x in zip(self.laterals, stages[self.first :], strict=True)])
        maps = [output(level) for output, level in zip(self.outputs, pyramid, strict=True)]
        while len(maps) < self.levels:
            maps.append(maps[-1][:, :, ::2, ::2])
        return maps


def top_down(laterals: Sequence[Tensor]) -> list[Tensor]:
    """Each map plus all coarser ones, brought to its size by repeating cells; finest first."""
    out = [laterals[-1]]
    for finer in reversed(laterals[:-1]):
        out.insert(0, finer + F.interpolate(out[0], size=finer.shape[-2:], mode="nearest"))
    return out


def _conv_norm_relu(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, batch_norm(channels), nn.ReLU(inplace=True))
