"""The bird's-eye-view encoder of camera models: residual stages at falling resolution, and a neck that joins them.

(B, C, H, W) -> (B, C', H, W). As BEVDepth's (ResNet-18-like stages with SECOND's neck), without a stem or pooling,
since a splatted map is already small.
"""

from __future__ import annotations

from pydantic import model_validator
from torch import Tensor, nn

from models.bev_backbone import MultiScaleNeck
from models.config import Config
from models.resnet import BasicBlock


class BevEncoderConfig(Config):
    """One entry per stage: residual blocks, stride, channels; each ends with `neck_channels` at full resolution."""

    layers: tuple[int, ...] = (2, 2, 2)
    strides: tuple[int, ...] = (1, 2, 2)
    filters: tuple[int, ...]
    neck_channels: int

    @model_validator(mode="after")
    def _check(self) -> BevEncoderConfig:
        if len({len(self.layers), len(self.strides), len(self.filters)}) != 1:
            raise ValueError("layers, strides and filters need one entry per stage")
        return self

    @property
    def total_strides(self) -> list[int]:
        """Of each stage against the input."""
        totals, total = [], 1
        for stride in self.strides:
            total *= stride
            totals.append(total)
        return totals

    @property
    def out_channels(self) -> int:
        return self.neck_channels * len(self.filters)


class BevEncoder(nn.Module):
    """(B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, config: BevEncoderConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for layers, stride, width in zip(config.layers, config.strides, config.filters, strict=True):
            blocks = [BasicBlock(in_channels, width, stride), *(BasicBlock(width, width) for _ in range(layers - 1))]
            self.stages.append(nn.Sequential(*blocks))
            in_channels = width
        self.neck = MultiScaleNeck(config.filters, config.total_strides, [config.neck_channels] * len(config.filters))
        self.out_channels = config.out_channels

    def forward(self, bev: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            bev = stage(bev)
            maps.append(bev)
        return self.neck(maps)
