"""SECOND's 2-D backbone with its multi-scale neck, as CenterPoint and PointPillars use it on the bird's-eye view.

(B, C, H, W) -> stages at falling resolution -> each brought to one resolution -> concatenated. Dense convolutions only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn

from models.config import AtLeastOne, Config
from models.width import narrowed


class BevBackboneConfig(Config):
    """One entry per stage: extra 3x3 convolutions, stride, channels; then the scale and channels it is brought to."""

    layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    strides: tuple[AtLeastOne, ...]
    filters: tuple[AtLeastOne, ...]
    upsample: tuple[PositiveFloat, ...]
    upsample_filters: tuple[AtLeastOne, ...]

    @model_validator(mode="after")
    def _check(self) -> BevBackboneConfig:
        per_stage = (self.layers, self.strides, self.filters, self.upsample, self.upsample_filters)
        if len({len(value) for value in per_stage}) != 1:
            raise ValueError("layers, strides, filters, upsample and upsample_filters need one entry per stage")
        scale, scales = 1, []
        for stride, up in zip(self.strides, self.upsample, strict=True):
            scale *= stride
            scales.append(scale / up)
        if len(set(scales)) != 1:
            raise ValueError(f"the stages end at different strides {scales}; make stride / upsample equal for all")
        return self

    @property
    def stride(self) -> int:
        """Cells of the input per cell of the output, along one side."""
        return round(self.strides[0] / self.upsample[0])

    @property
    def out_channels(self) -> int:
        return sum(self.upsample_filters)

    def at_width(self, factor: float) -> BevBackboneConfig:
        """With all channels times `factor`; ValueError where they are no whole numbers."""
        filters = tuple(narrowed(width, factor, "backbone.filters") for width in self.filters)
        up = tuple(narrowed(width, factor, "backbone.upsample_filters") for width in self.upsample_filters)
        return self.model_copy(update={"filters": filters, "upsample_filters": up})


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """As SECOND's: the larger eps and smaller momentum suit batches of few frames."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def second_stages(
    in_channels: int, layers: Sequence[int], strides: Sequence[int], filters: Sequence[int]
) -> nn.ModuleList:
    """SECOND's stages: each one convolution of its stride, then so many more at its resolution; all 3x3."""
    stages = nn.ModuleList()
    for extra, stride, width in zip(layers, strides, filters, strict=True):
        stage: list[nn.Module] = []
        for i in range(extra + 1):
            conv = nn.Conv2d(in_channels if i == 0 else width, width, 3, stride if i == 0 else 1, 1, bias=False)
            stage += [conv, batch_norm(width), nn.ReLU(inplace=True)]
        stages.append(nn.Sequential(*stage))
        in_channels = width
    return stages


class MultiScaleNeck(nn.Module):
    """Brings every stage to one resolution and concatenates (SECONDFPN).

    upsample >= 1: transposed convolution of that stride; below 1: convolution of stride 1 / upsample.
    """

    def __init__(self, in_channels: Sequence[int], upsample: Sequence[float], filters: Sequence[int]) -> None:
        super().__init__()
        self.deblocks = nn.ModuleList()
        for channels, scale, width in zip(in_channels, upsample, filters, strict=True):
            k = round(scale) if scale >= 1 else round(1 / scale)
            conv: nn.Module
            if scale > 1:
                conv = nn.ConvTranspose2d(channels, width, k, stride=k, bias=False)
            else:
                conv = nn.Conv2d(channels, width, k, stride=k, bias=False)
            self.deblocks.append(nn.Sequential(conv, batch_norm(width), nn.ReLU(inplace=True)))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i) -> (B, sum of filters, H, W)."""
        return torch.cat([deblock(stage) for deblock, stage in zip(self.deblocks, stages, strict=True)], dim=1)


class BevBackbone(nn.Module):
    """SECOND (Yan et al. 2018) backbone and neck; names of modules follow mmdetection3d."""

    def __init__(self, in_channels: int, config: BevBackboneConfig) -> None:
        super().__init__()
        self.blocks = second_stages(in_channels, config.layers, config.strides, config.filters)
        self.neck = MultiScaleNeck(config.filters, config.upsample, config.upsample_filters)
        self.out_channels = config.out_channels

    def forward(self, canvas: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H / stride, W / stride)."""
        return self.neck(self.stages(canvas))

    def stages(self, canvas: Tensor) -> list[Tensor]:
        """The output of each stage, (B, filters[i], H, W over the strides so far): what the neck joins."""
        out = []
        for block in self.blocks:
            canvas = block(canvas)
            out.append(canvas)
        return out
