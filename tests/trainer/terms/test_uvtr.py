"""UVTR's partial difference against loops over cells, queries and channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from models.build import build_detector
from tests.trainer.synthetic import TINY_STUDENT
from tests.trainer.terms.bevdistill_builders import (
    GRID,
    STUDENT,
    TEACHER,
    Frame,
    a_frame,
    a_student,
    a_world,
    bilinear,
    centre_of,
    loss_of,
    moved,
    on_grid,
    output_of,
    require_equal,
)
from trainer.terms.uvtr import Uvtr, UvtrOptions, needs_of, partial_difference


def a_term(**options: Any) -> Uvtr:
    torch.manual_seed(6)
    return Uvtr("t", 1.0, UvtrOptions(**options), STUDENT, TEACHER, a_student()).double()


def slow_loss(term: Uvtr, frames: list[Frame]) -> Tensor:
    options = term.options
    total, mass = torch.zeros((), dtype=torch.float64), 0.0
    for frame in frames:
        adapted = term.adaptor(frame.answer["bev"][None])[0]
        places = []
        if options.places == "cells":
            for k, index in enumerate(frame.cells.index):
                point = moved(frame.augment, *centre_of(index))
                places.append((point, torch.from_numpy(frame.cells.values[k]), float(frame.cells.weights[k, 0])))
        else:
            boxes = frame.answer["query_boxes"].detach()
            for code in boxes.flatten(0, 1) if options.layers == "all" else boxes[-1]:
                x, y = code[:2].tolist()
                there = (np.linalg.inv(frame.augment.matrix()) @ [x, y, 0, 1])[:2].tolist()
                if on_grid(*there):
                    places.append(((x, y), bilinear(torch.from_numpy(frame.teacher_map), *there), 1.0))
        for point, teacher, weight in places:
            if weight == 0 or not on_grid(*point):
                continue
            student = bilinear(adapted, *point)
            for s, t in zip(student, teacher, strict=True):
                if t > 0 or s > t:
                    total = total + weight * (s - t) ** 2 / TEACHER
            mass += weight
    return total / max(mass, 1.0)


@pytest.mark.parametrize("options", [{}, {"places": "queries"}, {"places": "queries", "layers": "all"}])
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any]) -> None:
    term, frames = a_term(**options), a_world(5)
    require_equal(term, frames, lambda: slow_loss(term, frames))


def test_a_student_may_be_below_a_teacher_that_is_silent_only() -> None:
    teacher = torch.tensor([-1.0, -1.0, 1.0, 1.0, 0.0])
    student = torch.tensor([-2.0, 0.0, 0.5, 2.0, -3.0])
    assert partial_difference(student, teacher).tolist() == [0.0, 1.0, 0.25, 1.0, 0.0]


def test_against_a_teacher_above_zero_it_is_the_plain_masked_loss() -> None:
    frame = a_frame(2)
    values = np.abs(frame.cells.values) + 0.01
    frame.cells.values[:] = values
    term = a_term()
    weights = torch.zeros(GRID.height * GRID.width, dtype=torch.float64)
    weights[frame.cells.index] = torch.from_numpy(frame.cells.weights[:, 0]).double()
    maps = torch.zeros(TEACHER, GRID.height * GRID.width, dtype=torch.float64)
    maps[:, frame.cells.index] = torch.from_numpy(values.T.copy())
    error = (term.adaptor(output_of([frame]).bev)[0].flatten(1) - maps).square().mean(dim=0)
    wanted = (weights * error).sum() / weights.sum()
    assert loss_of(term, [frame]).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_needs_follow_the_places_and_a_student_of_heatmaps_is_refused_queries() -> None:
    assert needs_of(UvtrOptions()).selectors == ("gaussian",)
    assert needs_of(UvtrOptions(places="queries")).every_cell
    model: Any = build_detector(TINY_STUDENT)
    none: Any = None
    with pytest.raises(ConfigError, match="term kd: reads the student's queries"):
        Uvtr.build("kd", 1.0, UvtrOptions(places="queries"), model, none, [])
