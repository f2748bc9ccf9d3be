"""A linear layer over any number of rows, such as the points of a cloud, whose memory does not grow with their variety.

In bf16 on a CPU oneDNN makes and keeps a kernel for every shape of a product, up to 1,024 of them: some 2 MB a training
step where every batch has another number of points, gigabytes within a run. So rows are padded to a few sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RaggedLinear(nn.Linear):
    """`torch.nn.Linear` on (N, F): the same parameters, values and gradients."""

    def forward(self, rows: Tensor) -> Tensor:
        """(N, F) -> (N, out_features)."""
        if rows.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(rows)
        count = len(rows)
        return super().forward(F.pad(rows, (0, 0, 0, padded_count(count) - count)))[:count]


def padded_count(count: int) -> int:
    """The smallest size of at least `count` rows: there are 16 from a power of two to the next, so that less than a
    sixteenth is added."""
    step = max(1, (1 << (count - 1).bit_length()) // 32)
    return -(-count // step) * step
