"""Claims about the baseline GID-L."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from models.center_head import BRANCHES, CenterHead, CenterHeadConfig
from tests.models.test_rotated_iou import slow_iou
from tests.trainer.terms.sparsekd_builders import (
    COARSE,
    FINE,
    STUDENT_GROUPS,
    World,
    a_student,
    require_batch_invariant,
    require_falls,
    require_gradcheck,
    require_nothing,
    require_reference,
    value_of,
)
from trainer.augment import move_boxes
from trainer.terms.gid_logits import GidLogits, GidLogitsOptions, decode_best
from trainer.terms.student import head_classes

SEEN = [0, 1, 3, 4, 6]  # of a box, its rectangle


def a_term(world: World, **options: Any) -> GidLogits:
    return GidLogits("gid", 2.0, GidLogitsOptions(**{"top": 30, "iou": 0.05, **options}), a_student(world.student_grid))


def slow(term: GidLogits, world: World) -> Tensor:
    """Cell by cell, pair by pair, number by number."""
    options, grid = term.options, world.student_grid
    total, pairs = torch.zeros((), dtype=torch.float64), 0

    def smooth(a: Any, b: Any) -> Any:
        d = abs(a - b)
        return 0.5 * d * d if d < 1 else d - 0.5

    for b in range(world.frames):
        boxes, scores, labels = world.found[b]
        boxes = move_boxes(boxes, world.augments[b].matrix()).astype(np.float64)
        for group, names in enumerate(STUDENT_GROUPS):
            heat = world.student[f"heatmap{group}"][b].sigmoid()
            plain = heat.detach()
            best = sorted(
                (
                    (float(plain[c, r, k]), c, r, k)
                    for c in range(len(names))
                    for r in range(grid.height)
                    for k in range(grid.width)
                ),
                reverse=True,
            )[: options.top]
            for score, c, r, k in best:
                if score <= options.student_score:
                    continue
                raw = [
                    world.student[f"{name}{group}"][b, i, r, k] for name, size in BRANCHES.items() for i in range(size)
                ]
                mine = [grid.x_min + (k + raw[0]) * grid.cell_m, grid.y_min + (r + raw[1]) * grid.cell_m, raw[2]]
                mine += [torch.exp(v) for v in raw[3:6]]
                flat = np.array([*(v.item() for v in mine), math.atan2(raw[6].item(), raw[7].item()), 0, 0])
                overlaps = [
                    slow_iou(flat[SEEN], box[SEEN])
                    if score_t >= options.teacher_score
                    and (not options.same_class or DETECTION_CLASSES[label] == names[c])
                    else -1.0
                    for box, score_t, label in zip(boxes, scores, labels, strict=True)
                ]
                j = int(np.argmax(overlaps))
                if overlaps[j] <= options.iou:
                    continue
                total = total + options.score_weight * smooth(heat[c, r, k], float(scores[j]))
                norm = torch.sqrt(raw[6] ** 2 + raw[7] ** 2)
                yaw = boxes[j, 6]
                error = [smooth(m, t) for m, t in zip(mine, boxes[j, :6], strict=True)]
                error.append(smooth(raw[6] / norm * math.cos(yaw), raw[7] / norm * math.sin(yaw)))
                error += [smooth(raw[8 + i], boxes[j, 7 + i]) for i in range(2)]
                total = total + options.box_weight * sum(error) / 9
                pairs += 1
    assert pairs >= 2
    return term.weight * total / max(pairs, 1)


@pytest.mark.parametrize("options", [{}, {"same_class": False, "box_weight": 0.5}])
@pytest.mark.parametrize("grid", [FINE, COARSE])
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any], grid: Any) -> None:
    world = World(51, student_grid=grid, objects=(9, 9, 0, 9))
    require_reference(a_term(world, **options), world, slow, rel=1e-6)


def test_cells_decode_as_the_head_decodes_them() -> None:
    world, student = World(52), a_student()
    head = CenterHead(1, FINE, CenterHeadConfig(tasks=STUDENT_GROUPS, peaks="all", max_boxes=20, score_threshold=0.0))
    code, scores, labels = decode_best(world.output(), head_classes("gid", student), FINE, 20)
    for b, found in enumerate(head.decode(world.output().heads)):
        order = scores[b].argsort(descending=True, stable=True)[:20]
        assert np.allclose(scores[b][order].detach().numpy(), found.scores, atol=1e-6)
        assert np.array_equal(labels[b][order].numpy(), found.labels)
        assert np.allclose(code[b][order][:, :6].detach().numpy(), found.boxes_lidar[:, :6], rtol=1e-5, atol=1e-5)
        yaw = torch.atan2(code[b][order][:, 6], code[b][order][:, 7])
        assert np.allclose(yaw.detach().numpy(), found.boxes_lidar[:, 6], atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    world = World(53, objects=(6, 6, 0, 6))
    names = [f"{name}{g}" for name in ("heatmap", *BRANCHES) for g in (0, 1)]
    require_gradcheck(a_term(world), world, names)


def test_single_frames_sum_to_the_batch() -> None:
    world = World(54, objects=(6, 6, 2, 6))
    require_batch_invariant(a_term(world), world)


def test_frames_where_the_teacher_found_nothing_add_nothing() -> None:
    world = World(55)
    world.found[1] = (np.zeros((0, 9), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    require_nothing(a_term(world), world, [1])
    world.found[0][1][:] = 0.05  # below teacher_score
    require_nothing(a_term(world), world, [0])


def test_it_needs_no_annotations() -> None:
    world = World(56, labelled=(False,) * 4, objects=(6, 6, 2, 6))
    assert value_of(a_term(world), world).item() > 1e-3


def test_optimised_alone_it_falls() -> None:
    world = World(57, objects=(6, 6, 2, 6))
    require_falls(a_term(world, same_class=False), world, share=0.5)
