"""Claims about SparseKD's logits and plain logit distillation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from models.detector import DetectorOutput
from tests.trainer.terms.slow_pieces import AUGMENTS, slow_bilinear
from tests.trainer.terms.sparsekd_builders import (
    COARSE,
    NARROW,
    SELECTORS,
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
from trainer.augment import BevAugment
from trainer.terms.sparsekd_logits import KdLogitsOptions, SparseKdLogits, SparseKdLogitsOptions, needs_of

PIVOTAL = ("gaussian*confident",)


def a_term(world: World, **options: Any) -> SparseKdLogits:
    given = {"selectors": PIVOTAL, **options}
    return SparseKdLogits("kd", 3.0, SparseKdLogitsOptions(**given), a_student(world.student_grid))


def slow(term: SparseKdLogits, world: World) -> Tensor:
    """Cell by cell, head by head and class by class, from the dense maps."""
    options, heads = term.options, len(STUDENT_GROUPS)
    total = torch.zeros((), dtype=torch.float64)
    for group, names in enumerate(STUDENT_GROUPS):
        text = options.selectors[group if len(options.selectors) > 1 else 0]
        numerator, mass = torch.zeros((), dtype=torch.float64), 0.0
        for b in range(world.frames):
            student = 1 / (1 + torch.exp(-world.student[f"heatmap{group}"][b]))
            for k in range(world.grid.height * world.grid.width):
                row, col = divmod(k, world.grid.width)
                w = float(world.weights[b, SELECTORS.index(text), row, col])
                place = world.slow_row_column(b, *world.centre(k))
                if w == 0 or place is None:
                    continue
                heat = [1 / (1 + math.exp(-world.logits[b, DETECTION_CLASSES.index(n), row, col])) for n in names]
                if options.group_confidence:
                    w *= max(heat)
                found = slow_bilinear(student, *place)
                for c in range(len(names)):
                    d = abs(found[c] - heat[c])
                    numerator = numerator + w * (d * d if options.distance == "squared" else 0.5 * d * d)
                mass += w
        total = total + numerator / max(mass, 1.0)
    return term.weight / heads * total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distance": "smooth_l1"},
        {"selectors": ("gaussian",), "group_confidence": True},
        {"selectors": ("dense", "gaussian")},
    ],
)
@pytest.mark.parametrize("grid", [None, COARSE, NARROW])
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any], grid: Any) -> None:
    world = World(1) if grid is None else World(1, student_grid=grid)
    require_reference(a_term(world, **options), world, slow)


def test_kd_logits_equal_the_slow_formula() -> None:
    """Of its own defaults: every cell alike, squared."""
    world = World(1)
    term = SparseKdLogits("kd", 3.0, KdLogitsOptions(), a_student(world.student_grid))
    plain = a_term(world, selectors=("dense",), group_confidence=False, distance="squared")
    require_reference(term, world, lambda _, world: slow(plain, world))


def test_without_augmentation_it_is_the_released_loss_on_dense_maps() -> None:
    world = World(2, augments=[BevAugment()] * 4)
    heads = []
    for group, names in enumerate(STUDENT_GROUPS):
        ids = [DETECTION_CLASSES.index(name) for name in names]
        error = (world.student[f"heatmap{group}"].sigmoid() - torch.from_numpy(world.logits[:, ids]).sigmoid()) ** 2
        weight = torch.from_numpy(world.weights[:, :1]).double()
        heads.append((weight * error).sum() / weight.sum())
    assert value_of(a_term(world), world).item() == pytest.approx(3.0 * torch.stack(heads).mean().item(), rel=1e-9)


def test_a_coarser_student_read_at_the_teachers_centres_is_the_student_resized_up() -> None:
    """Equal ranges, no augmentation: the released bilinear resize, align_corners False, at every cell."""
    world = World(3, student_grid=COARSE, augments=[BevAugment()] * 4)
    world.weights[:, 2] = 1
    resized = [
        F.interpolate(world.student[f"heatmap{g}"].sigmoid(), world.grid.shape, mode="bilinear", align_corners=False)
        for g in range(2)
    ]
    wanted = 0.0
    for student, names in zip(resized, STUDENT_GROUPS, strict=True):
        ids = [DETECTION_CLASSES.index(name) for name in names]
        error = (student - torch.from_numpy(world.logits[:, ids]).sigmoid()) ** 2
        wanted += error.sum(dim=1).mean().item() / 2
    options = KdLogitsOptions()
    term = SparseKdLogits("kd", 1.0, options, a_student(COARSE))
    assert value_of(term, world).item() == pytest.approx(wanted, rel=1e-9)


def test_a_student_that_sees_less_is_not_stretched_over_the_teachers_range() -> None:
    """Where ranges differ resizing would compare places metres apart; cells off the student's map are left out."""
    world = World(4, student_grid=NARROW, augments=[BevAugment()] * 4)
    part = a_term(world, selectors=("dense",))(world.output(), world.batch(), world.said())["kd"]
    centres = world.grid.centres()
    on = (abs(centres[..., 0]) < 6.4) & (centres[..., 1] < 4.8)
    assert part.normaliser[0].item() == world.weights[:, 2, on].sum() < world.weights[:, 2].sum()


def test_mirroring_world_and_student_together_leaves_the_loss_as_it_was() -> None:
    plain = World(5, augments=[BevAugment()] * 4)
    mirrored = World(5, augments=[BevAugment(flip_x=True)] * 4)
    mirrored.student = {name: values.flip(3) for name, values in plain.student.items()}
    term = a_term(plain)
    assert value_of(term, plain).item() == pytest.approx(value_of(term, mirrored).item(), rel=1e-12)


def test_the_sigmoid_is_taken_once_of_raw_logits() -> None:
    """A student that says the teacher's logits has no loss; one that says the probabilities has."""
    world = World(6, augments=[BevAugment()] * 4)
    ids = [[DETECTION_CLASSES.index(name) for name in names] for names in STUDENT_GROUPS]
    for group in range(2):
        world.student[f"heatmap{group}"] = torch.from_numpy(world.logits[:, ids[group]])
    assert value_of(a_term(world), world).item() < 1e-25
    for group in range(2):
        world.student[f"heatmap{group}"] = torch.from_numpy(world.logits[:, ids[group]]).sigmoid()
    assert value_of(a_term(world), world).item() > 1e-3


def test_gradients_are_those_of_finite_differences() -> None:
    world = World(7)
    require_gradcheck(a_term(world), world, ["heatmap0", "heatmap1"])


def test_single_frames_sum_to_the_batch() -> None:
    world = World(8)
    require_batch_invariant(a_term(world), world)


def test_frames_without_objects_cells_or_annotations_add_nothing() -> None:
    world = World(9, labelled=(True, True, True, False), empty=(1,))
    term = a_term(world)
    for frame in (1, 2, 3):
        require_nothing(term, world, [frame])
    assert value_of(term, world).item() == pytest.approx(value_of(term, world, [0]).item(), rel=1e-12)


def test_unlabelled_frames_are_served_by_selectors_without_annotations() -> None:
    world = World(10, labelled=(False,) * 4)
    assert value_of(a_term(world, selectors=("dense",)), world).item() > 1e-3


def test_bf16_maps_under_autocast_are_compared_in_fp32() -> None:
    world = World(11)
    heads = [{"heatmap": world.student[f"heatmap{g}"].detach().to(torch.bfloat16)} for g in range(2)]
    output = DetectorOutput(world.student["bev"], heads)
    said = world.said()
    half = dataclasses.replace(said, logits=said.logits.half())  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        part = a_term(world)(output, world.batch(), half)["kd"]
    exact = DetectorOutput(output.bev, [{"heatmap": maps["heatmap"].double()} for maps in heads])
    wanted = a_term(world)(exact, world.batch(), half)["kd"]
    assert part.numerator.dtype == torch.float32
    assert torch.allclose(part.value().double(), wanted.value(), rtol=1e-5)


def test_optimised_alone_it_falls() -> None:
    world = World(12)
    require_falls(a_term(world), world, share=0.05)


def test_one_selector_for_all_heads_or_one_for_each() -> None:
    world = World(13)
    with pytest.raises(ConfigError, match=r"3 entries, the student has 2 heads"):
        a_term(world, selectors=("gaussian", "dense", "gaussian"))
    assert needs_of(SparseKdLogitsOptions()).selectors == ("gaussian*confident(threshold=0)",)
    assert "logits" in needs_of(KdLogitsOptions()).teacher_fields and KdLogitsOptions().selectors == ("dense",)


def test_a_student_without_heatmaps_is_refused() -> None:
    student = a_student()
    student.heat_classes = ()
    with pytest.raises(ConfigError, match="has no heatmap"):
        SparseKdLogits("kd", 1.0, SparseKdLogitsOptions(), student)


def test_the_world_moves_and_stores_less_than_every_cell() -> None:
    world = World(1)
    assert 0 < sum(len(world.kept(b)) for b in range(4)) < 4 * np.prod(world.grid.shape) * 0.7
    assert [a.matrix().tolist() for a in world.augments] == [a.matrix().tolist() for a in AUGMENTS]
