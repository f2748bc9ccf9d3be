"""BEVDistill's dense feature term: the student's map should be the teacher's where objects are.

    L = sum_k w_k * r_c (adaptor(S)(A p_k) - T_k)^2 / max(sum_k w_k, 1),   r_c = mean or sum over channels

over all cached cells k of the whole batch. Follows the released code (the normaliser is the mask's mass) without its
fault that a batch above 1 broadcasts the mask wrongly, and without its NaN where a frame has no object. fp32 inside;
about 5 ms for 4 frames of 500 cells, forward and backward, on one core. Source: Chen et al. 2022, arXiv 2211.09386, and
its released configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import StoreError
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.batches import TeacherCells
from trainer.terms.sampling import augmented_cells, inside_grid, sample_bilinear
from trainer.terms.term import TermNeeds

STATISTICS_FRAMES = 128  # enough for a channel's mean and deviation to 1 %; evenly spread over the training rows


class BevDistillDenseOptions(Config):
    """selector: whose weights, `NAME` or `NAME(option=value)`; adaptor: conv1x1, or conv3x3 with norm and ReLU as
    released (for teacher maps that are never negative); reduce: over channels (released: sum, with weight 0.01);
    standardise: teacher values by channel."""

    selector: str = "gaussian"
    adaptor: Literal["conv1x1", "conv3x3"] = "conv1x1"
    reduce: Literal["mean", "sum"] = "mean"
    standardise: bool = True


class BevDistillDense(nn.Module):
    """A `trainer.terms.term.Term`. statistics: (mean, deviation) of each teacher channel, or None to leave values
    alone.
    """

    teacher_mean: Tensor
    teacher_deviation: Tensor

    def __init__(
        self,
        name: str,
        weight: float,
        options: BevDistillDenseOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.column = needs_of(options), _column(options)
        if options.adaptor == "conv1x1":
            self.adaptor: nn.Module = nn.Conv2d(student_channels, teacher_channels, 1)
        else:
            self.adaptor = nn.Sequential(
                nn.Conv2d(student_channels, teacher_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(teacher_channels),
                nn.ReLU(inplace=True),
            )
        mean, deviation = statistics or (torch.zeros(teacher_channels), torch.ones(teacher_channels))
        self.register_buffer("teacher_mean", mean)
        self.register_buffer("teacher_deviation", deviation)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: BevDistillDenseOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> BevDistillDense:
        """The term for a student and the frames it will be trained on."""
        statistics = channel_statistics(teacher, teacher_rows, _column(options)) if options.standardise else None
        channels = teacher.bev.channels
        return cls(name, weight, options, model.bev_channels, channels, model, statistics)

    def forward(self, output: DetectorOutput, batch: Batch, cells: TeacherCells | None) -> dict[str, LossPart]:
        assert cells is not None
        assert batch.bev_augmentation is not None
        with torch.autocast(output.bev.device.type, enabled=False):
            student = self.adaptor(_at_least_fp32(output.bev))  # (B, C, H, W)
            samples = cells.samples()
            weights = cells.weights[:, cells.selectors.index(self.column)]
            row, col = augmented_cells(cells.index, samples, batch.bev_augmentation, self.grid)
            kept = (weights > 0) & inside_grid(row, col, self.grid)
            samples, weights = samples[kept], weights[kept].to(student.dtype)
            wanted = (cells.values[kept].to(student.dtype) - self.teacher_mean) / self.teacher_deviation  # (K, C)
            error = (sample_bilinear(student, samples, row[kept], col[kept]) - wanted).square()
            per_cell = error.mean(dim=1) if self.options.reduce == "mean" else error.sum(dim=1)
            numerator = (weights * per_cell).sum()
        return {self.name: LossPart(numerator[None], weights.sum()[None], self.weight)}


def needs_of(options: BevDistillDenseOptions) -> TermNeeds:
    """What the term reads under these options. Where the values lie is the store's affair: cells and dense will do."""
    return TermNeeds(("bev_index", "bev_weights"), (options.selector,), ("bev",))


def _column(options: BevDistillDenseOptions) -> str:
    return NeededSelector.parse(options.selector).name


def _at_least_fp32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def channel_statistics(teacher: TeacherStore, rows: Sequence[int], selector: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) float32 of the teacher's values over the cells of `selector`, each cell counted
    once.

    Deterministic: of up to STATISTICS_FRAMES frames evenly spread over `rows`. A channel that never changes gets
    deviation 1. StoreError where none of those frames has a cell.
    """
    column = teacher.selectors.index(selector)
    picked = (
        np.unique(np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS_FRAMES)).round().astype(int)) if rows else []
    )
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for i in picked:
        cells = teacher.cells(rows[i])
        values = cells.values[cells.weights[:, column] > 0].astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    if not count:
        raise StoreError(
            f"{teacher.root}: no cell of selector {selector!r} in {len(picked)} training frames; the teacher store "
            "has nothing "
            "to distil there, choose another selector or split"
        )
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation[deviation < 1e-6] = 1.0
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(deviation.astype(np.float32))
