"""The bird's-eye-view encoder of camera models: residual stages at falling resolution, and a neck that joins them.

(B, C, H, W) -> (B, C', H, W). Four forms: without a stem, as a splatted map is already small (the default);
BEVDepth's, with a stem of stride 2 and the map itself beside the stages in the neck; BEVDet's, with its own neck; and
the plain stages of a LiDAR detector, for students that begin from one's weights.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from models.bev_backbone import MultiScaleNeck, second_stages
from models.bevdet_neck import BevDetNeck
from models.config import AtLeastOne, Config
from models.resnet import BasicBlock


class BevEncoderConfig(Config):
    """One entry per stage: residual blocks, stride, channels.

    block: residual, or plain: SECOND's stages, of one convolution of the stride and `layers` more. A LiDAR detector has
    the same, so that its weights mean here what they mean there. neck: `second` brings each stage to `neck_channels` at
    full resolution, `bevdet` joins the first and the last to `neck_channels` in all. stem: a 7x7 convolution of stride
    2 before the stages, and the input beside them in the neck. shortcut: past a block that halves, 1x1 with a norm, or
    3x3 with a bias.
    """

    layers: tuple[AtLeastOne, ...] = Field(default=(2, 2, 2), min_length=1)
    strides: tuple[AtLeastOne, ...] = (1, 2, 2)
    filters: tuple[AtLeastOne, ...]
    block: Literal["residual", "plain"] = "residual"
    neck_channels: int = Field(ge=1)
    neck: Literal["second", "bevdet"] = "second"
    stem: bool = False
    shortcut: Literal["1x1", "3x3"] = "1x1"

    @model_validator(mode="after")
    def _check(self) -> BevEncoderConfig:
        if len({len(self.layers), len(self.strides), len(self.filters)}) != 1:
            raise ValueError("layers, strides and filters need one entry per stage")
        if self.neck == "bevdet" and (self.stem or len(self.filters) < 2):
            raise ValueError("neck bevdet goes with two stages or more, and no stem")
        if self.block == "plain" and (self.stem or self.shortcut != "1x1"):
            raise ValueError("block plain has no shortcuts and goes without a stem")
        return self

    @property
    def total_strides(self) -> list[int]:
        """Of everything that the neck reads, against the input: the input, where there is a stem, then the stages."""
        totals, total = ([1], 2) if self.stem else ([], 1)
        for stride in self.strides:
            total *= stride
            totals.append(total)
        return totals

    @property
    def out_channels(self) -> int:
        return self.neck_channels * (len(self.total_strides) if self.neck == "second" else 1)


class BevEncoder(nn.Module):
    """(B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, config: BevEncoderConfig) -> None:
        super().__init__()
        widths = ([in_channels] if config.stem else []) + list(config.filters)
        self.stem: nn.Sequential | None = None
        if config.stem:
            stem = nn.Conv2d(in_channels, config.filters[0], 7, 2, 3, bias=False)
            self.stem = nn.Sequential(stem, nn.BatchNorm2d(config.filters[0]), nn.ReLU(inplace=True))
            in_channels = config.filters[0]
        self.plain = config.block == "plain"
        if self.plain:
            self.stages = second_stages(in_channels, config.layers, config.strides, config.filters)
        else:
            self.stages = _residual_stages(in_channels, config)
        totals = config.total_strides
        self.neck: MultiScaleNeck | BevDetNeck
        if config.neck == "second":
            self.neck = MultiScaleNeck(widths, totals, [config.neck_channels] * len(totals))
        else:
            self.neck = BevDetNeck(widths[0], widths[-1], (totals[0], totals[-1]), config.neck_channels)
        self.out_channels = config.out_channels

    def forward(self, bev: Tensor) -> Tensor:
        maps = []
        if self.stem is not None:
            maps.append(bev)
            bev = self.stem(bev)
        for stage in self.stages:
            bev = stage(bev)
            maps.append(bev)
        return self.neck(maps)


def _residual_stages(in_channels: int, config: BevEncoderConfig) -> nn.ModuleList:
    stages = nn.ModuleList()
    for layers, stride, width in zip(config.layers, config.strides, config.filters, strict=True):
        blocks = [BasicBlock(in_channels, width, stride), *(BasicBlock(width, width) for _ in range(layers - 1))]
        if config.shortcut == "3x3" and blocks[0].downsample is not None:
            blocks[0].downsample = nn.Conv2d(in_channels, width, 3, stride, 1)
        stages.append(nn.Sequential(*blocks))
        in_channels = width
    return stages
