"""Which places the contrastive term compares, and what it reads there: against loops."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cache.errors import ConfigError
from models.build import build_detector
from tests.trainer.synthetic import TINY_STUDENT
from tests.trainer.terms.bevdistill_builders import (
    EMBEDDING,
    GRID,
    STUDENT,
    TEACHER,
    Frame,
    a_frame,
    a_student,
    a_world,
    batch_of,
    bilinear,
    centre_of,
    loss_of,
    moved,
    on_grid,
    parts_of,
    require_equal,
    said_of,
)
from tests.trainer.terms.test_bevdistill_sparse import best_pairs
from tests.trainer.test_cached_equals_live import QUERY_STUDENT
from trainer.augment import BevAugment
from trainer.terms.bevdistill_contrast import (
    BevDistillContrast,
    BevDistillContrastOptions,
    heaviest,
    needs_of,
)
from trainer.terms.teacher_set import quality_of, teacher_set

Place = tuple[Tensor, Tensor, tuple[float, float], float]  # teacher, student, x and y, weight


def a_term(**options: Any) -> BevDistillContrast:
    torch.manual_seed(2)
    parsed = BevDistillContrastOptions(**{"width": 6, "embedding_channels": EMBEDDING, "tau": 0.3, **options})
    channels = EMBEDDING if parsed.student == "embeddings" else STUDENT
    return BevDistillContrast("t", 1.0, parsed, channels, TEACHER, a_student()).double()


def back(augment: BevAugment, x: float, y: float) -> tuple[float, float]:
    out = np.linalg.inv(augment.matrix()) @ [x, y, 0.0, 1.0]
    return float(out[0]), float(out[1])


def at_boxes(term: BevDistillContrast, frames: list[Frame], b: int) -> list[Place]:
    options, frame = term.options, frames[b]
    objects = teacher_set(said_of(frames), batch_of(frames), options, GRID)
    quality = quality_of(objects, batch_of(frames), options)
    mine = (objects.sample == b).nonzero().flatten().tolist()
    places: list[Place] = []
    pairs: dict[int, int] = {}
    if options.student == "embeddings" and mine:
        last = frame.answer["query_logits"][-1], frame.answer["query_boxes"][-1]
        pairs = best_pairs(*last, objects.probs[mine], objects.codes[mine])
    for n, i in enumerate(mine):
        x, y = objects.codes[i, :2].tolist()
        values = torch.from_numpy(frame.samples[int(objects.rank[i]), 0])
        if options.teacher == "cells":
            values = bilinear(torch.from_numpy(frame.teacher_map), *back(frame.augment, x, y))
        student = frame.answer["embeddings"][pairs[n]] if pairs else bilinear(frame.answer["bev"], x, y)
        places.append((values, student, (x, y), float(quality[i])))
    return places


def at_cells(term: BevDistillContrast, frames: list[Frame], b: int) -> list[Place]:
    frame = frames[b]
    found = []
    for k, index in enumerate(frame.cells.index):
        x, y = moved(frame.augment, *centre_of(index))
        if frame.cells.weights[k, 0] > 0 and on_grid(x, y):
            place = torch.from_numpy(frame.cells.values[k]), bilinear(frame.answer["bev"], x, y), (x, y), 1.0
            found.append((-float(frame.cells.weights[k, 0]), k, place))
    found.sort(key=lambda entry: entry[:2])
    return [place for _, _, place in found[: term.options.limit or None]]


def at_queries(term: BevDistillContrast, frames: list[Frame], b: int) -> list[Place]:
    frame = frames[b]
    places: list[Place] = []
    boxes = frame.answer["query_boxes"].detach()
    for layer in boxes if term.options.layers == "all" else boxes[-1:]:
        for code in layer:
            x, y = code[:2].tolist()
            there = back(frame.augment, x, y)
            if on_grid(x, y) and on_grid(*there):
                teacher = bilinear(torch.from_numpy(frame.teacher_map), *there)
                places.append((teacher, bilinear(frame.answer["bev"], x, y), (x, y), 1.0))
    return places


def slow_critic(own: Tensor, others: list[Tensor], options: BevDistillContrastOptions) -> Tensor:
    if options.critic == "softmax":
        return -(own / (own + sum(others))).log()
    n = options.noise
    return -(own / (own + n)).log() - sum(((1 - e / (e + n)).log() for e in others), own * 0)


def slow_loss(term: BevDistillContrast, frames: list[Frame], places_of: Callable[..., list[Place]]) -> Tensor:
    options = term.options
    total, mass = torch.zeros((), dtype=torch.float64), 0.0
    for b in range(len(frames)):
        places = places_of(term, frames, b)
        if not places:
            continue
        t = term.of_teacher(torch.stack([place[0] for place in places]))
        s = term.of_student(torch.stack([place[1] for place in places]))
        for i, (_, _, point, weight) in enumerate(places):
            apart = [math.dist(point, other[2]) > options.apart_cells * GRID.cell_m - 1e-5 for other in places]
            others = [j for j, far in enumerate(apart) if far and j != i]
            own, said = (t[i] @ s[i] / options.tau).exp(), [(t[i] @ s[j] / options.tau).exp() for j in others]
            loss = slow_critic(own, said, options)
            if options.symmetric:
                loss = (loss + slow_critic(own, [(t[j] @ s[i] / options.tau).exp() for j in others], options)) / 2
            total = total + weight * loss
            mass += weight
    return total / max(mass, 1.0)


@pytest.mark.parametrize(
    ("options", "places_of"),
    [
        ({}, at_boxes),
        ({"teacher": "cells", "objects": "queries", "quality": "score"}, at_boxes),
        ({"student": "embeddings", "apart_cells": 0.5}, at_boxes),
        ({"places": "cells", "limit": 11}, at_cells),
        ({"places": "queries", "layers": "all", "apart_cells": 0.0}, at_queries),
        ({"places": "queries"}, at_queries),
        ({"student": "embeddings", "critic": "crd", "noise": 0.4}, at_boxes),
        ({"places": "cells", "limit": 5, "symmetric": True}, at_cells),
        ({"critic": "crd", "noise": 0.4, "symmetric": True, "apart_cells": 0.0}, at_boxes),
    ],
    ids=["boxes", "boxes cells", "embeddings", "cells", "queries", "last queries", "crd", "symmetric", "both"],
)
def test_values_and_gradients_equal_the_slow_formula(
    options: dict[str, Any], places_of: Callable[..., list[Place]]
) -> None:
    term, frames = a_term(**options), a_world(2)
    require_equal(term, frames, lambda: slow_loss(term, frames, places_of))


def test_boxes_without_a_stored_sample_are_left_out() -> None:
    frame = a_frame(5)
    all_of_them = parts_of(a_term(quality="none"), [frame])["t"].normaliser.item()
    fewer = dataclasses.replace(frame, samples=frame.samples[:3], inside=frame.inside[:3])
    assert parts_of(a_term(quality="none"), [fewer])["t"].normaliser.item() == all_of_them - 1
    fewer.inside[1] = False
    assert parts_of(a_term(quality="none"), [fewer])["t"].normaliser.item() == all_of_them - 2
    none = dataclasses.replace(frame, samples=frame.samples[:0], inside=frame.inside[:0])
    assert parts_of(a_term(quality="none"), [none])["t"].normaliser.item() == 0


def test_duplicates_of_an_object_are_no_negatives_of_it() -> None:
    frame = a_frame(5, objects=2)
    frame.said_boxes[1, :2] = frame.said_boxes[0, :2] + 0.3
    assert loss_of(a_term(apart_cells=1.0), [frame]).item() == pytest.approx(0, abs=1e-12)
    assert loss_of(a_term(apart_cells=0.0, quality="none"), [frame]).item() > 0.1


def test_the_heaviest_places_of_each_frame_are_kept() -> None:
    weights, samples = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.2, 1.0]), torch.tensor([0, 0, 0, 0, 2, 2])
    assert heaviest(weights, samples, 2).tolist() == [1, 2, 5, 4]
    assert heaviest(weights, samples, 0).tolist() == [1, 2, 3, 0, 5, 4]
    assert heaviest(weights[:0], samples[:0], 3).tolist() == []


def test_needs_follow_the_places() -> None:
    def needs(**options: Any) -> Any:
        return needs_of(BevDistillContrastOptions(**options))

    assert "samples(boxes=teacher,points=1x1,limit=50)" in needs().teacher_fields
    assert not needs().every_cell
    assert needs(places="cells", selector="lidar").selectors == ("lidar",)
    assert needs(places="queries").every_cell
    assert needs(places="queries").student == ("bev", "queries")
    assert needs(teacher="cells").every_cell
    assert needs(student="embeddings").student == ("queries",)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValidationError, match=r'embeddings" goes with places = "boxes"'):
        BevDistillContrastOptions(student="embeddings", places="cells")
    with pytest.raises(ValidationError, match=r'objects = "queries" set\s+teacher = "cells"'):
        BevDistillContrastOptions(objects="queries")
    model: Any = build_detector(TINY_STUDENT)
    none: Any = None
    for options in ({"places": "queries"}, {"student": "embeddings"}):
        with pytest.raises(ConfigError, match="term kd: reads the student's queries"):
            BevDistillContrast.build("kd", 1.0, BevDistillContrastOptions(**options), model, none, [])  # type: ignore[arg-type]


def test_embeddings_of_another_width_are_refused_before_training_and_at_the_first_answer() -> None:
    student: Any = build_detector(QUERY_STUDENT)
    options, teacher = BevDistillContrastOptions(student="embeddings"), SimpleNamespace(bev=SimpleNamespace(channels=4))
    with pytest.raises(ConfigError, match=r"embedding_channels is 256, .* have 16; set embedding_channels = 16"):
        BevDistillContrast.build("t", 1.0, options, student, teacher, [])  # type: ignore[arg-type]
    fitting = options.model_copy(update={"embedding_channels": 16})
    BevDistillContrast.build("t", 1.0, fitting, student, teacher, [])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"set embedding_channels = {EMBEDDING}"):
        parts_of(a_term(student="embeddings", embedding_channels=EMBEDDING + 1), [a_frame(5)])


def test_queries_of_other_classes_are_refused() -> None:
    frame = a_frame(5)
    frame.answer["query_logits"] = frame.answer["query_logits"][..., :3]
    with pytest.raises(ConfigError, match="queries say 3 classes each, expected 10"):
        parts_of(a_term(student="embeddings"), [frame])
