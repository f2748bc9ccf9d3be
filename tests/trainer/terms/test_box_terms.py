"""UniDistill's feature and relation terms and TiG-BEV's: what maps say at points of annotated boxes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.box_points import box_points as stored_points
from cache.errors import ConfigError, StoreError
from tests.trainer.terms.lgkd_builders import (
    EMPTY,
    FRAMES,
    GRID,
    IDENTITY,
    TEACHER,
    World,
    a_model,
    a_store,
    batches_add_up,
    falls,
    gradients_are_right,
    nothing_gives_zero,
)
from tests.trainer.terms.slow_pieces import AUGMENTS, gradients, moved_point, on_grid, slow_at, total
from trainer.augment import BevAugment
from trainer.said import TeacherSaid
from trainer.terms.box_samples import box_points, samples_item, stored_samples
from trainer.terms.tigbev import TigBevInner, TigBevOptions
from trainer.terms.unidistill import PointOptions, UniDistillFeature, UniDistillFeatureOptions, UniDistillRelation

KINDS: dict[str, Any] = {
    "feature": (UniDistillFeature, UniDistillFeatureOptions()),
    "relation": (UniDistillRelation, PointOptions()),
    "tigbev": (TigBevInner, TigBevOptions(points="3x3", channel_weight=2.0, point_weight=3.0)),
}


def a_term(world: World, kind: str) -> Any:
    torch.manual_seed(1)
    made, options = KINDS[kind]
    return made.build("boxes", 0.7, options, a_model(), a_store(world), range(FRAMES)).double()


def slow_cosine(a: Tensor, b: Tensor) -> Tensor:
    def length(v: Tensor) -> Tensor:
        return (sum(x * x for x in v) + 1e-6) ** 0.5

    return sum(x * y for x, y in zip(a, b, strict=True)) / (length(a) * length(b))


def slow_points(world: World, b: int, n: int, augment: BevAugment, kind: str) -> list[tuple[float, float]]:
    """The points of an un-augmented box, each moved: no mirror to think of."""
    x, y, _, length, width, _, yaw = world.boxes[b][n, :7].tolist()
    steps = [-0.5, 0, 0.5] if kind != "tigbev" else [-1.6 / 3, 0, 1.6 / 3]
    out = []
    for along in steps:
        for across in steps:
            dx, dy = along * length, across * width
            out.append(
                moved_point(
                    x + dx * math.cos(yaw) - dy * math.sin(yaw), y + dx * math.sin(yaw) + dy * math.cos(yaw), augment
                )
            )
    return out


def slow_loss(term: Any, kind: str, world: World, augments: list[BevAugment]) -> Tensor:
    """Box by box, point by point, channel by channel."""
    values, boxes = world.bev.sum() * 0, 0
    for b in range(FRAMES):
        for n in range(len(world.boxes[b])):
            held = []
            for p, place in enumerate(slow_points(world, b, n, augments[b], kind)):
                if world.inside[b][n, p] and on_grid(*place, GRID):
                    student = slow_at(world.bev[b], *place, GRID)
                    if kind != "relation":
                        student = term.adaptor.weight[:, :, 0, 0] @ student + term.adaptor.bias
                    held.append((student, world.samples[b][n, p]))
            if not held:
                continue
            boxes += 1
            if kind == "feature":
                each = [(s[c] - t[c]).abs() for s, t in held for c in range(TEACHER)]
                values = values + sum(each) / len(each)
                continue
            pairs = [slow_cosine(s, q) - slow_cosine(t, u) for s, t in held for q, u in held]
            if kind == "relation":
                values = values + sum(d.abs() for d in pairs) / len(pairs)
                continue
            s, t = (torch.stack([pair[i] for pair in held]) for i in (0, 1))
            channels = [
                slow_cosine(s[:, c], s[:, d]) - slow_cosine(t[:, c], t[:, d])
                for c in range(TEACHER)
                for d in range(TEACHER)
            ]
            values = (
                values + 2 * sum(d * d for d in channels) / len(channels) + 3 * sum(d * d for d in pairs) / len(pairs)
            )
    return 0.7 * values / max(boxes, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_slow_formula(kind: str) -> None:
    world = World(1)
    term = a_term(world, kind)
    found, wanted = total(world.parts(term, range(FRAMES), AUGMENTS)), slow_loss(term, kind, world, AUGMENTS)
    # the batch's boxes went through float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    tensors = [world.bev, *term.parameters()]
    for one, other in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_world_has_the_same_loss(kind: str) -> None:
    """Left and right change places in the box, not the points."""
    world, flipped = World(2), World(2)
    term = a_term(world, kind)
    flipped.bev = world.bev.flip(2)
    plain = total(world.parts(term, range(FRAMES), IDENTITY))
    mirrored = total(flipped.parts(term, range(FRAMES), [BevAugment(flip_y=True)] * FRAMES))
    assert plain.item() == pytest.approx(mirrored.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_batches_and_frames_without_boxes(kind: str) -> None:
    world = World(3)
    term = a_term(world, kind)
    gradients_are_right(world, term, [world.bev, *term.parameters()])
    batches_add_up(world, term)
    nothing_gives_zero(world, term, EMPTY)


@pytest.mark.parametrize("kind", KINDS)
def test_optimised_alone_it_falls(kind: str) -> None:
    world = World(4)
    falls(world, a_term(world, kind), [world.bev], to=0.5)


def test_frames_without_annotations_are_left_out() -> None:
    world = World(5)
    term, said = a_term(world, "feature"), world.said(range(FRAMES))
    batch = world.batch(range(FRAMES), AUGMENTS)
    object.__setattr__(batch, "labelled", torch.tensor([True, False, True, False]))
    part = term(world.output(range(FRAMES)), batch, said)["boxes"]
    assert part.normaliser.item() == len(world.boxes[0])
    assert part.numerator.item() == pytest.approx(world.parts(term, [0], AUGMENTS)["boxes"].numerator.item(), rel=1e-12)


def test_a_point_that_no_camera_reaches_sends_no_gradient_of_any_size() -> None:
    world = World(6)
    with torch.no_grad():
        world.bev.zero_()
    value = total(world.parts(a_term(world, "relation"), range(FRAMES), AUGMENTS))
    assert gradients(value, [world.bev])[0].abs().max() < 1e3


def test_rows_that_are_not_the_batchs_boxes_are_refused() -> None:
    world = World(7)
    batch = world.batch([0], IDENTITY)
    fewer = dataclasses.replace(batch, boxes=[batch.boxes[0][1:]])
    with pytest.raises(StoreError, match="frame 0 of the batch has 2 boxes, the store sampled 3"):
        a_term(world, "feature")(world.output([0]), fewer, world.said([0]))
    options = UniDistillFeatureOptions(adaptor="none")
    with pytest.raises(ConfigError, match="set adaptor"):
        UniDistillFeature.build("boxes", 1.0, options, a_model(), a_store(world), [0])


def test_items_are_named_as_stores_name_them() -> None:
    assert samples_item() == "samples"
    assert samples_item(points="24x24", level="neck", enlarge=1.6) == "samples(points=24x24,level=neck,enlarge=1.6)"
    assert samples_item(points="7x7", enlarge=2.0) == "samples(points=7x7,enlarge=2)"
    assert samples_item("teacher", "1x1", limit=50) == "samples(boxes=teacher,points=1x1,limit=50)"


def test_a_store_that_holds_more_boxes_than_asked_for_gives_the_best() -> None:
    values, inside = [torch.rand(5, 1, 2), torch.rand(1, 1, 2)], [torch.ones(5, 1).bool(), torch.ones(1, 1).bool()]
    key = "samples(boxes=teacher,points=1x1)"
    said = TeacherSaid(GRID, samples={"samples": [], key: values}, sample_inside={"samples": [], key: inside})
    found, known = stored_samples(said, "samples(boxes=teacher,points=1x1,limit=3)")
    assert [len(part) for part in found] == [len(part) for part in known] == [3, 1]
    assert torch.equal(found[0], values[0][:3])


def test_points_are_those_of_the_store() -> None:
    rng = np.random.default_rng(4)
    boxes = rng.uniform(0.5, 4, (3, 9))
    for points, enlarge in (("9", 1.0), ("2x3", 1.6)):
        found = box_points(torch.from_numpy(boxes), points, enlarge)
        assert np.allclose(found.numpy(), stored_points(boxes, points, enlarge), rtol=1e-12)
