"""Feature pyramids of an image backbone: coarse maps are added into finer ones (Lin et al. 2017).

`FinestFpn` keeps the finest level, because the lift-splat view transform reads one map; `ImagePyramid` keeps them all,
as attention to several levels does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.bev_pyramid import top_down


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
        return self.output(top_down(laterals)[0])


class ImagePyramid(nn.Module):
    """Lateral 1x1 convolutions, top-down sums, a 3x3 convolution per level; further levels by 3x3 convolutions of
    stride 2 over the coarsest, each but the first of them behind a ReLU. Without norms, as mmdetection's, whose layers
    these are."""

    def __init__(self, in_channels: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        further = levels - len(in_channels)
        self.further = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, padding=1) for _ in range(further))
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, C_i, h_i, w_i), finest first -> `levels` maps (N, channels, h_i, w_i), finest first."""
        merged = top_down([lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)])
        out = [output(level) for output, level in zip(self.output, merged, strict=True)]
        for number, conv in enumerate(self.further):
            out.append(conv(F.relu(out[-1]) if number else out[-1]))
        return out
