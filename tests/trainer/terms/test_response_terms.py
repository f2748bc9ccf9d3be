"""UniDistill's and CRKD's response terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from models.center_head import BRANCHES
from tests.trainer.terms.lgkd_builders import (
    BARE,
    FRAMES,
    GRID,
    GROUPS,
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
from tests.trainer.terms.test_lgkd_response import sigmoid, slow_moved
from trainer.terms.crkd_response import CrkdResponse, CrkdResponseOptions
from trainer.terms.unidistill_response import UniDistillResponse, UniDistillResponseOptions

KINDS: dict[str, Any] = {
    "unidistill": (UniDistillResponse, UniDistillResponseOptions(selector="gaussian", box_weight=0.5)),
    "crkd": (CrkdResponse, CrkdResponseOptions(selector="footprint", task_weights=(2.0, 1.0), box_weight=0.5)),
}


def a_term(world: World, kind: str, options: Any = None) -> Any:
    made, usual = KINDS[kind]
    return made.build("said", 0.7, options or usual, a_model(), a_store(world), range(FRAMES))


def slow_cells(world: World, selector: str) -> list[tuple[float, list[dict[str, Tensor]], list[dict[str, Tensor]]]]:
    """Weight, and per group what the student and the teacher say, of every cell that counts."""
    out = []
    for b, frame in enumerate(world.cells):
        for k, cell in enumerate(frame["index"].tolist()):
            w = float(frame["weights"][k, SELECTORS.index(selector)])
            place = moved_point(*centre_of(cell, GRID), AUGMENTS[b])
            if w == 0 or not on_grid(*place, GRID):
                continue
            mine = [{name: slow_at(m[b], *place, GRID) for name, m in maps.items()} for maps in world.heads]
            theirs = []
            for g, names in enumerate(GROUPS):
                raw = {n: world.regression[b][k, world.columns[1 - g][n]].tolist() for n in BRANCHES}
                said = {
                    n: torch.tensor(slow_moved(n, v, cell, AUGMENTS[b]), dtype=torch.float64) for n, v in raw.items()
                }
                theirs.append({**said, "heatmap": world.logits[b][k, [class_id(name) for name in names]]})
            out.append((w, mine, theirs))
    return out


def slow_unidistill(world: World) -> Tensor:
    value, mass = world.bev.sum() * 0, 0.0
    for w, mine, theirs in slow_cells(world, "gaussian"):
        s, t = (max(sigmoid(z) for maps in both for z in maps["heatmap"]) for both in (mine, theirs))
        value = value + w * (s - t).abs()
        errors = [
            (s[n][i] - t[n][i]).abs()
            for s, t in zip(mine, theirs, strict=True)
            for n in BRANCHES
            for i in range(len(s[n]))
        ]
        value, mass = value + 0.5 * w * sum(errors) / len(errors), mass + w
    return 0.7 * value / max(mass, 1.0)


def slow_crkd(world: World) -> Tensor:
    value = world.bev.sum() * 0
    for g, u in ((0, 2.0), (1, 1.0)):
        heat, positives, box, sure = world.bev.sum() * 0, 0, world.bev.sum() * 0, 0.0
        for _, mine, theirs in slow_cells(world, "footprint"):
            p, q = sigmoid(theirs[g]["heatmap"]), sigmoid(mine[g]["heatmap"])
            for c in range(len(p)):
                heat = heat - (p[c] - q[c]) ** 2 * (p[c] * q[c].log() + (1 - p[c]) * (1 - q[c]).log())
                positives += int(p[c] > 0.3)
            h = float(sum(p))
            if h <= 0.1:
                continue
            for name in BRANCHES:
                for i in range(len(mine[g][name])):
                    d = (mine[g][name][i] - theirs[g][name][i]).abs()
                    box = box + h * (0.5 * d * d if d < 1 else d - 0.5) / len(mine[g][name])
            sure += h
        value = value + u * heat / max(positives, 1) + 0.5 * u * box / max(sure, 1.0)
    return 0.7 * value


@pytest.mark.parametrize(("kind", "slow"), [("unidistill", slow_unidistill), ("crkd", slow_crkd)])
def test_values_and_gradients_equal_the_slow_formula(kind: str, slow: Any) -> None:
    world = World(1)
    for logits in world.logits:
        logits[::3] -= 8  # places where the teacher is sure of nothing
    found, wanted = total(world.parts(a_term(world, kind), range(FRAMES), AUGMENTS)), slow(world)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    for one, other in zip(gradients(found, world.leaves()), gradients(wanted, world.leaves()), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_batches_and_frames_without_cells(kind: str) -> None:
    world = World(2)
    term = a_term(world, kind)
    gradients_are_right(world, term, world.leaves())
    batches_add_up(world, term)
    nothing_gives_zero(world, term, BARE)


@pytest.mark.parametrize("kind", KINDS)
def test_optimised_alone_it_falls(kind: str) -> None:
    world = World(3)
    maps = [m for heads in world.heads for m in heads.values()]
    falls(world, a_term(world, kind), maps, to=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_without_regression_the_store_needs_none(kind: str) -> None:
    world = World(4)
    options = KINDS[kind][1].model_copy(update={"regression": False})
    term = a_term(world, kind, options)
    assert "regression" not in term.needs.teacher_fields
    said = world.said(range(FRAMES), regression=None, regression_columns=(), groups=())
    assert list(term(world.output(range(FRAMES)), world.batch(range(FRAMES), AUGMENTS), said)) == ["said.heat"]


def test_task_weights_must_be_one_a_group() -> None:
    with pytest.raises(ConfigError, match="3 task_weights for 2 task groups"):
        a_term(World(5), "crkd", CrkdResponseOptions(task_weights=(1.0, 1.0, 1.0)))
