"""Claims about SparseKD's regression term, and about boxes and codes under an augmentation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from models.center_head import BRANCHES
from tests.trainer.terms.slow_pieces import AUGMENTS
from tests.trainer.terms.sparsekd_builders import (
    COARSE,
    FINE,
    NARROW,
    STUDENT_GROUPS,
    TEACHER_GROUPS,
    World,
    a_student,
    require_batch_invariant,
    require_falls,
    require_gradcheck,
    require_nothing,
    require_reference,
    value_of,
)
from trainer.augment import BevAugment, move_boxes
from trainer.terms import box_code
from trainer.terms.sparsekd_regression import SparseKdRegression, SparseKdRegressionOptions

NAMES = [name for name, size in BRANCHES.items() for _ in range(size)]


def a_term(world: World, **options: Any) -> SparseKdRegression:
    return SparseKdRegression(
        "reg", 0.2, SparseKdRegressionOptions(**options), a_student(world.student_grid), world.grid
    )


def slow(term: SparseKdRegression, world: World) -> Tensor:
    """Box by box and code by code: decoded to metres, moved, coded again for the student's cell."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    grid, to = world.grid, world.student_grid
    for b in range(world.frames):
        a = world.augments[b].matrix()
        for box, label in zip(world.boxes[b], world.labels[b], strict=True):
            name = DETECTION_CLASSES[label]
            mine = [g for g, names in enumerate(STUDENT_GROUPS) if name in names]
            theirs = next(g for g, names in enumerate(TEACHER_GROUPS) if name in names)
            col, row = math.floor((box[0] - grid.x_min) / grid.cell_m), math.floor((box[1] - grid.y_min) / grid.cell_m)
            px, py = (a @ [box[0], box[1], 0.0, 1.0])[:2]
            to_col, to_row = math.floor((px - to.x_min) / to.cell_m), math.floor((py - to.y_min) / to.cell_m)
            stored = 0 <= col < grid.width and 0 <= row < grid.height and world.weights[b, :, row, col].any()
            on = 0 <= to_col < to.width and 0 <= to_row < to.height
            if not (mine and stored and on and world.labelled[b]):
                continue
            raw = world.regression[b, 10 * theirs : 10 * theirs + 10, row, col]
            x, y = grid.x_min + (col + raw[0]) * grid.cell_m, grid.y_min + (row + raw[1]) * grid.cell_m
            mx, my, mz, _ = a @ [x, y, raw[2], 1.0]
            s = a[2, 2]
            cos, sin = (a[:2, :2] / s) @ [raw[7], raw[6]]
            vx, vy = a[:2, :2] @ raw[8:]
            offset = [(mx - to.x_min) / to.cell_m - to_col, (my - to.y_min) / to.cell_m - to_row]
            wanted = [*offset, mz, *(raw[3:6] + math.log(s)), sin, cos, vx, vy]
            maps = [world.student[f"{branch}{mine[0]}"][b, :, to_row, to_col] for branch in BRANCHES]
            found = torch.cat(maps)
            error = [term.options.code_weights[i] * (found[i] - wanted[i]).abs() for i in range(10)]
            if name == "barrier":  # headless
                turned = [term.options.code_weights[i] * (found[i] + wanted[i]).abs() for i in (6, 7)]
                if sum(turned) < error[6] + error[7]:
                    error[6:8] = turned
            total = total + sum(error)
            count += 1
    return term.weight * total / max(count, 1)


@pytest.mark.parametrize("grid", [FINE, COARSE, NARROW])
def test_values_and_gradients_equal_the_slow_formula(grid: Any) -> None:
    world = World(21, student_grid=grid, objects=(9, 8, 0, 9))
    require_reference(a_term(world), world, slow)


def test_the_released_form_is_the_plain_difference_of_raw_values() -> None:
    """Without augmentation on one grid both forms say the same; with either it is refused by name."""
    world = World(22, augments=[BevAugment()] * 4)
    released, moved = (value_of(a_term(world, form=form), world).item() for form in ("released", "moved"))
    assert released == pytest.approx(moved, rel=1e-12) and released > 0.1
    with pytest.raises(ConfigError, match=r'the batch is augmented; set form = "moved"'):
        value_of(a_term(World(22), form="released"), World(22))
    with pytest.raises(ConfigError, match=r"cell 0\.8 m and the student on .* cell 1\.6 m"):
        a_term(World(22, student_grid=COARSE), form="released")


def test_a_student_whose_boxes_are_the_teachers_moved_has_no_loss() -> None:
    """One box at a cell's centre; the student codes the moved box in its own cell, by arithmetic of boxes alone."""
    world = World(23, frames=1, objects=(1,), augments=[BevAugment(0.7, 1.2, True)])
    world.boxes[0][0, :2] = [1.2, 2.0]
    world.labels[0][:] = 0  # car: teacher's group 0, student's group 0
    world.weights[:] = 1
    row, col = 10, 11
    yaw, size = 0.4, np.array([4.0, 2.0, 1.5])
    world.regression[0, :10, row, col] = [0.3, 0.6, -0.5, *np.log(size), math.sin(yaw), math.cos(yaw), 3.0, -1.0]
    box = np.array([[-8 + 11.3 * 0.8, -6.4 + 10.6 * 0.8, -0.5, *size, yaw, 3.0, -1.0]])
    a = world.augments[0].matrix()
    moved = move_boxes(box, a)[0].astype(np.float64)
    centre = (a @ [1.2, 2.0, 0, 1])[:2]
    to_col, to_row = math.floor((centre[0] + 8) / 0.8), math.floor((centre[1] + 6.4) / 0.8)
    code = [(moved[0] + 8) / 0.8 - to_col, (moved[1] + 6.4) / 0.8 - to_row, moved[2], *np.log(moved[3:6])]
    code += [math.sin(moved[6]), math.cos(moved[6]), *moved[7:]]
    with torch.no_grad():
        for name, part in zip(BRANCHES, np.split(np.array(code), np.cumsum(list(BRANCHES.values()))[:-1]), strict=True):
            world.student[f"{name}0"][0, :, to_row, to_col] = torch.from_numpy(part)
    part = a_term(world)(world.output(), world.batch(), world.said())["reg"]
    assert part.normaliser.item() == 1 and part.numerator.item() < 1e-5


def test_gradients_are_those_of_finite_differences() -> None:
    world = World(24)
    require_gradcheck(a_term(world), world, [f"{name}{g}" for name in BRANCHES for g in (0, 1)])


def test_single_frames_sum_to_the_batch() -> None:
    world = World(25)
    require_batch_invariant(a_term(world), world)


def test_frames_without_objects_cells_or_annotations_add_nothing() -> None:
    world = World(26, labelled=(True, True, True, False), empty=(1,))
    term = a_term(world)
    for frame in (1, 2, 3):
        require_nothing(term, world, [frame])
    assert value_of(term, world).item() == pytest.approx(value_of(term, world, [0]).item(), rel=1e-12)
    stray = world.batch()
    boxes = [torch.from_numpy(move_boxes(b, a.matrix())) for b, a in zip(world.boxes, world.augments, strict=True)]
    stray.boxes[3], stray.labels[3] = boxes[3], torch.from_numpy(world.labels[3]).long()
    world.weights[3] = 1  # were the boxes of an unlabelled frame read, they would count
    part = term(world.output(), stray, world.said())["reg"]
    assert part.value().item() == pytest.approx(value_of(term, world, [0]).item(), rel=1e-12)


def test_optimised_alone_it_falls() -> None:
    world = World(27, objects=(6, 5, 0, 5))
    require_falls(a_term(world), world, share=0.4)


def test_boxes_move_as_the_batch_builder_moves_them() -> None:
    world = World(28, objects=(4, 4, 4, 4))
    for boxes, augment in zip(world.boxes, AUGMENTS, strict=True):
        boxes[0, 7:] = np.nan
        matrix = augment.matrix()
        found = box_code.move_boxes(torch.from_numpy(boxes), torch.from_numpy(matrix).expand(len(boxes), 4, 4))
        assert np.allclose(found.numpy(), move_boxes(boxes, matrix), atol=1e-6, equal_nan=True)
    back = box_code.move_boxes(found, torch.linalg.inv(torch.from_numpy(matrix)).expand(len(boxes), 4, 4))
    assert np.allclose(back.numpy(), boxes, atol=1e-6, equal_nan=True)


def test_ten_code_weights_are_asked_for() -> None:
    with pytest.raises(ValueError, match="10"):
        SparseKdRegressionOptions(code_weights=(1.0,) * 8)
