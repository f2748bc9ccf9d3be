"""The sparse term of heatmap students against loops over the teacher's objects."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from tests.trainer.terms.bevdistill_builders import (
    BRANCHES,
    GRID,
    GROUPS,
    Frame,
    a_frame,
    a_student,
    a_world,
    batch_of,
    bilinear,
    parts_of,
    require_equal,
    said_of,
)
from trainer.terms.bevdistill_instance import BevDistillInstance, BevDistillInstanceOptions
from trainer.terms.teacher_set import quality_of, teacher_set


def a_term(**options: Any) -> BevDistillInstance:
    return BevDistillInstance("t", 1.0, BevDistillInstanceOptions(**options), a_student())


def slow_loss(term: BevDistillInstance, frames: list[Frame]) -> Tensor:
    options = term.options
    objects = teacher_set(said_of(frames), batch_of(frames), options, GRID)
    quality = quality_of(objects, batch_of(frames), options)
    box = bce = sum(leaf.sum() for leaf in frames[0].answer.values()) * 0
    mass = 0.0
    for i in range(len(quality)):
        name = DETECTION_CLASSES[int(objects.labels[i])]
        group = next((g for g, names in enumerate(GROUPS) if name in names), None)
        if group is None:
            continue
        answer, q = frames[int(objects.sample[i])].answer, float(quality[i])
        mass += q
        x, y = objects.codes[i, :2].tolist()
        for g, names in enumerate(GROUPS):
            logits = bilinear(answer[f"{g}.heatmap"], x, y)
            for channel, other in enumerate(names):
                p, target = logits[channel].sigmoid(), objects.probs[i, DETECTION_CLASSES.index(other)]
                bce = bce - q * (target * p.log() + (1 - target) * (1 - p).log())
        col, row = math.floor((x - GRID.x_min) / GRID.cell_m), math.floor((y - GRID.y_min) / GRID.cell_m)
        said = torch.cat([answer[f"{group}.{branch}"][:, row, col] for branch in BRANCHES])
        for d in range(10):
            wanted = float(objects.codes[i, d])
            value = said[d]
            if d == 0:
                value = GRID.x_min + (col + said[0]) * GRID.cell_m
            if d == 1:
                value = GRID.y_min + (row + said[1]) * GRID.cell_m
            if wanted == wanted:
                box = box + q * (options.velocity_weight if d >= 8 else 1.0) * (value - wanted).abs()
    return (options.box_weight * box + options.class_weight * bce) / max(mass, 1.0)


@pytest.mark.parametrize(
    "options", [{}, {"quality": "score", "objects": "queries", "box_weight": 1.0}, {"quality": "none", "top": 2}]
)
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any]) -> None:
    term, frames = a_term(**options), a_world(6, frames=4)
    require_equal(term, frames, lambda: slow_loss(term, frames))


def test_objects_of_classes_that_the_student_does_not_say_are_left_out() -> None:
    frame = a_frame(2)
    frame.said_labels[:] = DETECTION_CLASSES.index("bus")
    parts = parts_of(a_term(quality="none"), [frame])
    assert all(part.numerator.item() == part.normaliser.item() == 0 for part in parts.values())
    frame.said_labels[0] = DETECTION_CLASSES.index("truck")
    assert parts_of(a_term(quality="none"), [frame])["t.box"].normaliser.item() == 1


def test_a_student_that_answers_as_the_teacher_has_no_box_loss() -> None:
    frame = a_frame(3)
    frame.said_boxes[2, 7:9], frame.said_labels[:] = 0.5, DETECTION_CLASSES.index("truck")
    term = a_term(quality="none", top=1)
    code = teacher_set(said_of([frame]), batch_of([frame]), term.options, GRID).codes[0]
    col, row = ((code[:2] - torch.tensor([GRID.x_min, GRID.y_min])) / GRID.cell_m).floor().long().tolist()
    said = code.clone()
    said[0], said[1] = (code[0] - GRID.x_min) / GRID.cell_m - col, (code[1] - GRID.y_min) / GRID.cell_m - row
    for branch, part in zip(BRANCHES, said.split(list(BRANCHES.values())), strict=True):
        frame.answer[f"0.{branch}"].data[:, row, col] = part
    assert parts_of(term, [frame])["t.box"].value().item() == pytest.approx(0, abs=1e-12)


def test_a_student_without_a_centre_head_is_refused_unless_boxes_are_off() -> None:
    none: Any = None
    with pytest.raises(ConfigError, match=r"term kd: .*no centre head.*box_weight.*bevdistill_sparse"):
        BevDistillInstance.build("kd", 1.0, BevDistillInstanceOptions(), a_student(), none, [])
    term = BevDistillInstance.build("kd", 1.0, BevDistillInstanceOptions(box_weight=0.0), a_student(), none, [])
    assert set(parts_of(term, [a_frame(1)])) == {"kd.class"}
