"""ResNet with torchvision's parameter names, so that its checkpoints (and mmdetection's, after their prefix) load.

Images (N, 3, h, w) -> the maps asked for, C2 (stride 4) to C5 (stride 32). Narrow, short ones come from the same code:
`base_width` is the stem's channels (64 in the paper) and `layers` the blocks of each stage (a fourth may be left out).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from models.config import AtLeastOne, Config

LEVELS = ("C2", "C3", "C4", "C5")


class ResNetConfig(Config):
    """resnet18: block basic, layers 2 2 2 2; resnet50: bottleneck, 3 4 6 3; resnet101: bottleneck, 3 4 23 3."""

    block: Literal["basic", "bottleneck"] = "basic"
    layers: tuple[AtLeastOne, ...] = Field((2, 2, 2, 2), min_length=1, max_length=4)
    base_width: int = Field(64, ge=1)
    outputs: tuple[Literal["C2", "C3", "C4", "C5"], ...] = Field(("C3", "C4", "C5"), min_length=1)

    @field_validator("outputs")
    @classmethod
    def _rising(cls, outputs: tuple[str, ...]) -> tuple[str, ...]:
        if list(outputs) != sorted(set(outputs)):
            raise ValueError("outputs must rise, each level once, for example ['C4', 'C5']")
        return outputs

    @property
    def channels(self) -> list[int]:
        """Of each output."""
        expansion = BLOCKS[self.block].expansion
        return [self.base_width * 2 ** LEVELS.index(level) * expansion for level in self.outputs]

    @property
    def strides(self) -> list[int]:
        """Pixels per cell of each output."""
        return [4 * 2 ** LEVELS.index(level) for level in self.outputs]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (He et al. 2015, figure 5 left)."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = _shortcut(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision's), 1x1 to four times the planes (figure 5 right)."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = _shortcut(in_channels, planes * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + identity)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Without the classifier (`fc`)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        missing = [level for level in config.outputs if LEVELS.index(level) >= len(config.layers)]
        if missing:
            raise ValueError(f"outputs {missing} need more than {len(config.layers)} stages")
        self.config = config
        width = config.base_width
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block, channels = BLOCKS[config.block], width
        for stage, count in enumerate(config.layers):
            planes = width * 2**stage
            blocks: list[nn.Module] = []
            for i in range(count):
                blocks.append(block(channels, planes, stride=2 if i == 0 and stage > 0 else 1))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, h, w) -> one map (N, channels, h / stride, w / stride) per output."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage, level in enumerate(LEVELS[: len(self.config.layers)]):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            if level in self.config.outputs:
                maps.append(x)
        return maps


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
