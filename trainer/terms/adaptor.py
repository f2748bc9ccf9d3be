"""Between the student's map and the teacher's: the student's trained convolution, and the teacher's frozen one."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.grid import BevGrid
from trainer.said import TeacherCells
from trainer.terms.teacher_map import cell_table

AdaptorKind = Literal["conv1x1", "conv3x3"]


def student_adaptor(kind: AdaptorKind, student_channels: int, teacher_channels: int) -> nn.Module:
    """conv1x1, or conv3x3 with norm and ReLU: the shared convolution of BEVDistill's side heads. Keeps the map's
    size."""
    if kind == "conv1x1":
        return nn.Conv2d(student_channels, teacher_channels, 1)
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU(inplace=True),
    )


class FrozenAdaptor(nn.Module):
    """max(0, conv(T) + bias) at chosen cells, zeros around the map: a teacher's folded adaptor, see
    `TeacherStore.adaptor`. weight: (O, C, k, k), k odd; bias: (O,)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Any, bias: Any) -> None:
        super().__init__()
        # the store has it: it need not be in checkpoints
        self.register_buffer("weight", torch.from_numpy(np.array(weight, np.float32)), persistent=False)
        self.register_buffer("bias", torch.from_numpy(np.array(bias, np.float32)), persistent=False)

    @torch.no_grad()
    def at(self, cells: TeacherCells, chosen: Tensor, grid: BevGrid) -> Tensor:
        """(K, O) at the stored cells `chosen`, (K,) positions or (N,) bool. `cells` must hold every cell of each frame:
        one that is not stored would count as 0."""
        samples, index = cells.samples()[chosen], cells.index[chosen]
        row, col = torch.div(index, grid.width, rounding_mode="floor"), index % grid.width
        table, reach = cell_table(cells, grid), self.weight.shape[-1] // 2
        out = self.bias.expand(len(index), -1)
        for i in range(-reach, reach + 1):
            for j in range(-reach, reach + 1):
                r, c = row + i, col + j
                there = (r >= 0) & (r < grid.height) & (c >= 0) & (c < grid.width)
                flat = torch.where(there, (samples * grid.height + r) * grid.width + c, 0)
                position = torch.where(there, table[flat], -1)
                values = cells.values[position.clamp(min=0)].to(self.weight.dtype) * (position >= 0)[:, None]
                out = torch.addmm(out, values, self.weight[:, :, i + reach, j + reach].T)
        return F.relu(out)
