"""What every term of the registry is held to, whatever its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import StoreError
from cache.grid import BevGrid
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.build import build_detector
from models.detector import Batch, DetectorOutput
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from tests.trainer.terms.lgkd_builders import FRAMES, GRID, IDENTITY, SELECTORS, World, a_model, a_store
from tests.trainer.terms.slow_pieces import AUGMENTS, gradients, total
from trainer.said import TeacherSaid
from trainer.terms import TermKind, require_served
from trainer.terms.registry import TERMS as ALL_TERMS

NAMES = (
    "lgkd_feature",
    "lgkd_depth",
    "lgkd_response",
    "distillbev",
    "unidistill_feature",
    "unidistill_relation",
    "unidistill_response",
    "tigbev_inner",
    "crkd_response",
)
TERMS = {name: ALL_TERMS[name] for name in NAMES}

OPTIONS: dict[str, dict[str, Any]] = {  # to the columns that a World's cells have
    "distillbev": {"foreground": "footprint"},
    "unidistill_response": {"selector": "gaussian"},
    "crkd_response": {"selector": "lidar"},
    "tigbev_inner": {"points": "3x3"},
}
MASKED = [name for name in TERMS if name not in ("lgkd_depth", "tigbev_inner") and "unidistill_" not in name]
MASKED.append("unidistill_response")


def a_term(name: str, world: World) -> Any:
    torch.manual_seed(3)
    kind = TERMS[name]
    options = kind.options(**OPTIONS.get(name, {}))
    return kind.build(name, 0.5, options, a_model(), a_store(world), range(FRAMES))


def test_kinds_are_whole() -> None:
    for name, kind in TERMS.items():
        assert isinstance(kind, TermKind), name
        needs = kind.needs(kind.options())
        for text in needs.selectors:
            NeededSelector.parse(text)
        assert set(needs.student) <= set(DetectorOutput.__dataclass_fields__), name
        assert set(needs.batch) <= set(Batch.__dataclass_fields__), name


def test_a_store_on_another_grid_serves_them_all_but_one_without_the_selector_does_not(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, grid=BevGrid(-51.2, 51.2, -51.2, 51.2, 3.2), coverage="gaussian")
    model, teacher = build_detector(TINY_STUDENT), TeacherStore(tmp_path / "teachers" / "demo")
    assert model.grid != teacher.grid
    feature = TERMS["lgkd_feature"]
    on = feature.options(selector="gaussian", views="none")
    require_served("lgkd_feature", feature.needs(on), teacher, model, [0, 1])
    term = feature.build("lgkd_feature", 1.0, on, model, teacher, [0, 1])
    assert term.standardise.mean.shape == (5,)
    with pytest.raises(StoreError, match=r"selector lidar, the store covers gaussian.*--coverage"):
        require_served("lgkd_feature", feature.needs(feature.options()), teacher, model, [0, 1])
    response = TERMS["lgkd_response"]
    with pytest.raises(StoreError, match="'logits'"):
        require_served("lgkd_response", response.needs(response.options()), teacher, model, [0, 1])


@pytest.mark.parametrize("name", TERMS)
def test_parts_carry_the_terms_name_and_weight_and_are_added_up_by_it(name: str) -> None:
    world = World(1, torch.float32)
    term = a_term(name, world)
    parts = world.parts(term, range(FRAMES), AUGMENTS)
    assert all(part == name or part.startswith(f"{name}.") for part in parts)
    before = total(parts).item()
    assert before > 0
    term.weight *= 3
    assert total(world.parts(term, range(FRAMES), AUGMENTS)).item() == pytest.approx(3 * before, rel=1e-5)
    assert term.needs == TERMS[name].needs(term.options)


@pytest.mark.parametrize("name", TERMS)
def test_maps_in_bf16_are_compared_in_fp32(name: str) -> None:
    world = World(2, torch.float32)
    term, output = a_term(name, world), world.output(range(FRAMES))

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return value.detach().to(torch.bfloat16)

    heads = [{key: rounded(value) for key, value in maps.items()} for maps in output.heads]
    levels = {key: rounded(value) for key, value in output.levels.items()}
    assert output.depth_logits is not None
    half = DetectorOutput(rounded(output.bev), heads, rounded(output.depth_logits), levels)
    whole = DetectorOutput(half.bev.float(), [{k: v.float() for k, v in m.items()} for m in heads],
                           rounded(output.depth_logits).float(), {k: v.float() for k, v in levels.items()})  # fmt: skip
    batch, said = world.batch(range(FRAMES), AUGMENTS), world.said(range(FRAMES))
    with torch.autocast("cpu", torch.bfloat16):
        parts = term(half, batch, said)
    assert all(part.numerator.dtype == torch.float32 for part in parts.values())
    assert total(parts).item() == pytest.approx(total(term(whole, batch, said)).item(), rel=1e-6)


@pytest.mark.parametrize("name", MASKED)
def test_stored_cells_are_enough(name: str) -> None:
    """A teacher in the loop has every cell, those that the mask leaves out with weight 0: the same loss and
    gradient."""
    world = World(4)
    term = a_term(name, world).double()
    stored = total(world.parts(term, range(FRAMES), AUGMENTS))
    stored_gradient = gradients(stored, world.leaves())
    rng = np.random.default_rng(5)
    size = GRID.width * GRID.height
    for b, frame in enumerate(world.cells):
        at = frame["index"]
        for values, width in ((frame, None), (world.logits, 10), (world.regression, world.regression[b].shape[1])):
            old = values["values"] if width is None else values[b]
            whole = torch.from_numpy(rng.normal(0, 3, (size, old.shape[1])))
            whole[at] = old
            if width is None:
                values["values"] = whole
            else:
                values[b] = whole
        weights = torch.zeros(size, len(SELECTORS))
        weights[at] = frame["weights"]
        frame["index"], frame["weights"] = torch.arange(size), weights
    live = total(world.parts(term, range(FRAMES), AUGMENTS))
    assert live.item() == pytest.approx(stored.item(), rel=1e-10)
    for one, other in zip(stored_gradient, gradients(live, world.leaves()), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_gradients_reach_the_student_and_all_that_the_term_owns(name: str) -> None:
    world = World(6)
    term = a_term(name, world).double()
    said: TeacherSaid = world.said(range(FRAMES))
    value = total(term(world.output(range(FRAMES)), world.batch(range(FRAMES), IDENTITY), said))
    found = gradients(value, [*term.parameters(), *world.leaves()])
    owned = len(list(term.parameters()))
    assert all(g.abs().sum() > 0 for g in found[:owned])
    assert sum(float(g.abs().sum()) for g in found[owned:]) > 0
