"""UVTR's feature distillation in BEV: a squared difference that lets the student be below a teacher that is silent.

    L = sum_k w_k mean_c [T > 0 or S > T] (S - T)^2 / max(sum_k w_k, 1)       S = adaptor(student)(A p_k)

at stored cells under a selector's weights, or, of a store with every cell, at the places where the student's own
queries see objects (w = 1), where UVTR reads its voxels. The partial difference is Heo et al. 2019's; a row of
BEVDistill's table. Values are compared as stored: they must keep their sign. Four frames of 1,500 cells, 256 channels:
75 ms on one core. Source: Li et al. 2022 (UVTR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.adaptor import AdaptorKind, adapted_at, student_adaptor
from trainer.terms.bevdistill_contrast import query_points
from trainer.terms.places import (
    augmentation_of,
    canonical_points,
    cell_places,
    column_of,
    inside_grid,
    rows_and_columns,
)
from trainer.terms.store_facts import column_name, map_fields
from trainer.terms.student import map_of, queries_of, require_queries
from trainer.terms.teacher_map import stored_bilinear
from trainer.terms.term import TermNeeds


class UvtrOptions(Config):
    """places: cells of `selector`, or the queries of the student's last layer, or of all (layers)."""

    places: Literal["cells", "queries"] = "cells"
    selector: str = "gaussian"
    layers: Literal["all", "last"] = "last"
    adaptor: AdaptorKind = "conv1x1"


class Uvtr(nn.Module):
    """A `trainer.terms.term.Term`."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: UvtrOptions,
        student_channels: int,
        teacher_channels: int,
        model: Detector,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs = needs_of(options)
        self.adaptor = student_adaptor(options.adaptor, student_channels, teacher_channels)

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: UvtrOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> Uvtr:
        """The term for a student; ConfigError where that is known to lack the queries that are read."""
        if options.places == "queries":
            require_queries(name, model)
        return cls(name, weight, options, model.bev_channels, teacher.bev.channels, model)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        assert said.cells is not None
        with torch.autocast(output.bev.device.type, enabled=False):
            bev = map_of(output)
            if self.options.places == "cells":
                column = column_of(said.cells, column_name(self.options.selector))
                places = cell_places(said.cells, column, batch, said.grid, self.grid)
                wanted, weights = said.cells.values[places.chosen], places.weights
                found = adapted_at(self.adaptor, bev, places.samples, places.row, places.col)
            else:
                found, wanted, weights = self._at_queries(bev, output, batch, said)
            weights = weights.to(bev.dtype)
            numerator = (weights * partial_difference(found, wanted.to(bev.dtype)).mean(dim=1)).sum()
        return {self.name: LossPart(numerator[None], weights.sum()[None], self.weight)}

    def _at_queries(
        self, bev: Tensor, output: DetectorOutput, batch: Batch, said: TeacherSaid
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert said.cells is not None
        points, samples = query_points(queries_of(self.name, output).boxes, self.options.layers)
        row, col = rows_and_columns(points, self.grid)
        there = canonical_points(points, samples, augmentation_of(batch, points.device))
        wanted, known = stored_bilinear(said.cells, said.grid, samples, *rows_and_columns(there, said.grid))
        known = known & inside_grid(row, col, self.grid)
        return adapted_at(self.adaptor, bev, samples, row, col), wanted, known


def partial_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """(S - T)^2 where the teacher is above 0 or the student above the teacher, else 0; elementwise."""
    counts = (teacher > 0) | (student > teacher)
    return torch.where(counts, (student - teacher).square(), 0.0)


def needs_of(options: UvtrOptions) -> TermNeeds:
    """What the term reads under these options."""
    if options.places == "cells":
        return TermNeeds(map_fields(), (options.selector,), ("bev",))
    return TermNeeds(map_fields(), (), ("bev", "queries"), every_cell=True)
