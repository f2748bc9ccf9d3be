"""Claims about `models.suppress`: equal to the greedy loop."""

from __future__ import annotations

import torch

from models.suppress import circle_suppress


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
