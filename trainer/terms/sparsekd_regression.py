"""SparseKD's regression: at the centre of every annotated box the student's raw box code should be the teacher's.

    L = sum_b sum_i a_i |S_i(cell of A c_b) - A(T)_i(cell of c_b)| / max(boxes, 1)

over annotated boxes b whose centre's cell is stored, and the codes i that both have; a are the code weights. The
teacher's code is of the canonical frame and of its own cell: it is decoded to metres, moved by A and coded again for
the student's cell, so that augmentation and other grids are exact. `form = "released"` compares raw values as they are,
which is right only without either. 9 ms for 4 frames of 40 boxes, six heads, forward and backward, on one core.
Source: Yang et al. 2022 (SparseKD), released code; see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from cache.grid import BevGrid
from cache.serving import same_grid
from cache.store import TeacherStore
from models.center_head import BRANCHES
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid
from trainer.terms.annotations import annotated_boxes
from trainer.terms.moved_regression import move_code
from trainer.terms.places import augmentation_of, canonical_points, cells_holding, inside_grid
from trainer.terms.precision import at_least_fp32
from trainer.terms.store_facts import map_fields
from trainer.terms.student import head_classes
from trainer.terms.teacher_map import stored_positions
from trainer.terms.term import TermNeeds

CODES = sum(BRANCHES.values())


class SparseKdRegressionOptions(Config):
    """selector: the store's cells must hold those of the boxes' centres, as gaussian's and footprint's do. form: moved,
    or released (raw values, refused where grids differ or the batch is augmented). code_weights: of the ten codes in
    the order of BRANCHES; released: 1 each, of a data set without velocities, which get the head's 0.2 here."""

    selector: str = "gaussian"
    form: Literal["moved", "released"] = "moved"
    code_weights: tuple[float, ...] = Field(
        default=(1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2), min_length=CODES, max_length=CODES
    )


def needs_of(options: SparseKdRegressionOptions) -> TermNeeds:
    """The raw maps at the stored cells, among which the boxes' centres are."""
    return TermNeeds(
        (*map_fields(), "regression"),
        (options.selector,),
        ("heads",),
        any_grid=True,
        unaugmented=options.form == "released",
    )


class SparseKdRegression(nn.Module):
    """A `trainer.terms.term.Term`; nothing in it is trained. identity_only: it serves no augmented batch."""

    def __init__(
        self,
        name: str,
        weight: float,
        options: SparseKdRegressionOptions,
        model: Detector,
        teacher_grid: BevGrid,
    ) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.heads = needs_of(options), head_classes(name, model)
        self.identity_only = options.form == "released"
        if self.identity_only and not same_grid(teacher_grid, model.grid):
            raise ConfigError(
                f"term {name}: form released compares cell-relative offsets, but the store is on {teacher_grid} and "
                f'the student on {model.grid}; set form = "moved", or give both one grid'
            )
        headless = (model.config.get("head") or {}).get("headless") or ()
        self.headless = [DETECTION_CLASSES.index(each) for each in headless]

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: SparseKdRegressionOptions,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> SparseKdRegression:
        """The term for a student and a store."""
        return cls(name, weight, options, model, teacher.grid)

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        assert said.regression is not None
        device = said.regression.device
        with torch.autocast(device.type, enabled=False):
            matrices = augmentation_of(batch, device)
            if self.identity_only and not torch.equal(matrices, torch.eye(4).to(matrices).expand_as(matrices)):
                raise ConfigError(
                    f"term {self.name}: form released compares raw values, but the batch is augmented; set form = "
                    '"moved", or turn [data.bev_augmentation] off'
                )
            samples, boxes, labels = annotated_boxes(batch, device)
            to_row, to_col = cells_holding(boxes[:, :2], self.grid)
            row, col = cells_holding(canonical_points(boxes[:, :2], samples, matrices), said.grid)
            wanted, known = self._teacher_code(said, samples, row, col, labels)
            head = self.heads.group_of_class().to(device)[labels]
            inside = inside_grid(to_row, to_col, self.grid)
            kept = inside & (head >= 0) & known.any(dim=1)
            samples, wanted, known, labels = samples[kept], wanted[kept], known[kept], labels[kept]
            row, col, to_row, to_col = row[kept], col[kept], to_row[kept], to_col[kept]
            if not self.identity_only:
                wanted = move_code(wanted, row, col, said.grid, matrices[samples], to_row, to_col, self.grid)
            found, both = self._student_code(output, samples, to_row, to_col, head[kept])
            numerator = self._error(found, wanted.to(found.dtype), known & both, labels).sum()
            count = numerator.new_tensor(float(len(found)))
        return {self.name: LossPart(numerator[None], count[None], self.weight)}

    def _teacher_code(
        self, said: TeacherSaid, samples: Tensor, row: Tensor, col: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, 10) float64 of the boxes' classes' groups at their centres' cells, and which of it there is."""
        assert said.cells is not None
        assert said.regression is not None
        at = stored_positions(said.cells, said.grid, samples, row, col)
        raw = said.regression[at.clamp(min=0)].double() if len(said.regression) else None
        code = torch.zeros(len(at), CODES, dtype=torch.float64, device=at.device)
        known = torch.zeros(len(at), CODES, dtype=torch.bool, device=at.device)
        for names, columns in zip(said.groups, said.regression_columns, strict=True):
            of_group = torch.zeros(len(DETECTION_CLASSES), dtype=torch.bool, device=at.device)
            of_group[[DETECTION_CLASSES.index(each) for each in names]] = True
            mine = (at >= 0) & of_group[labels]
            for name, place in _places().items():
                if name in columns and raw is not None:
                    code[:, place] = torch.where(mine[:, None], raw[:, columns[name]], code[:, place])
                    known[:, place] |= mine[:, None]
        return code, known

    def _student_code(
        self, output: DetectorOutput, samples: Tensor, row: Tensor, col: Tensor, head: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, 10) of the boxes' own heads at their cells, and which of it there is."""
        first = next(iter(output.heads[0].values()))
        dtype = at_least_fp32(first).dtype
        code = torch.zeros(len(samples), CODES, dtype=dtype, device=first.device)
        known = torch.zeros(len(samples), CODES, dtype=torch.bool, device=first.device)
        for group, maps in enumerate(output.heads):
            mine = (head == group).nonzero()[:, 0]
            for name, place in _places().items():
                if name in maps:
                    values = at_least_fp32(maps[name][samples[mine], :, row[mine], col[mine]])
                    code = code.index_put((mine[:, None], torch.arange(CODES, device=mine.device)[place]), values)
                    known[mine, place] = True
        return code, known

    def _error(self, found: Tensor, wanted: Tensor, known: Tensor, labels: Tensor) -> Tensor:
        """(N,): weighted, over codes; for classes without front and back the opposite heading is as right."""
        weights = torch.tensor(self.options.code_weights, dtype=found.dtype, device=found.device) * known
        error = (found - wanted).abs() * weights
        if self.headless:
            turn = slice(6, 8)
            opposite = ((found[:, turn] + wanted[:, turn]).abs() * weights[:, turn]).sum(dim=1)
            straight = error[:, turn].sum(dim=1)
            headless = torch.isin(labels, torch.tensor(self.headless, device=labels.device))
            gain = torch.where(headless, torch.minimum(straight, opposite) - straight, 0.0)
            return error.sum(dim=1) + gain
        return error.sum(dim=1)


def _places() -> dict[str, slice]:
    """Of each branch in the code of ten."""
    ends = torch.tensor(list(BRANCHES.values())).cumsum(0).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(BRANCHES.items(), ends, strict=True)}
