"""Claims about the baselines Mimic and GID-F."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.coverage import Coverage
from cache.errors import ConfigError, StoreError
from tests.trainer.terms.slow_pieces import slow_bilinear, total
from tests.trainer.terms.sparsekd_builders import (
    CHANNELS,
    COARSE,
    FINE,
    STUDENT_CHANNELS,
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
from trainer.terms.box_features import BoxFeatures, GidFeaturesOptions, MimicOptions, needs_of, samples_of
from trainer.terms.box_samples import box_points

SIDE = 3


def a_term(world: World, relation: bool = False, **options: Any) -> BoxFeatures:
    torch.manual_seed(0)
    kind = GidFeaturesOptions if relation else MimicOptions
    given = kind(points=SIDE, **({"relation_weight": 0.5} if relation else {}), **options)
    return BoxFeatures("mimic", 2.0, given, STUDENT_CHANNELS, CHANNELS, a_student(world.student_grid))


def sampled(world: World, options: MimicOptions) -> World:
    """The world with what a store would hold at its boxes."""
    values, inside = [], []
    for b in range(world.frames):
        boxes = slow_boxes(world, b, options)
        v, i = np.zeros((len(boxes), SIDE**2, CHANNELS)), np.zeros((len(boxes), SIDE**2), bool)
        for n, box in enumerate(boxes):
            for p, (x, y) in enumerate(slow_points(box)):
                c, r = (
                    (x - world.grid.x_min) / world.grid.cell_m - 0.5,
                    (y - world.grid.y_min) / world.grid.cell_m - 0.5,
                )
                if -0.5 <= r < world.grid.height - 0.5 and -0.5 <= c < world.grid.width - 0.5:
                    v[n, p], i[n, p] = slow_bilinear(world.bev[b], r, c), True
        values.append(torch.from_numpy(v))
        inside.append(torch.from_numpy(i))
    if options.boxes == "truth":
        for b in range(world.frames):
            if not world.labelled[b]:
                values[b], inside[b] = values[b][:0], inside[b][:0]
    key = samples_of(options)
    world.samples, world.sample_inside = {key: values}, {key: inside}  # type: ignore[attr-defined]
    original = world.said

    def said(picked: Any = None) -> Any:
        frames = list(range(world.frames)) if picked is None else list(picked)
        out = original(picked)
        out.__dict__["samples"] = {key: [values[b] for b in frames]}
        out.__dict__["sample_inside"] = {key: [inside[b] for b in frames]}
        return out

    world.said = said  # type: ignore[method-assign]
    return world


def slow_boxes(world: World, b: int, options: MimicOptions) -> np.ndarray:
    return world.boxes[b] if options.boxes == "truth" else world.found[b][0]


def slow_points(box: np.ndarray) -> list[tuple[float, float]]:
    """Back to front, and right to left within."""
    out = []
    for i in range(SIDE):
        for j in range(SIDE):
            along, across = ((i + 0.5) / SIDE - 0.5) * box[3], ((j + 0.5) / SIDE - 0.5) * box[4]
            out.append(
                (
                    box[0] + along * math.cos(box[6]) - across * math.sin(box[6]),
                    box[1] + along * math.sin(box[6]) + across * math.cos(box[6]),
                )
            )
    return out


def slow(term: BoxFeatures, world: World) -> Tensor:
    options = term.options
    lifted = term.adaptor(world.student["bev"])
    total, count = torch.zeros((), dtype=torch.float64), 0
    relation, frames = torch.zeros((), dtype=torch.float64), 0
    for b in range(world.frames):
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for n, box in enumerate(slow_boxes(world, b, options)):
            if options.boxes == "teacher" and world.found[b][1][n] < options.min_score:
                continue
            if options.boxes == "truth" and not world.labelled[b]:
                continue
            rows: list[Tensor] = []
            wanted: list[Tensor] = []
            for x, y in slow_points(box):
                c, r = (
                    (x - world.grid.x_min) / world.grid.cell_m - 0.5,
                    (y - world.grid.y_min) / world.grid.cell_m - 0.5,
                )
                place = world.slow_row_column(b, x, y)
                if place is None or not (-0.5 <= r < world.grid.height - 0.5 and -0.5 <= c < world.grid.width - 0.5):
                    continue
                teacher = torch.from_numpy(np.asarray(slow_bilinear(world.bev[b], r, c)))
                total = total + (slow_bilinear(lifted[b], *place) - teacher).square().mean()
                count += 1
                rows.append(slow_bilinear(world.student["bev"][b], *place))
                wanted.append(teacher)
            if len(rows) == SIDE**2:
                mine.append(torch.cat(rows))
                theirs.append(torch.cat(wanted))
        if len(mine) > 1:
            tables = []
            for part in (mine, theirs):
                table = torch.stack([torch.stack([(p - q).square().sum() for q in part]) for p in part])
                tables.append(table / table.mean())
            d = (tables[0] - tables[1]).abs()
            relation = relation + torch.where(d < 1, 0.5 * d * d, d - 0.5).mean()
            frames += 1
    value = term.weight * total / max(count, 1)
    if isinstance(options, GidFeaturesOptions):
        value = value + term.weight * options.relation_weight * relation / max(frames, 1)
    return value


@pytest.mark.parametrize(
    ("relation", "options", "grid"),
    [
        (False, {}, FINE),
        (False, {"boxes": "teacher", "min_score": 0.5}, COARSE),
        (True, {}, FINE),
        (True, {"boxes": "teacher"}, FINE),
    ],
)
def test_values_and_gradients_equal_the_slow_formula(relation: bool, options: dict[str, Any], grid: Any) -> None:
    world = World(41, student_grid=grid)
    term = a_term(world, relation, **options)
    require_reference(term, sampled(world, term.options), slow, rel=1e-5)


def test_cells_serve_as_samples_do_where_the_neighbourhood_is_stored() -> None:
    world = World(42)
    world.weights[:, 2] = 1
    from_cells = a_term(world, source="cells", selector="dense")
    require_reference(from_cells, world, slow, rel=1e-5)
    assert needs_of(from_cells.options).selectors == ("dense",)
    assert needs_of(MimicOptions()).teacher_fields == ("samples(points=7x7)",)
    assert needs_of(MimicOptions(boxes="teacher", limit=50)).teacher_fields[0].endswith("points=7x7,limit=50)")


def test_the_best_boxes_of_a_store_that_holds_more_are_taken() -> None:
    world = World(51)
    everything = sampled(world, MimicOptions(points=SIDE, boxes="teacher", limit=0))
    few = a_term(world, boxes="teacher", min_score=0.0, limit=2)
    part = few.double()(everything.output(), everything.batch(), everything.said())["mimic"]
    assert part.normaliser.item() <= 2 * SIDE**2 * world.frames
    for b in range(world.frames):
        world.found[b] = tuple(values[:2] for values in world.found[b])
    alone = sampled(World(51), few.options)
    alone.found = world.found
    alone = sampled(alone, few.options)
    wanted = few(alone.output(), alone.batch(), alone.said())["mimic"]
    assert part.value().item() == pytest.approx(wanted.value().item(), rel=1e-9) and part.value().item() > 0


def test_points_without_stored_neighbours_are_left_out() -> None:
    world = World(43, augments=[BevAugment()] * 4)
    world.weights[:, 2] = 1
    whole = a_term(world, source="cells", selector="dense").double()(world.output(), world.batch(), world.said())[
        "mimic"
    ]
    world.weights[:, :, :8] = 0
    part = a_term(world, source="cells", selector="dense").double()(world.output(), world.batch(), world.said())[
        "mimic"
    ]
    assert 0 < part.normaliser.item() < whole.normaliser.item()


def test_a_mirrored_box_is_not_read_the_wrong_way_round() -> None:
    """A student of the mirrored world that answers with the mirrored map has the loss of the plain one."""
    plain = sampled(World(44, augments=[BevAugment()] * 4), MimicOptions(points=SIDE))
    mirrored = sampled(World(44, augments=[BevAugment(flip_y=True)] * 4), MimicOptions(points=SIDE))
    mirrored.student = {name: values.flip(2) for name, values in plain.student.items()}
    term = a_term(plain).double()
    assert value_of(term, plain).item() == pytest.approx(value_of(term, mirrored).item(), rel=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    world = sampled(World(45), MimicOptions(points=SIDE))
    require_gradcheck(a_term(world, relation=True), world, ["bev"])


def test_single_frames_sum_to_the_batch() -> None:
    world = sampled(World(46), MimicOptions(points=SIDE))
    require_batch_invariant(a_term(world, relation=True), world)


def test_frames_without_objects_or_annotations_add_nothing() -> None:
    world = sampled(World(47, labelled=(True, True, True, False)), MimicOptions(points=SIDE))
    term = a_term(world, relation=True).double()
    for frame in (2, 3):
        require_nothing(term, world, [frame])
    assert value_of(term, world).item() == pytest.approx(value_of(term, world, [0, 1]).item(), rel=1e-12)
    empty = World(47, empty=(0,))
    require_nothing(a_term(empty, source="cells", selector="dense").double(), empty, [0])


def test_optimised_alone_it_falls() -> None:
    world = sampled(World(48, objects=(5, 4, 0, 5)), MimicOptions(points=SIDE))
    require_falls(a_term(world, relation=True), world, share=0.5)


def test_the_relation_does_not_see_scale_and_is_zero_for_equal_relations() -> None:
    world = sampled(World(49, augments=[BevAugment()] * 4), MimicOptions(points=SIDE))
    term = a_term(world, relation=True).double()
    world.student["bev"] = 3 * torch.from_numpy(world.bev).requires_grad_()
    parts = BoxFeatures("mimic", 1.0, term.options, CHANNELS, CHANNELS, a_student()).double()(
        world.output(), world.batch(), world.said()
    )
    assert parts["mimic_relation"].value().item() < 1e-20 < total(parts).item()


def test_annotations_that_are_not_those_sampled_are_refused() -> None:
    world = sampled(World(50), MimicOptions(points=SIDE))
    batch = world.batch()
    batch.boxes[0] = batch.boxes[0][1:]
    with pytest.raises(StoreError, match=r"frame 0 of the batch has 3 boxes, the store sampled 4"):
        a_term(world)(world.output(), batch, world.said())


def test_footprints_that_end_too_near_the_boxes_are_refused_with_the_margin() -> None:
    coverage = Coverage.parse("footprint(margin=0.5)", FINE)
    store: Any = SimpleNamespace(coverage=coverage, grid=FINE, root="store", bev=SimpleNamespace(channels=CHANNELS))
    with pytest.raises(ConfigError, match=r'footprint\(margin=1\.2\)".*samples\(points=7x7\)'):
        BoxFeatures.build("mimic", 1.0, MimicOptions(source="cells"), a_student(), store, [])
    store.coverage = Coverage.parse("footprint(margin=1.2)", FINE)
    BoxFeatures.build("mimic", 1.0, MimicOptions(source="cells"), a_student(), store, [])


def test_points_lie_from_back_to_front_and_right_to_left() -> None:
    box = np.array([1.0, 2.0, 0.0, 4.0, 2.0, 1.0, math.pi / 2, 0.0, 0.0])
    points = box_points(torch.from_numpy(box[None]), f"{SIDE}x{SIDE}")[0]
    assert np.allclose(points.numpy(), slow_points(box))
    assert points[0, 1] < points[-1, 1] and points[0, 0] > points[1, 0]  # heading +y: right is +x
