"""Assignments are the cheapest there are: against every permutation, with the cost written out."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from trainer.terms.matching import match_sets, soft_class_cost


def slow_cost(logits: torch.Tensor, code: torch.Tensor, probs: torch.Tensor, wanted: torch.Tensor) -> float:
    total = 0.0
    for c in range(len(logits)):
        p = torch.sigmoid(logits[c])
        total -= float(probs[c] * p.log() + (1 - probs[c]) * (1 - p).log())
    return total + 0.25 * sum(abs(float(code[d] - wanted[d])) for d in range(8))


def test_each_layer_and_frame_has_the_cheapest_assignment() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, codes = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 3, 4, 10, generator=generator)
    counts = (3, 0, 2)
    probs, wanted = torch.rand(5, 5, generator=generator), torch.randn(5, 10, generator=generator)
    wanted[:, 8:] = torch.nan  # velocities do not decide
    found = match_sets(logits, codes, probs, wanted, counts, (1.0, 0.25))
    assert len(found.item) == 2 * 5
    first = 0
    for frame, count in enumerate(counts):
        for layer in range(2):
            mine = (found.layer == layer) & (found.sample == frame)
            pairs = dict(zip(found.item[mine].tolist(), found.query[mine].tolist(), strict=True))
            assert sorted(pairs) == list(range(first, first + count))
            costs = {
                chosen: sum(
                    slow_cost(logits[layer, frame, q], codes[layer, frame, q], probs[first + t], wanted[first + t])
                    for t, q in enumerate(chosen)
                )
                for chosen in itertools.permutations(range(4), count)
            }
            assert tuple(pairs[first + t] for t in range(count)) == min(costs, key=lambda chosen: costs[chosen])
        first += count


def test_more_objects_than_queries_leave_the_dearest_alone() -> None:
    logits, codes = torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 10)
    wanted = torch.zeros(3, 10)
    wanted[1, 0] = 50.0
    found = match_sets(logits, codes, torch.rand(3, 3), wanted, (3,), (1.0, 1.0))
    assert sorted(found.item.tolist()) == [0, 2]


def test_a_cost_that_is_not_finite_does_not_break_the_assignment() -> None:
    logits, codes = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 10)
    codes[0, 0, 1, 0] = torch.inf
    logits[0, 0, 2, 0] = torch.nan
    found = match_sets(logits, codes, torch.rand(1, 2), torch.zeros(1, 10), (1,), (1.0, 1.0))
    assert found.query.tolist() == [0]


def test_the_class_cost_is_the_soft_cross_entropy() -> None:
    logits, probs = torch.randn(1, 6), torch.rand(4, 6)
    found = soft_class_cost(logits, probs)[0]
    wanted = F.binary_cross_entropy_with_logits(logits.expand(4, 6), probs, reduction="none").sum(dim=1)
    assert torch.allclose(found, wanted, atol=1e-5)
