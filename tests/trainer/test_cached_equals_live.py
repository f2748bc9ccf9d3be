"""Cached equals live: of every term, what a real store gives is what the same teacher in the loop gives.

The teacher runs on un-augmented clouds or pictures, the student under a BEV augmentation A and read at A p. The bounds
are the stores' rounding: float16 keeps a value to 2^-11 of itself, u8 to half a step of 1/255 of its channel's range in
the frame.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.store import FrameStore, TeacherStore
from models.build import build_detector, save_weights
from models.detector import Batch, DetectorOutput, total_of
from models.pictures import ImageAugment
from pipeline.teacher import TeacherOptions, cache_teacher
from tests.trainer.live_said import live_said
from tests.trainer.synthetic import TINY_HEAD, TINY_STUDENT, TINY_TEACHER, write_frames
from trainer.augment import BevAugment, FrameAugment
from trainer.batches import BatchBuilder, Needs
from trainer.said import TeacherSaid
from trainer.said_reader import SaidReader, Wanted
from trainer.terms import RELABELS, TERMS, parse_options, require_served

SMALL_TRANSFORMER = {"decoder_layers": 2, "queries": 9, "hidden": 16}
QUERY_STUDENT: dict[str, Any] = {
    "preset": "bevformer-demo",
    "queue": 1,
    "image_size": [64, 32],
    "channels": 16,
    "bev": {"cell_m": 6.4},
    "backbone": {"layers": [1, 1, 1, 1], "base_width": 8},
    "encoder": {"layers": 1, "hidden": 16},
    "transformer": SMALL_TRANSFORMER,
    "heat": {"channels": 8, "hidden": 8},
}
QUERY_TEACHER: dict[str, Any] = {
    "preset": "object-dgcnn-tiny",
    "pillar_channels": 8,
    "pillars": {"cell_m": 1.6},
    "backbone": {"layers": [1, 1, 1], "filters": [8, 8, 16], "channels": 16},
    "transformer": {**SMALL_TRANSFORMER, "queries": 12, "neighbours": 4},
    "heat": {"channels": 8, "hidden": 8},
}
STUDENTS = {"heat": TINY_STUDENT, "queries": QUERY_STUDENT, "lidar": TINY_TEACHER}
SPARSE = "gaussian(overlap=0.7)+gaussian*confident(threshold=0)+confident+footprint(by_size=1)+random(cells=60)+lidar"
FIELDS = "logits,regression,samples,samples(points=7x7),samples(points=8x8,enlarge=1.6)"
MORE = f"{FIELDS},samples(boxes=teacher,points=1x1)"
CELLS = ("float16", "u8")  # further fields are float16 in both


@dataclass(frozen=True)
class Case:
    """A term, or a change of labels, under options; teacher: the store it reads; student: the kind that learns."""

    term: str
    teacher: str = "sparse"
    student: str = "heat"
    options: str = "{}"

    def __str__(self) -> str:
        return f"{self.term}-{self.teacher}-{self.student}"


SCORE = '{"quality": "score"}'  # a teacher that has learnt nothing overlaps with no annotated box
CASES = [
    *(
        Case(term)
        for term in (
            "bevdistill_dense", "fitnet", "monodistill", "uvtr",
            "sparsekd_logits", "fg", "mimic", "gid_features", "lgkd_feature",
            "lgkd_response", "distillbev", "unidistill_feature", "unidistill_relation", "unidistill_response",
            "tigbev_inner", "crkd_response",
        )
    ),
    Case("sparsekd_regression", student="lidar"),
    Case("kd_logits", "dense"),
    Case("fitnet", "dense", options='{"mask": "none"}'),
    Case("gid_logits", options='{"iou": 0.02, "student_score": 0.0, "same_class": false}'),
    Case("sparsekd_label", options='{"threshold": 0.2}'),
    Case("bevdistill_instance", options=SCORE),
    Case("bevdistill_contrast", options=SCORE),
    Case(
        "bevdistill_contrast", student="queries",
        options='{"student": "embeddings", "critic": "crd", "embedding_channels": 16, "quality": "score"}',
    ),
    Case("bevdistill_sparse", student="queries", options=SCORE),
    Case("bevdistill_sparse", "queries", "queries", '{"objects": "queries", "quality": "score"}'),
    Case("set2set", "queries", "queries"),
    Case("bevdistill_heat", "queries"),
    Case("uvtr", "queries", "queries", '{"places": "queries"}'),
    Case("bevdistill_contrast", "queries", "queries", '{"places": "queries"}'),
    Case("lgkd_depth", "camera"),
    # by exact zeros this term tells the cells that the teacher's cameras never reached: u8 keeps them
    Case("lgkd_feature", "camera", options='{"level": "splat", "student_level": "splat"}'),
]  # fmt: skip
AUGMENTS = {
    "still": BevAugment(),
    "moved": BevAugment(rotation_rad=0.3, scale=1.04, flip_x=True),
}


@dataclass(frozen=True)
class World:
    """frames; teachers by (store's kind, dtype); weights files by kind."""

    frames: FrameStore
    teachers: dict[tuple[str, str], TeacherStore]
    weights: dict[str, Path]


def as_if_it_had_learnt(model: Any) -> None:
    """Sure of some classes and not of others; boxes as large as cars."""
    for name, tensor in model.named_parameters():
        if name.endswith("heatmap.3.bias"):
            tensor.data += torch.randn_like(tensor)
        if name.endswith("dim.3.bias"):
            tensor.data += 1.2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("live")
    write_frames(root, frames=2, boxes=(6, 4))
    # the teacher's classes stand in another order than the stores' ids
    head = {**TINY_HEAD, "tasks": [DETECTION_CLASSES[::-1]]}
    made = {"sparse": {**TINY_TEACHER, "head": head}, "queries": QUERY_TEACHER, "camera": TINY_STUDENT}
    asked = {
        "sparse": (SPARSE, MORE),
        "dense": ("gaussian+dense", FIELDS),
        "queries": ("gaussian+dense", "queries,adaptor"),
        "camera": ("gaussian+lidar", "level(name=splat),depth"),
    }
    weights, teachers = {}, {}
    for seed, (kind, config) in enumerate(made.items()):
        torch.manual_seed(seed)
        model: Any = build_detector(config)
        as_if_it_had_learnt(model)
        weights[kind] = root / f"{kind}.safetensors"
        save_weights(model, weights[kind])
    weights["dense"] = weights["sparse"]
    for kind, (coverage, fields) in asked.items():
        for dtype in CELLS:
            options = TeacherOptions(coverage, fields=fields, dtype=dtype, batch=2)
            name = f"{kind}-{dtype}"
            cache_teacher(root, name, teacher="own", checkpoint=weights[kind], options=options, workers=1)
            teachers[kind, dtype] = TeacherStore(root / "teachers" / name)
    return World(FrameStore(root / "frames"), teachers, weights)


@pytest.fixture(scope="module")
def answers(world: World) -> dict[tuple[str, str], tuple[Any, Batch, DetectorOutput]]:
    """By student and augmentation: the student, its batch, and its answer, cut off from its weights."""
    out = {}
    for kind, config in STUDENTS.items():
        torch.manual_seed(9)
        model: Any = build_detector(config).train()
        as_if_it_had_learnt(model)
        lidar = model.modality == "lidar"
        needs = Needs(points=lidar, image_size=None if lidar else (64, 32), depth=not lidar, labels=True)
        builder = BatchBuilder(world.frames, needs)
        for name, bev in AUGMENTS.items():
            images = (ImageAugment(resize=1.1, flip=name == "moved"),) * 6
            batch, _ = builder.build([0, 1], [FrameAugment(bev, images)] * 2)
            with torch.no_grad():
                out[kind, name] = model, batch, model(batch)
    return out


def kept_boxes(frames: FrameStore, rows: list[int]) -> list[np.ndarray]:
    return [frames.read(row, "gt_ids")[:, 2:4].sum(axis=1) > 0 for row in rows]


def leaves_of(output: DetectorOutput) -> tuple[DetectorOutput, dict[str, Tensor]]:
    """The answer with every map as a leaf of its own, and those by name."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Tensor) -> Tensor:
        leaves[name] = value.detach().clone().requires_grad_()
        return leaves[name]

    queries = output.queries
    fresh = DetectorOutput(
        leaf("bev", output.bev),
        [{name: leaf(f"{i}.{name}", maps[name]) for name in maps} for i, maps in enumerate(output.heads)],
        None if output.depth_logits is None else leaf("depth_logits", output.depth_logits),
        {name: leaf(name, values) for name, values in output.levels.items()},
        queries
        and replace(
            queries,
            logits=leaf("logits", queries.logits),
            boxes=leaf("boxes", queries.boxes),
            embeddings=leaf("embeddings", queries.embeddings),
        ),
    )
    return fresh, leaves


def value_and_gradient(term: Any, answer: DetectorOutput, batch: Batch, said: TeacherSaid) -> tuple[float, Tensor]:
    """The sum of a term's parts and its gradient by all of the student's answer and the term's own parameters."""
    output, leaves = leaves_of(answer)
    loss = torch.stack(list(total_of(term(output, batch, said)).values())).sum()
    wanted = [*leaves.values(), *term.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    flat = [(torch.zeros_like(w) if g is None else g).flatten().double() for w, g in zip(wanted, found, strict=True)]
    return loss.item(), torch.cat(flat)


def options_of(case: Case) -> Any:
    return parse_options(case.term, json.loads(case.options), "test")


def both(case: Case, world: World, dtype: str, needs: Any, student: Any) -> tuple[TeacherSaid, TeacherSaid]:
    """What the store says, read for these needs, and what the teacher says now."""
    store, rows = world.teachers[case.teacher, dtype], [0, 1]
    require_served(case.term, needs, store, student)
    kept = kept_boxes(world.frames, rows)
    cached = SaidReader(store, world.frames, Wanted.by([needs], store)).read(rows, rows, kept)
    return cached, live_said(world.weights[case.teacher], store, world.frames, rows, kept)


# relative: of the loss, of the gradient's length. Where a loss is of absolute values, a sign near 0 may turn
BOUNDS = {"float16": (5e-4, 5e-3), "u8": (5e-3, 3e-2)}


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(case, dtype, id=f"{case}-{dtype}") for case in CASES for dtype in CELLS]
)
def test_a_stores_loss_and_gradient_are_those_of_the_teacher_in_the_loop(
    case: Case, dtype: str, world: World, answers: Any
) -> None:
    for augment in AUGMENTS:
        student, batch, answer = answers[case.student, augment]
        options = options_of(case)
        if case.term in RELABELS:
            relabel = RELABELS[case.term].build(case.term, options)
            cached, live = both(case, world, dtype, relabel.needs, student)
            one, other = relabel(batch, cached), relabel(batch, live)
            assert one.counts == other.counts and one.counts[f"{case.term}/kept"] > 0
            for name in ("boxes", "labels"):
                for mine, theirs in zip(getattr(one.batch, name), getattr(other.batch, name), strict=True):
                    assert torch.allclose(mine, theirs, equal_nan=True, atol=1e-4)
            continue
        kind = TERMS[case.term]
        torch.manual_seed(3)
        term = kind.build(case.term, 1.0, options, student, world.teachers[case.teacher, dtype], [0, 1]).train()
        cached, live = both(case, world, dtype, kind.needs(options), student)
        state = {name: tensor.clone() for name, tensor in term.state_dict().items()}
        one = value_and_gradient(term, answer, batch, cached)
        term.load_state_dict(state)  # running statistics of norms
        other = value_and_gradient(term, answer, batch, live)
        loss, gradient = abs(one[0] - other[0]) / abs(other[0]), float((one[1] - other[1]).norm() / other[1].norm())
        assert math.isfinite(loss) and other[0] > 1e-6 and float(other[1].norm()) > 0
        assert loss < BOUNDS[dtype][0] and gradient < BOUNDS[dtype][1], f"{augment}: {loss:.1e}, {gradient:.1e}"


def test_every_term_of_the_registry_is_compared() -> None:
    assert {*TERMS, *RELABELS} <= {case.term for case in CASES}
