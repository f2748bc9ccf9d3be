"""Between the student's map and the teacher's: the student's trained convolution, and the teacher's frozen one."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.grid import BevGrid
from trainer.said import TeacherCells
from trainer.terms.sampling import corners, sample_bilinear
from trainer.terms.some_cells import SomeCells, between, layer_at, rows_of
from trainer.terms.teacher_map import stored_positions

AdaptorKind = Literal["conv1x1", "conv3x3", "conv3x3_cells"]
PlainAdaptor = Literal["none", "conv1x1"]


def student_adaptor(kind: str, student_channels: int, teacher_channels: int, term: str = "") -> nn.Module:
    """From a map of the student to the teacher's channels; keeps the map's size. Read it by `adapted_at`.

    none: as it is, ConfigError naming the term where channels differ; conv1x1; conv3x3, with norm and ReLU: the shared
    convolution of BEVDistill's side heads, for teacher maps that are never negative; conv3x3_linear: with norm alone;
    conv3x3_cells: as conv3x3, but computed, and normed, at the cells that are read alone.
    """
    if kind == "conv1x1":
        return nn.Conv2d(student_channels, teacher_channels, 1)
    if kind == "none":
        if student_channels != teacher_channels:
            raise ConfigError(
                f"term {term}: without an adaptor the student's map of {student_channels} channels cannot be compared "
                f'with the teacher\'s of {teacher_channels}; set adaptor = "conv1x1"'
            )
        return nn.Identity()
    conv = nn.Conv2d(student_channels, teacher_channels, 3, padding=1, bias=False)
    layers = [conv, nn.BatchNorm2d(teacher_channels)]
    if kind == "conv3x3_cells":
        return AtCells(*layers, nn.ReLU())
    return nn.Sequential(*layers) if kind == "conv3x3_linear" else nn.Sequential(*layers, nn.ReLU(inplace=True))


def adapted_at(adaptor: nn.Module, bev: Tensor, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """(K, C): the adapted map at places. A 1x1 convolution commutes with bilinear reading, so it runs on K rows only:
    a quarter of the time at 1,500 cells of 16,384."""
    if isinstance(adaptor, AtCells):
        return adaptor.at(bev, samples, row, col)
    if isinstance(adaptor, nn.Conv2d) and adaptor.kernel_size == (1, 1):
        return adapted_rows(adaptor, sample_bilinear(bev, samples, row, col))
    return sample_bilinear(adaptor(bev), samples, row, col)


class AtCells(nn.Sequential):
    """A 3x3 convolution with norm and ReLU that is computed at the cells between which places lie (`some_cells`)."""

    def at(self, bev: Tensor, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """(K, C): what the layer says at places (K,) of maps (B, C', H, W)."""
        shape = (bev.shape[0], bev.shape[2], bev.shape[3])
        cells = SomeCells.of(corners(samples, row, col, shape[1:])[0], shape)
        return between(layer_at(self, rows_of(bev), cells.neighbours()), cells, samples, row, col)


def adapted_rows(adaptor: nn.Module, rows: Tensor) -> Tensor:
    """(..., C) of values (..., C') that were read already, by an adaptor of kind none or conv1x1."""
    return F.linear(rows, adaptor.weight[:, :, 0, 0], adaptor.bias) if isinstance(adaptor, nn.Conv2d) else adaptor(rows)


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
        reach = self.weight.shape[-1] // 2
        step = torch.arange(-reach, reach + 1, device=index.device)
        i, j = (part.flatten() for part in torch.meshgrid(step, step, indexing="ij"))
        positions = stored_positions(cells, grid, samples[:, None], row[:, None] + i, col[:, None] + j)  # (K, k * k)
        out = self.bias.expand(len(index), -1)
        for position, kernel in zip(positions.unbind(1), self.weight.flatten(2).unbind(2), strict=True):
            values = cells.values[position.clamp(min=0)].to(self.weight.dtype) * (position >= 0)[:, None]
            out = torch.addmm(out, values, kernel.T)
        return F.relu(out)
