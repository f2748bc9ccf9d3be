"""A small feature pyramid: coarse maps of an image backbone are added into its finest one (Lin et al. 2017).

Only the finest level is kept, because the lift-splat view transform reads one map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FinestFpn(nn.Module):
    """Lateral 1x1 convolutions, top-down sums, one 3x3 convolution on the finest level."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.output = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, C_i, h_i, w_i), finest first -> (N, out_channels, h_0, w_0)."""
        laterals = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        merged = laterals[-1]
        for finer in reversed(laterals[:-1]):
            merged = finer + F.interpolate(merged, size=finer.shape[-2:], mode="nearest")
        return self.output(merged)
