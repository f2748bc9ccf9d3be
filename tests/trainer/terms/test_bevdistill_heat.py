"""The side head: its focal loss against loops over cells, its dense part against whole maps."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.grid import BevGrid
from models.gaussian import draw_gaussians
from tests.trainer.terms.bevdistill_builders import (
    CLASSES,
    GRID,
    STUDENT,
    TEACHER,
    Frame,
    a_frame,
    a_student,
    a_world,
    bilinear,
    centre_of,
    leaves_of,
    moved,
    moved_boxes,
    on_grid,
    parts_of,
    require_equal,
)
from tests.trainer.terms.slow_pieces import gradients
from trainer.terms.adaptor import FrozenAdaptor
from trainer.terms.bevdistill_heat import BevDistillHeat, BevDistillHeatOptions, needs_of

WEIGHT = np.random.default_rng(5).normal(0, 0.4, (TEACHER, TEACHER, 3, 3)).astype(np.float32)
BIAS = np.full(TEACHER, 0.3, np.float32)


def a_term(**options: Any) -> BevDistillHeat:
    torch.manual_seed(3)
    parsed = BevDistillHeatOptions(convs=2, **options)
    frozen = FrozenAdaptor(WEIGHT, BIAS) if parsed.teacher == "adaptor" else None
    term = BevDistillHeat("t", 1.0, parsed, STUDENT, TEACHER, a_student(), frozen).double()
    for module in term.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return term


def slow_loss(term: BevDistillHeat, frames: list[Frame]) -> Tensor:
    options = term.options
    focal = dense = torch.zeros((), dtype=torch.float64)
    peaks, mass = 0, 0.0
    for frame in frames:
        adapted = term.adaptor(frame.answer["bev"][None])[0]
        if not frame.labelled:
            continue
        boxes = moved_boxes(frame.boxes, frame.augment.matrix()).astype(np.float32)
        target = draw_gaussians(boxes, frame.labels, CLASSES, GRID, min_radius=1)
        heat = term.heat(adapted[None])[0].sigmoid()
        for place in np.ndindex(*target.shape):
            if options.over == "cells" and not target[:, place[1], place[2]].any():
                continue
            p, wanted = heat[place].clamp(1e-4, 1 - 1e-4), float(target[place])
            if wanted == 1:
                peaks += 1
                focal = focal - (1 - p) ** 2 * p.log()
            else:
                focal = focal - (1 - wanted) ** 4 * p**2 * (1 - p).log()
        teacher = torch.relu(
            torch.nn.functional.conv2d(
                torch.from_numpy(frame.teacher_map)[None],
                torch.from_numpy(WEIGHT).double(),
                torch.from_numpy(BIAS).double(),
                padding=1,
            )
        )[0]
        for k, index in enumerate(frame.cells.index):
            x, y = moved(frame.augment, *centre_of(index))
            weight = float(frame.cells.weights[k, 0])
            if weight == 0 or not on_grid(x, y):
                continue
            wanted_values = teacher[:, index // GRID.width, index % GRID.width]
            if options.teacher == "level":
                wanted_values = torch.from_numpy(frame.adapted.values[k])
            error = (bilinear(adapted, x, y) - wanted_values).square()
            dense = dense + weight * (error.sum() if options.reduce == "sum" else error.mean())
            mass += weight
    return options.heat_weight * focal / max(peaks, 1) + options.dense_weight * dense / max(mass, 1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"over": "map"},
        {"over": "map", "teacher": "level", "reduce": "mean", "dense_weight": 1.0},
        {},
        {"teacher": "level", "reduce": "mean", "dense_weight": 1.0},
        {"dense_weight": 0.0},
        {"heat_weight": 0.0, "dense_weight": 1.0},
    ],
)
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any]) -> None:
    term, frames = a_term(**options), a_world(5, frames=2)
    require_equal(term, frames, lambda: slow_loss(term, frames))


def test_cells_and_map_agree_in_the_dense_part_where_norms_do_not_see_the_cells() -> None:
    frames = a_world(5, frames=2)
    near, whole = (parts_of(a_term(over=over), frames)["t.dense"] for over in ("cells", "map"))
    assert torch.allclose(near.numerator, whole.numerator, rtol=1e-12) and torch.equal(
        near.normaliser, whole.normaliser
    )


def test_what_is_far_from_objects_does_not_move_the_loss_near_them() -> None:
    """Four convolutions behind one another see four cells far; the map beyond is not even read."""
    frames = a_world(5, frames=2)
    term = a_term()
    loss = sum(part.value() for part in parts_of(term, frames).values())
    [one, other] = gradients(loss, [frame.answer["bev"] for frame in frames])
    reached = torch.stack([one, other]).abs().sum(dim=1) > 0
    assert 0 < int(reached.sum()) < reached.numel()


def test_unlabelled_frames_add_to_neither_part() -> None:
    frames = a_world(5)
    frames[0] = dataclasses.replace(frames[0], labelled=False)
    term = a_term()
    found, wanted = parts_of(term, frames), parts_of(term, frames[1:])
    for name, part in found.items():
        assert torch.allclose(part.numerator, wanted[name].numerator, rtol=1e-10), name
        assert torch.equal(part.normaliser, wanted[name].normaliser), name
    nobody = parts_of(term, [frames[0]])
    assert all(part.numerator.item() == part.normaliser.item() == 0 for part in nobody.values())


def test_the_two_parts_share_the_adaptor_and_the_heat_reaches_the_students_map() -> None:
    term, frames = a_term(), [a_frame(1)]
    parts = parts_of(term, frames)
    for part in parts.values():
        grads = gradients(part.value(), [*term.adaptor.parameters(), leaves_of(frames)[0]])
        assert all(g.abs().sum() > 0 for g in grads)
    assert all(g.abs().sum() == 0 for g in gradients(parts["t.dense"].value(), list(term.heat.parameters())))


def test_a_store_without_the_frozen_adaptor_is_asked_for_it_by_needs() -> None:
    assert "adaptor" in needs_of(BevDistillHeatOptions()).teacher_fields
    assert needs_of(BevDistillHeatOptions()).every_cell
    level = needs_of(BevDistillHeatOptions(teacher="level"))
    assert level.teacher_fields == ("level(name=adapted)",)
    assert not level.every_cell
    assert needs_of(BevDistillHeatOptions(dense_weight=0.0)).teacher_fields == ()


def test_it_is_built_from_the_stores_adaptor_or_level() -> None:
    def a_store(grid: BevGrid) -> Any:
        level = SimpleNamespace(grid=grid, encoding=SimpleNamespace(channels=TEACHER))
        return SimpleNamespace(
            root="cache/teachers/t",
            bev=SimpleNamespace(channels=9),
            adaptor=lambda: SimpleNamespace(weight=WEIGHT, bias=BIAS),
            require=lambda asked: None,
            further=SimpleNamespace(level=lambda name: level),
        )

    options = BevDistillHeatOptions(dense_weight=1.0)
    built = BevDistillHeat.build("t", 1.0, options, a_student(), a_store(GRID), [0])
    assert built.frozen is not None
    assert torch.equal(built.frozen.weight, torch.from_numpy(WEIGHT))
    assert not any("frozen" in name for name in built.state_dict())
    level = BevDistillHeatOptions(teacher="level")
    assert BevDistillHeat.build("t", 1.0, level, a_student(), a_store(GRID), [0]).frozen is None
    with pytest.raises(ConfigError, match=r"level adapted is on .*cell 1\.6 m.*cell 0\.8 m"):
        BevDistillHeat.build("t", 1.0, level, a_student(), a_store(BevGrid(-4.8, 4.8, -4.8, 4.8, 1.6)), [0])
