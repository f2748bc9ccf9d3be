"""The sparse term of query students against loops over layers, frames, queries and numbers."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from models.build import build_detector
from tests.trainer.synthetic import TINY_STUDENT
from tests.trainer.terms.bevdistill_builders import (
    CLASSES,
    GRID,
    LAYERS,
    QUERIES,
    Frame,
    a_frame,
    a_student,
    a_world,
    batch_of,
    output_of,
    parts_of,
    require_equal,
    said_of,
)
from trainer.terms.bevdistill_sparse import BevDistillSparse, BevDistillSparseOptions, needs_of
from trainer.terms.set2set import Set2SetOptions
from trainer.terms.set2set import build as build_set2set
from trainer.terms.teacher_set import quality_of, teacher_set


def a_term(**options: Any) -> BevDistillSparse:
    return BevDistillSparse("t", 1.0, BevDistillSparseOptions(**options), a_student())


def pair_cost(logits: Tensor, code: Tensor, probs: Tensor, wanted: Tensor) -> float:
    p = logits.detach().sigmoid()
    bce = -(probs * p.log() + (1 - probs) * (1 - p).log()).sum()
    return float(bce + 0.25 * (code.detach()[:8] - wanted[:8]).abs().sum())


def best_pairs(logits: Tensor, codes: Tensor, probs: Tensor, wanted: Tensor) -> dict[int, int]:
    """Query by object, by trying all ways."""
    cost = np.array([[pair_cost(logits[q], codes[q], probs[t], wanted[t]) for t in range(len(probs))]
                     for q in range(len(logits))])  # fmt: skip
    ways = itertools.permutations(range(len(logits)), len(probs))
    best = min(ways, key=lambda way: sum(cost[q, t] for t, q in enumerate(way)))
    return dict(enumerate(best))


def slow_loss(term: BevDistillSparse, frames: list[Frame]) -> Tensor:
    """The formulas, written out: per layer, over the whole batch."""
    options = term.options
    output, batch, said = output_of(frames), batch_of(frames), said_of(frames)
    assert output.queries is not None
    objects = teacher_set(said, batch, options, GRID)
    quality = quality_of(objects, batch, options)
    total = output.queries.logits.sum() * 0
    for layer in range(LAYERS) if options.layers == "all" else [LAYERS - 1]:
        box, box_mass, bce, matched = total * 0, 0.0, total * 0, 0
        for b in range(len(frames)):
            mine = (objects.sample == b).nonzero().flatten()
            if not len(mine):
                continue
            logits, codes = output.queries.logits[layer, b], output.queries.boxes[layer, b]
            pairs = best_pairs(logits, codes, objects.probs[mine], objects.codes[mine])
            of_query = {q: int(mine[t]) for t, q in pairs.items()}
            for q in range(QUERIES):
                item = of_query.get(q)
                target = objects.probs[item] if item is not None else torch.zeros(CLASSES, dtype=torch.float64)
                share = float(quality[item]) if item is not None else options.background
                for c in range(CLASSES):
                    p = torch.sigmoid(logits[q, c])
                    bce = bce - share * (target[c] * p.log() + (1 - target[c]) * (1 - p).log())
                if item is None:
                    continue
                matched += 1
                distance = total * 0
                for d in range(10):
                    wanted = float(objects.codes[item, d])
                    if wanted == wanted:
                        factor = options.velocity_weight if d >= 8 else 1.0
                        distance = distance + factor * (codes[q, d] - wanted).abs()
                box = box + (share**2 if options.released_square else share) * distance
                box_mass += share
        total = total + options.box_weight * box / max(box_mass, 1.0)
        total = total + options.class_weight * bce / max(matched, 1)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": "score", "objects": "queries", "released_square": True, "class_weight": 0.0},
        {"layers": "last", "background": 0.3, "gamma": 0.2, "velocity_weight": 0.7, "class_weight": 0.4},
    ],
    ids=["default", "released", "last"],
)
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any]) -> None:
    term, frames = a_term(**options), a_world(4, frames=4)
    require_equal(term, frames, lambda: slow_loss(term, frames))


def test_the_released_square_weighs_by_the_square_over_the_plain_sum() -> None:
    frames = [a_frame(1)]
    plain = parts_of(a_term(quality="score"), frames)["t.box"]
    squared = parts_of(a_term(quality="score", released_square=True), frames)["t.box"]
    assert torch.equal(plain.normaliser, squared.normaliser)
    assert (squared.numerator < plain.numerator).all()


def test_a_student_that_says_what_the_teacher_says_has_no_box_loss_and_the_least_class_loss() -> None:
    frame = a_frame(2)
    frame.said_boxes[2, 7:9] = 1.0
    term = a_term(quality="none")
    objects = teacher_set(said_of([frame]), batch_of([frame]), term.options, GRID)
    for layer in range(LAYERS):
        frame.answer["query_boxes"].data[layer, [5, 1, 3, 0]] = objects.codes
        frame.answer["query_logits"].data[layer] = -12.0
        frame.answer["query_logits"].data[layer, [5, 1, 3, 0]] = torch.logit(objects.probs.clamp(1e-6, 1 - 1e-6))
    parts = parts_of(term, [frame])
    assert parts["t.box"].value().item() == pytest.approx(0, abs=1e-9)
    perfect = parts["t.class"].value().item()
    frame.answer["query_logits"].data[:, 6, 0] = 1.0  # an unmatched query that says something
    assert parts_of(term, [frame])["t.class"].value().item() > perfect + 0.3
    frame.answer["query_boxes"].data[0, 5, 0] += 0.5
    assert parts_of(term, [frame])["t.box"].value().item() == pytest.approx(0.25 * 0.5 / 4, rel=1e-6)


def test_unlabelled_frames_are_distilled_by_the_score() -> None:
    frame = a_frame(3)
    labelled, unlabelled = parts_of(a_term(), [frame]), parts_of(a_term(), [dataclasses.replace(frame, labelled=False)])
    score = parts_of(a_term(quality="score"), [frame])
    assert torch.equal(unlabelled["t.box"].numerator, score["t.box"].numerator)
    assert not torch.allclose(unlabelled["t.box"].numerator, labelled["t.box"].numerator)


def test_a_weight_of_zero_leaves_a_part_out_and_needs_follow_the_options() -> None:
    assert set(parts_of(a_term(class_weight=0.0), [a_frame(1)])) == {"t.box"}
    assert needs_of(BevDistillSparseOptions(objects="queries")).teacher_fields == ("queries(top=50)",)
    assert needs_of(BevDistillSparseOptions()).teacher_fields == ("boxes", "scores", "labels")
    assert needs_of(BevDistillSparseOptions()).student == ("queries",)


def test_a_student_of_heatmaps_is_refused_by_name_before_training() -> None:
    model: Any = build_detector(TINY_STUDENT)
    none: Any = None
    with pytest.raises(ConfigError, match=r"term kd: reads the student's queries, .*lift-splat.*bevdistill_instance"):
        BevDistillSparse.build("kd", 1.0, BevDistillSparseOptions(), model, none, [])
    with pytest.raises(ConfigError, match="term kd"):
        build_set2set("kd", 1.0, Set2SetOptions(), model, none, [])
    answer = dataclasses.replace(output_of([a_frame(1)]), queries=None)
    with pytest.raises(ConfigError, match=r"term t: reads the student's queries, its answer has none"):
        a_term()(answer, batch_of([a_frame(1)]), said_of([a_frame(1)]))


def test_set2set_equals_the_slow_formula() -> None:
    """Of its own defaults, written out."""
    frames = a_world(4, frames=4)
    term = build_set2set("t", 1.0, Set2SetOptions(top=3), a_student(), *2 * [None])  # type: ignore[list-item]
    every_object_alike = a_term(
        objects="queries", quality="none", top=3, layers="all", background=1.0,
        box_weight=0.25, class_weight=1.0, velocity_weight=0.2, released_square=False,
    )  # fmt: skip
    require_equal(term, frames, lambda: slow_loss(every_object_alike, frames))


def test_set2set_is_the_sparse_term_with_every_object_trusted_alike() -> None:
    frames = a_world(4)
    term = build_set2set("t", 1.0, Set2SetOptions(top=3), a_student(), *2 * [None])  # type: ignore[list-item]
    wanted = a_term(objects="queries", quality="none", top=3)
    for name, part in parts_of(wanted, frames).items():
        assert torch.equal(parts_of(term, frames)[name].numerator, part.numerator)
