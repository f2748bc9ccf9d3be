"""MonoDistill's three parts in BEV against loops over cells and pairs of blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from tests.trainer.terms.bevdistill_builders import (
    GRID,
    GROUPS,
    HEAT_CLASSES,
    STUDENT,
    TEACHER,
    Frame,
    a_frame,
    a_student,
    a_world,
    bilinear,
    centre_of,
    moved,
    on_grid,
    parts_of,
    require_equal,
)
from tests.trainer.terms.slow_pieces import AUGMENTS
from trainer.terms.monodistill import MonoDistill, MonoDistillOptions, needs_of


def a_term(**options: Any) -> MonoDistill:
    torch.manual_seed(5)
    parsed = MonoDistillOptions(**{"block": 4, **options})
    return MonoDistill("t", 1.0, parsed, STUDENT, TEACHER, a_student()).double()


def slow_loss(term: MonoDistill, frames: list[Frame]) -> Tensor:
    options = term.options
    feature = related = response = torch.zeros((), dtype=torch.float64)
    feature_mass, response_mass, counted = 0.0, 0.0, 0
    for frame in frames:
        adapted = term.adaptor(frame.answer["bev"][None])[0]
        heat = torch.cat([frame.answer[f"{g}.heatmap"] for g in range(len(GROUPS))])
        blocks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for k, index in enumerate(frame.cells.index):
            x, y = moved(frame.augment, *centre_of(index))
            if not on_grid(x, y):
                continue
            gaussian, footprint = (float(w) for w in frame.cells.weights[k, :2])
            student, teacher = bilinear(adapted, x, y), torch.from_numpy(frame.cells.values[k])
            feature = feature + footprint * (student - teacher).square().mean()
            feature_mass += footprint
            if (footprint > 0) if options.over == "selector" else frame.labelled:
                row, col = divmod(int(index), GRID.width)
                blocks.setdefault((row // options.block, col // options.block), []).append((student, teacher))
            if gaussian > 0:
                logits = bilinear(heat, x, y)
                for channel, name in enumerate(HEAT_CLASSES):
                    wanted = torch.tensor(frame.cell_logits[k, DETECTION_CLASSES.index(name)]).sigmoid()
                    response = response + gaussian * (logits[channel].sigmoid() - wanted).abs()
                response_mass += gaussian
        means = [
            [torch.stack([pair[side] for pair in pairs]).mean(dim=0) for pairs in blocks.values()] for side in (0, 1)
        ]
        if blocks:
            counted += 1
            total = torch.zeros((), dtype=torch.float64)
            for a in range(len(blocks)):
                for b in range(len(blocks)):
                    s, t = (torch.dot(m[a], m[b]) / (m[a].norm() * m[b].norm()) for m in means)
                    total = total + (s - t).abs()
            related = related + total / len(blocks) ** 2
    return (
        options.feature_weight * feature / max(feature_mass, 1.0)
        + options.relation_weight * related / max(counted, 1)
        + options.response_weight * response / max(response_mass, 1.0)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"feature_weight": 0.5, "response_weight": 2.0},
        {"over": "every_cell", "block": 5, "feature_weight": 0.0},
        {"relation_weight": 0.0},
    ],
)
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any]) -> None:
    term, frames = a_term(**options), a_world(5)
    require_equal(term, frames, lambda: slow_loss(term, frames))


def test_relations_over_every_cell_are_those_of_pooled_maps() -> None:
    frame = a_frame(3)
    term = a_term(over="every_cell", block=2, feature_weight=0.0, response_weight=0.0)
    maps = term.adaptor(frame.answer["bev"][None]), torch.from_numpy(frame.teacher_map)[None]
    vectors = [torch.nn.functional.avg_pool2d(m, 2)[0].flatten(1).T for m in maps]
    s, t = (torch.nn.functional.cosine_similarity(v[:, None], v[None], dim=2) for v in vectors)
    assert parts_of(term, [frame])["t.relation"].value().item() == pytest.approx((s - t).abs().mean().item(), rel=1e-9)


def test_relations_do_not_depend_on_the_scale_of_features() -> None:
    frame = a_frame(3)
    term = a_term(response_weight=0.0)
    louder = dataclasses.replace(frame, cells=dataclasses.replace(frame.cells, values=3 * frame.cells.values))
    one, other = parts_of(term, [frame]), parts_of(term, [louder])
    assert torch.allclose(one["t.relation"].numerator, other["t.relation"].numerator)
    assert not torch.allclose(one["t.feature"].numerator, other["t.feature"].numerator)


def test_unlabelled_frames_add_nothing() -> None:
    frame = a_frame(3, AUGMENTS[1], objects=0)  # dense, as a store keeps them: the columns of boxes are 0
    for over in ("selector", "every_cell"):
        parts = parts_of(a_term(over=over), [dataclasses.replace(frame, labelled=False)])
        assert all(part.numerator.item() == part.normaliser.item() == 0 for part in parts.values())


def test_needs_follow_the_options() -> None:
    needs = needs_of(MonoDistillOptions())
    assert needs.selectors == ("footprint", "gaussian")
    assert "logits" in needs.teacher_fields
    assert not needs.every_cell
    assert needs_of(MonoDistillOptions(over="every_cell")).every_cell
    plain = needs_of(MonoDistillOptions(response_weight=0.0))
    assert (plain.selectors, plain.student) == (("footprint",), ("bev",))
