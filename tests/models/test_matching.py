"""Which query answers for which object: the cheapest assignment, frame by frame, also where something is missing."""

from __future__ import annotations

import itertools
import math

import torch

from models.matching import UNMATCHED, WORST, SetTargets, box_cost, focal_cost, match_queries


def scene(counts=(3, 0, 2), queries: int = 5, layers: int = 2, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, 10, generator=g)
    boxes = torch.randn(layers, len(counts), queries, 10, generator=g)
    total = sum(counts)
    sample = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    wanted = torch.randn(total, 10, generator=g)
    return logits, boxes, SetTargets(sample, torch.randint(0, 10, (total,), generator=g), wanted, tuple(counts))


def slow_cost(logits, boxes, targets, layer: int, item: int, query: int) -> float:
    b, label = int(targets.sample[item]), int(targets.labels[item])
    p = 1 / (1 + math.exp(-float(logits[layer, b, query, label])))
    focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
    l1 = sum(abs(float(boxes[layer, b, query, i] - targets.boxes[item, i])) for i in range(8))
    return 2.0 * focal + 0.25 * l1


def test_costs_are_those_of_the_paper():
    logits, boxes, targets = scene()
    cost = 2.0 * focal_cost(logits, targets) + 0.25 * box_cost(boxes, targets, 8)
    for place in itertools.product(range(2), range(5), range(5)):
        assert math.isclose(float(cost[place]), slow_cost(logits, boxes, targets, *place), rel_tol=1e-4), place


def test_the_assignment_is_the_cheapest_of_all_in_every_frame_and_layer():
    logits, boxes, targets = scene()
    boxes[..., 8:] *= 20  # velocities count for nothing here; if they did, they would decide
    found = match_queries(logits, boxes, targets, class_weight=2.0, box_weight=0.25)
    assert found.shape == (2, 5) and found.dtype == torch.int64
    for layer, items in itertools.product(range(2), ([0, 1, 2], [3, 4])):
        costs = {
            chosen: sum(slow_cost(logits, boxes, targets, layer, i, q) for i, q in zip(items, chosen, strict=True))
            for chosen in itertools.permutations(range(5), len(items))
        }
        assert tuple(found[layer, items].tolist()) == min(costs, key=costs.get)


def test_frames_are_matched_as_if_alone():
    logits, boxes, targets = scene()
    both = match_queries(logits, boxes, targets, class_weight=2.0, box_weight=0.25)
    last = SetTargets(torch.zeros(2, dtype=torch.long), targets.labels[3:], targets.boxes[3:], (2,))
    alone = match_queries(logits[:, 2:], boxes[:, 2:], last, class_weight=2.0, box_weight=0.25)
    assert torch.equal(both[:, 3:], alone)


def test_more_objects_than_queries_leave_the_dearest_unmatched():
    logits, boxes, targets = scene(counts=(7,), queries=4, layers=1)
    found = match_queries(logits, boxes, targets, class_weight=2.0, box_weight=0.25)
    assert sorted(found[0][found[0] != UNMATCHED].tolist()) == [0, 1, 2, 3]
    assert int((found == UNMATCHED).sum()) == 3


def test_no_object_at_all_is_an_empty_answer():
    logits, boxes, targets = scene(counts=(0, 0))
    assert match_queries(logits, boxes, targets, class_weight=2.0, box_weight=0.25).shape == (2, 0)


def test_unknown_velocities_and_infinite_answers_do_not_stop_it():
    logits, boxes, targets = scene()
    targets.boxes[:, 8:] = math.nan
    plain = match_queries(logits, boxes, targets, class_weight=2.0, box_weight=0.25)
    assert torch.isfinite(box_cost(boxes, targets, 10)).all()
    assert torch.equal(plain, match_queries(logits, boxes, targets, class_weight=2.0, box_weight=0.25))
    boxes[0, 0, 2] = math.nan
    found = match_queries(logits, boxes, targets, class_weight=2.0, box_weight=0.25)
    assert 2 not in found[0, :3].tolist(), f"a query that says NaN costs {WORST}"
