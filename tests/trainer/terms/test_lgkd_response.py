from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from models.center_head import BRANCHES
from tests.trainer.terms.lgkd_builders import (
    BARE,
    EMPTY,
    FRAMES,
    GRID,
    GROUPS,
    IDENTITY,
    SELECTORS,
    World,
    a_model,
    a_store,
    batches_add_up,
    class_id,
    falls,
    gradients_are_right,
    nothing_gives_zero,
)
from tests.trainer.terms.slow_pieces import AUGMENTS, centre_of, gradients, moved_point, on_grid, slow_at, total
from trainer.augment import BevAugment, move_boxes
from trainer.terms.lgkd_response import LgkdResponse, LgkdResponseOptions
from trainer.terms.moved_regression import moved_branch
from trainer.terms.response_term import needs_of


def a_term(world: World, **options: Any) -> LgkdResponse:
    parsed = LgkdResponseOptions(**options)
    return LgkdResponse.build("response", 0.7, parsed, a_model(), a_store(world), range(FRAMES))


def slow_moved(branch: str, raw: list[float], cell: int, augment: BevAugment) -> list[float]:
    """A raw value moved as the box that it means is moved: decoded, moved, encoded at the moved cell."""
    x, y = centre_of(cell, GRID)
    if branch == "center":
        gx, gy = moved_point(
            x + (raw[0] - 0.5) * GRID.cell_m, y + (raw[1] - 0.5) * GRID.cell_m, augment
        )  # where it points
        px, py = moved_point(x, y, augment)
        return [(gx - px) / GRID.cell_m + 0.5, (gy - py) / GRID.cell_m + 0.5]
    if branch == "height":
        return [raw[0] * augment.scale]
    if branch == "dim":
        return [math.log(math.exp(value) * augment.scale) for value in raw]
    turn = BevAugment(augment.rotation_rad, 1.0, augment.flip_x, augment.flip_y)
    if branch == "rot":
        cos, sin = moved_point(raw[1], raw[0], turn)
        return [sin, cos]
    return list(moved_point(raw[0], raw[1], augment))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + (-torch.as_tensor(x)).exp())


def slow_loss(term: LgkdResponse, world: World, augments: list[BevAugment]) -> Tensor:
    """The formula, cell by cell, class by class and channel by channel."""
    options, t = term.options, term.options.temperature
    value = world.bev.sum() * 0
    for g, names in enumerate(GROUPS):
        classes, boxes, mass = world.bev.sum() * 0, world.bev.sum() * 0, 0.0
        columns = world.columns[1 - g]  # the teacher's groups stand the other way round
        for b, frame in enumerate(world.cells):
            for k, cell in enumerate(frame["index"].tolist()):
                w = float(frame["weights"][k, SELECTORS.index(options.selector)])
                place = moved_point(*centre_of(cell, GRID), augments[b])
                if w == 0 or not on_grid(*place, GRID):
                    continue
                mass += w
                maps = {name: slow_at(m[b], *place, GRID) for name, m in world.heads[g].items()}
                heat = maps["heatmap"] if options.student == "logits" else sigmoid(maps["heatmap"])
                wanted = [world.logits[b][k, class_id(name)] for name in names]
                for c in range(len(names)):
                    if options.form == "sigmoid":
                        p, q = sigmoid(wanted[c] / t), sigmoid(heat[c] / t)
                        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
                    else:
                        p = (wanted[c] / t).exp() / sum((z / t).exp() for z in wanted)
                        q = (heat[c] / t).exp() / sum((z / t).exp() for z in heat)
                        kl = p * (p / q).log()
                    classes = classes + w * 0.25 * t * t * kl
                for name in options.branches:
                    raw = world.regression[b][k, columns[name]].tolist()
                    moved = slow_moved(name, raw, cell, augments[b])
                    for found, target in zip(maps[name], moved, strict=True):
                        d = (found - target).abs()
                        boxes = boxes + w * (0.5 * d * d if d < 1 else d - 0.5) / len(moved)
        value = value + 0.7 * (classes + options.box_weight * boxes) / max(mass, 1.0)
    return value


@pytest.mark.parametrize(
    "options",
    [
        {"selector": "random", "temperature": 2.0, "box_weight": 0.5},
        {"form": "softmax", "branches": ("center", "rot"), "student": "probabilities"},
        {"form": "softmax", "branches": ()},
    ],
)
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any]) -> None:
    world = World(1)
    term = a_term(world, **options)
    found, wanted = total(world.parts(term, range(FRAMES), AUGMENTS)), slow_loss(term, world, AUGMENTS)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    for one, other in zip(gradients(found, world.leaves()), gradients(wanted, world.leaves()), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)


def test_a_softmax_over_one_class_teaches_nothing_and_the_sigmoid_does() -> None:
    world = World(2)
    car = world.heads[0]["heatmap"]
    released = total(world.parts(a_term(world, form="softmax", branches=()), range(FRAMES), IDENTITY))
    assert gradients(released, [car])[0].abs().sum() == 0
    assert gradients(released, [world.heads[1]["heatmap"]])[0].abs().sum() > 0
    sound = total(world.parts(a_term(world, branches=()), range(FRAMES), IDENTITY))
    assert gradients(sound, [car])[0].abs().sum() > 0


def test_it_is_zero_where_the_student_says_what_the_teacher_said() -> None:
    """Also under augmentations that map cells onto cells: a student of the mirrored world, moved exactly."""
    world = World(3)
    flip = BevAugment(flip_x=True)
    for g, names in enumerate(GROUPS):
        maps = {name: torch.zeros_like(m) for name, m in world.heads[g].items()}
        for b, frame in enumerate(world.cells):
            for k, cell in enumerate(frame["index"].tolist()):
                row, col = divmod(cell, GRID.width)
                there = GRID.width - 1 - col
                maps["heatmap"][b, :, row, there] = world.logits[b][k, [class_id(name) for name in names]]
                for branch in BRANCHES:
                    raw = world.regression[b][k, world.columns[1 - g][branch]].tolist()
                    maps[branch][b, :, row, there] = torch.tensor(slow_moved(branch, raw, cell, flip)).double()
        world.heads[g] = maps
    value = total(world.parts(a_term(world), range(FRAMES), [flip] * FRAMES))
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert total(world.parts(a_term(world), range(FRAMES), IDENTITY)).item() > 0.1


def test_without_augmentation_raw_values_keep_their_bits() -> None:
    values = torch.rand(50, 2)
    same = torch.eye(4).repeat(50, 1, 1)
    for name, channels in BRANCHES.items():
        raw = torch.randn(50, channels)
        assert torch.equal(moved_branch(name, raw, same), raw), name
    assert not torch.equal(moved_branch("center", values, same, 2.0), values)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_raw_values_move_as_the_boxes_that_they_mean(augment: BevAugment) -> None:
    rng = np.random.default_rng(4)
    boxes = rng.uniform(-3, 3, (20, 9)).astype(np.float32)
    boxes[:, 3:6] = np.abs(boxes[:, 3:6]) + 0.5
    moved = move_boxes(boxes, augment.matrix()).astype(np.float64)
    a = torch.from_numpy(augment.matrix()).repeat(20, 1, 1)

    def raw(name: str, b: np.ndarray) -> torch.Tensor:
        yaw = b[:, 6].astype(np.float64)
        code = {
            "height": b[:, 2:3],
            "dim": np.log(b[:, 3:6]),
            "rot": np.stack([np.sin(yaw), np.cos(yaw)], 1),
            "vel": b[:, 7:9],
        }
        return torch.from_numpy(np.asarray(code[name], np.float64))

    for name in ("height", "dim", "rot", "vel"):
        assert torch.allclose(moved_branch(name, raw(name, boxes), a), raw(name, moved), atol=1e-5), name


def test_offsets_of_another_grid_are_taken_over_in_metres() -> None:
    """A teacher's cell of 2 m whose centre is 0.6 m past its middle is 0.6 cells past it on cells of 1 m."""
    offset = torch.tensor([[0.5 + 0.6 / 2, 0.5]], dtype=torch.float64)
    found = moved_branch("center", offset, torch.eye(4, dtype=torch.float64)[None], 2.0)
    assert torch.allclose(found, torch.tensor([[1.1, 0.5]], dtype=torch.float64))


def test_gradients_batches_and_frames_without_cells() -> None:
    world = World(5)
    term = a_term(world)
    gradients_are_right(world, term, world.leaves())
    batches_add_up(world, term)
    nothing_gives_zero(world, term, EMPTY)
    nothing_gives_zero(world, term, BARE)


def test_optimised_alone_it_falls() -> None:
    world = World(6)
    falls(world, a_term(world, selector="random"), [m for maps in world.heads for m in maps.values()], to=0.3)


def test_fields_follow_the_branches_and_other_groups_are_refused() -> None:
    world = World(7)
    assert "regression" not in needs_of(LgkdResponseOptions(branches=())).teacher_fields
    assert "regression" in needs_of(LgkdResponseOptions()).teacher_fields
    store = a_store(world)
    store.further.groups = (("car", "truck"), ("pedestrian",))
    with pytest.raises(ConfigError, match=r"group car is none of the teacher's car\|truck, pedestrian"):
        LgkdResponse.build("r", 1.0, LgkdResponseOptions(), a_model(), store, [0])
    LgkdResponse.build("r", 1.0, LgkdResponseOptions(branches=()), a_model(), store, [0])
    heat_alone = a_model(config={}, modules=lambda: iter(()))
    with pytest.raises(ConfigError, match="no centre head"):
        LgkdResponse.build("r", 1.0, LgkdResponseOptions(), heat_alone, store, [0])
    LgkdResponse.build("r", 1.0, LgkdResponseOptions(branches=()), heat_alone, store, [0])
    with pytest.raises(ConfigError, match="no heatmap"):
        LgkdResponse.build("r", 1.0, LgkdResponseOptions(branches=()), a_model(heat_classes=()), store, [0])
    with pytest.raises(ValueError, match="unknown branches"):
        LgkdResponseOptions(branches=("iou",))
