"""What student and teacher say in their heads at the same places: the stored cells of one selector that lie on the map.

The student's maps are read at A * p between cells (logits and raw regression are interpolated, not probabilities); the
teacher's raw regression is moved by A to be comparable, see `moved_regression`. Every response term reads this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from models.detector import Batch, DetectorOutput
from trainer.said import TeacherSaid
from trainer.terms.moved_regression import moved_branch
from trainer.terms.places import CellPlaces, augmentation_of, cell_places, column_of
from trainer.terms.precision import at_least_fp32
from trainer.terms.sampling import sample_bilinear

Groups = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class HeadCells:
    """K cells, at fp32 or more.

    weights: (K,) above 0. heat: of each of the student's task groups (K, its classes) logits; teacher_heat: the same of
    the teacher, class by class. branches, teacher_branches: of each group, by name, (K, channels); the teacher's moved.
    """

    weights: Tensor
    heat: list[Tensor]
    teacher_heat: list[Tensor]
    branches: list[dict[str, Tensor]]
    teacher_branches: list[dict[str, Tensor]]


def heads_at_cells(
    output: DetectorOutput,
    batch: Batch,
    said: TeacherSaid,
    column: str,
    grid: BevGrid,
    groups: Groups,
    branches: Sequence[str],
) -> HeadCells:
    """column: of the cells' weights; grid, groups: the student's; branches: which raw maps are compared."""
    cells = said.cells
    assert cells is not None
    assert said.logits is not None
    at = cell_places(cells, column_of(cells, column), batch, said.grid, grid)
    maps = [heads[name] for heads in output.heads for name in ("heatmap", *branches)]
    joined = at_least_fp32(torch.cat(maps, dim=1))  # one gather for all of them
    found = iter(sample_bilinear(joined, at.samples, at.row, at.col).split([m.shape[1] for m in maps], dim=1))
    logits = said.logits[at.chosen].to(joined.dtype)
    heat, mine = [], []
    for _ in groups:
        heat.append(next(found))
        mine.append({name: next(found) for name in branches})
    matrices = augmentation_of(batch, at.samples.device)[at.samples]
    theirs = [_moved(said, names, branches, at, matrices, grid, joined.dtype) for names in groups]
    wanted = [logits[:, [DETECTION_CLASSES.index(name) for name in names]] for names in groups]
    return HeadCells(at.weights.to(joined.dtype), heat, wanted, mine, theirs)


def _moved(
    said: TeacherSaid,
    names: tuple[str, ...],
    branches: Sequence[str],
    at: CellPlaces,
    matrices: Tensor,
    grid: BevGrid,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The teacher's branches of the task group with these classes, as they are in the student's frame and cells."""
    if not branches:
        return {}
    assert said.regression is not None
    columns = said.regression_columns[[frozenset(theirs) for theirs in said.groups].index(frozenset(names))]
    raw = said.regression[at.chosen].to(dtype)
    ratio = said.grid.cell_m / grid.cell_m
    return {name: moved_branch(name, raw[:, columns[name]], matrices, ratio) for name in branches}
