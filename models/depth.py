"""Depth as a choice among bins: the bins, and supervision of a depth distribution by LiDAR returns.

The target of a feature cell is its nearest return (BEVDepth), found for all images of a batch by one scatter; cells
without a return, or whose nearest lies outside the bins, are not judged.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from models.batch_checks import require_depth_points
from models.config import Config
from models.detector import LossPart


class DepthConfig(Config):
    """bins between min_m and max_m: of equal width (linear) or equal ratio (log). weight: of the loss, 0 for none.

    loss: cross_entropy, or binary, BEVDepth's: each bin's probability apart, judged as yes or no.
    """

    min_m: float = Field(gt=0)
    max_m: float
    bins: int = Field(ge=2)
    spacing: Literal["linear", "log"] = "linear"
    weight: float = Field(default=1.0, ge=0)
    loss: Literal["cross_entropy", "binary"] = "cross_entropy"

    @model_validator(mode="after")
    def _check(self) -> DepthConfig:
        if self.max_m <= self.min_m:
            raise ValueError(f"max_m {self.max_m} must lie beyond min_m {self.min_m}")
        return self

    def edges(self) -> Tensor:
        """(bins + 1,) float32 metres; bin i holds edges[i] <= depth < edges[i + 1]."""
        if self.spacing == "linear":
            return torch.linspace(self.min_m, self.max_m, self.bins + 1)
        return torch.linspace(math.log(self.min_m), math.log(self.max_m), self.bins + 1).exp()

    def centres(self) -> Tensor:
        """(bins,) float32 metres: the depth that stands for each bin (middle; geometric middle for log)."""
        edges = self.edges()
        return (edges[:-1] + edges[1:]) / 2 if self.spacing == "linear" else (edges[:-1] * edges[1:]).sqrt()


def depth_targets(depth_points: Tensor, images: int, size: tuple[int, int], stride: int, edges: Tensor) -> Tensor:
    """The bin of the nearest return of every feature cell: (images, h', w') int64, -1 where there is none to judge by.

    depth_points: (K, 4) image index, u, v (pixels), depth_m; points outside the image, behind it or NaN are ignored.
    size: (h', w') of the feature map; stride: pixels per cell; edges: (D + 1,) metres.
    """
    require_depth_points(depth_points)
    height, width = size
    points = depth_points.float()
    col, row = torch.floor(points[:, 1] / stride), torch.floor(points[:, 2] / stride)
    inside = (col >= 0) & (col < width) & (row >= 0) & (row < height) & (points[:, 3] > 0)
    inside &= (points[:, 0] >= 0) & (points[:, 0] < images)
    cell = ((points[:, 0] * height + row) * width + col)[inside].long()
    nearest = torch.full((images * height * width,), math.inf, device=points.device)
    nearest = nearest.scatter_reduce(0, cell, points[inside, 3], "amin")
    bins = torch.bucketize(nearest, edges.to(points.device), right=True) - 1  # -1 below the first edge
    bins[bins >= len(edges) - 1] = -1
    return bins.view(images, height, width)


def depth_loss(
    depth_logits: Tensor,
    depth_points: Tensor,
    stride: int,
    edges: Tensor,
    weight: float = 1.0,
    form: Literal["cross_entropy", "binary"] = "cross_entropy",
) -> LossPart:
    """Between the depth distribution of each judged cell and its bin; normaliser: judged cells.

    depth_logits: (images, D, h', w'); fp32 inside. form: cross-entropy, or the binary cross-entropy of every bin's
    probability (the softmax's) with one-hot truth, summed over bins. No return anywhere gives 0 with zero gradients.
    """
    images, _, height, width = depth_logits.shape
    target = depth_targets(depth_points.to(depth_logits.device), images, (height, width), stride, edges)
    with torch.autocast(depth_logits.device.type, enabled=False):
        judged = target >= 0
        logits = depth_logits.permute(0, 2, 3, 1)[judged].float()  # (cells, D)
        if form == "binary":
            wanted = F.one_hot(target[judged], logits.shape[1]).float()
            # torch refuses NaN there with an error of its own, and on a GPU ends the process: the loss is to tell of it
            likely = logits.softmax(dim=1).nan_to_num(0.5)
            numerator = F.binary_cross_entropy(likely, wanted, reduction="sum") + 0.0 * logits.sum()
        else:
            numerator = F.cross_entropy(logits, target[judged], reduction="sum")
    return LossPart(numerator[None], judged.sum()[None].float(), weight)
