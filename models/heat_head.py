"""A heatmap beside a detector of queries: class heat on the BEV map.

BEVDistill's teacher has it for its first convolution, which brings the map into the form that students imitate, and
pipelines for its heat: where objects may be. There it never trains what is before it; beside a student it does.
(B, C, H, W) -> (B, C', H, W) and (B, classes, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from models.center_head import focal_numerator
from models.config import Config
from models.detector import LossPart
from models.gaussian import centre_cells, draw_gaussians, has_size


class HeatHeadConfig(Config):
    """channels: of the shared convolution; hidden: of the two after it; weight: of the loss."""

    channels: int = Field(default=256, ge=1)
    hidden: int = Field(default=64, ge=1)
    min_overlap: float = Field(default=0.1, gt=0, lt=1)
    min_radius: int = Field(default=1, ge=0)
    weight: float = Field(default=1.0, ge=0)


class HeatHead(nn.Module):
    """`shared` is the adaptor of distillation: convolution, norm, ReLU; `heat` gives logits by class id. detached: no
    gradient reaches the map."""

    def __init__(self, in_channels: int, grid: BevGrid, config: HeatHeadConfig, detached: bool = True) -> None:
        super().__init__()
        self.grid, self.config, self.detached = grid, config, detached
        self.shared = _conv_norm_relu(in_channels, config.channels)
        last = nn.Conv2d(config.hidden, len(DETECTION_CLASSES), 3, padding=1)
        # p = 0.1; the released code has +2.19, p = 0.9, most likely a slip of the sign
        nn.init.constant_(last.bias, -2.19)  # type: ignore[arg-type]
        self.heat = nn.Sequential(
            *_conv_norm_relu(config.channels, config.hidden), *_conv_norm_relu(config.hidden, config.hidden), last
        )

    def forward(self, bev: Tensor) -> tuple[Tensor, Tensor]:
        """The adapted map, and the heatmap's logits."""
        adapted = self.shared(bev.detach() if self.detached else bev)
        return adapted, self.heat(adapted)

    def loss_parts(
        self, logits: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], labelled: Tensor | None = None
    ) -> dict[str, LossPart]:
        """Focal loss against gaussians at the centres of the boxes (N, 9) on the grid, per object cell. labelled: as
        `Batch.labelled`; the heatmap of a frame without annotations is not judged. Boxes that the query head leaves out
        are left out here too."""
        config, classes = self.config, len(DETECTION_CLASSES)
        flat = torch.cat([b.detach().cpu().float().reshape(-1, 9) for b in boxes]).numpy()
        label = torch.cat([part.detach().cpu().long() for part in labels]).numpy()
        channel = np.repeat(np.arange(len(labels)), [len(part) for part in labels]) * classes + label
        _, _, inside = centre_cells(flat, self.grid)
        inside &= has_size(flat)
        flat, channel = flat[inside], channel[inside]
        heat = draw_gaussians(
            flat,
            channel,
            len(labels) * classes,
            self.grid,
            min_overlap=config.min_overlap,
            min_radius=config.min_radius,
        )
        target = torch.from_numpy(heat).to(logits.device).view(len(labels), classes, *self.grid.shape)
        if labelled is not None:
            logits, target = logits[labelled], target[labelled]
        with torch.autocast(logits.device.type, enabled=False):
            return {
                "heatmap": LossPart(
                    focal_numerator(logits, target)[None], (target == 1).sum().float()[None], config.weight
                )
            }


def _conv_norm_relu(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
