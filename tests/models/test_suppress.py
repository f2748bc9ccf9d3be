"""Claims about `models.suppress`: equal to the greedy loop."""

from __future__ import annotations

import torch

from models.suppress import circle_suppress, rotated_suppress
from tests.models.test_rotated_iou import slow_iou


def slow_suppress(centres, labels, radius_m):
    kept: list[int] = []
    for i in range(len(centres)):
        rivals = [j for j in kept if labels[j] == labels[i]]
        if all((centres[i] - centres[j]).norm() >= radius_m[labels[i]] for j in rivals):
            kept.append(i)
    return torch.tensor([i in kept for i in range(len(centres))], dtype=torch.bool)


def test_equals_the_greedy_loop():
    radius = torch.tensor([2.0, 0.0, 4.0])
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        centres, labels = torch.rand(80, 2, generator=g) * 12, torch.randint(0, 3, (80,), generator=g)
        assert torch.equal(circle_suppress(centres, labels, radius), slow_suppress(centres, labels, radius)), (
            f"seed {seed}"
        )


def test_a_suppressed_box_suppresses_nobody():
    centres = torch.tensor([[0.0, 0], [1.5, 0], [3.0, 0], [4.5, 0]])
    stays = circle_suppress(centres, torch.zeros(4, dtype=torch.long), torch.tensor([2.0]))
    assert stays.tolist() == [True, False, True, False]


def test_no_boxes():
    assert circle_suppress(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.tensor([2.0])).shape == (0,)


def slow_rotated(boxes, labels, iou):
    kept: list[int] = []
    for i in range(len(boxes)):
        flat = [boxes[j, [0, 1, 3, 4, 6]].double() for j in (*kept, i)]
        limit = float(iou[labels[i]])
        rivals = [box for j, box in zip(kept, flat, strict=False) if labels[j] == labels[i]]
        if limit <= 0 or all(slow_iou(box, flat[-1]) <= limit for box in rivals):
            kept.append(i)
    return torch.tensor([i in kept for i in range(len(boxes))], dtype=torch.bool)


def test_rotated_suppression_equals_the_greedy_loop_over_clipped_polygons():
    iou = torch.tensor([0.2, 0.0, 0.5])
    went = 0
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        boxes = torch.rand(60, 9, generator=g) * torch.tensor([9, 9, 1, 3, 1.5, 1, 6.3, 1, 1]) + torch.tensor(
            [0, 0, 0, 1, 0.5, 1, 0, 0, 0.0]
        )
        labels = torch.randint(0, 3, (60,), generator=g)
        stays = rotated_suppress(boxes, labels, iou)
        assert torch.equal(stays, slow_rotated(boxes, labels, iou)), f"seed {seed}"
        assert stays[labels == 1].all()
        went += int((~stays).sum())
    assert went > 40


def test_long_boxes_side_by_side_stay_where_circles_would_take_one():
    boxes = torch.tensor([[0.0, 0, 0, 12, 2.5, 3, 0, 0, 0], [0.0, 2.6, 0, 12, 2.5, 3, 0, 0, 0]])
    labels = torch.zeros(2, dtype=torch.long)
    assert rotated_suppress(boxes, labels, torch.tensor([0.2])).tolist() == [True, True]
    assert circle_suppress(boxes[:, :2], labels, torch.tensor([3.0])).tolist() == [True, False]


def test_no_boxes_to_turn():
    assert rotated_suppress(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long), torch.tensor([0.2])).shape == (0,)
