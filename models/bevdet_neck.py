"""BEVDet's neck of the bird's-eye view: the coarsest stage laid over the finest one, then brought to the input's size.

(B, C_0, H / s, W / s) and (B, C_n, H / t, W / t) -> (B, C, H, W), with bilinear upsampling between convolutions.
Source: Huang et al. 2021 (BEVDet), with the sizes of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BevDetNeck(nn.Module):
    """finest, coarsest: channels of the two stages; strides: theirs, against the input."""

    def __init__(self, finest: int, coarsest: int, strides: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.up, self.last_up = strides[1] // strides[0], strides[0]
        self.join = nn.Sequential(
            *_conv_norm_relu(finest + coarsest, 2 * channels), *_conv_norm_relu(2 * channels, 2 * channels)
        )
        self.refine = nn.Sequential(*_conv_norm_relu(2 * channels, channels), nn.Conv2d(channels, channels, 1))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Reads the first and the last of `stages`."""
        joined = self.join(torch.cat([stages[0], _enlarged(stages[-1], self.up)], dim=1))
        return self.refine(_enlarged(joined, self.last_up))


def _enlarged(x: Tensor, factor: int) -> Tensor:
    """Bilinear, cell centres to cell centres. The release aligns the corners instead, which moves what lies near the
    border by up to half a coarse cell against the grid that targets are drawn on."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False) if factor > 1 else x


def _conv_norm_relu(in_channels: int, channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
