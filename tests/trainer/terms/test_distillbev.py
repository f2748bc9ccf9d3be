from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.terms.lgkd_builders import (
    AUGMENTS,
    BARE,
    FRAMES,
    GRID,
    IDENTITY,
    SELECTORS,
    TEACHER,
    World,
    a_model,
    a_store,
    batches_add_up,
    centre_of,
    falls,
    gradients,
    gradients_are_right,
    moved_point,
    nothing_gives_zero,
    on_grid,
    slow_at,
    total,
)
from trainer.terms.annotations import annotated_frames
from trainer.terms.distillbev import DistillBev, DistillBevOptions, frame_attention, needs_of


def a_term(world: World, **options: Any) -> DistillBev:
    torch.manual_seed(1)
    parsed = DistillBevOptions(**{"standardise": "none", "foreground": "footprint", **options})
    return DistillBev.build("bev", 0.7, parsed, a_model(), a_store(world), range(FRAMES)).double()


def slow_loss(term: DistillBev, world: World, labelled: list[bool]) -> Tensor:
    """Frame by frame, cell by cell, channel by channel."""
    o = term.options
    sums = {name: world.bev.sum() * 0 for name in ("foreground", "background", "false", "spatial", "channel")}
    masses = dict.fromkeys(sums, 0.0)
    for b, frame in enumerate(world.cells):
        regions: dict[int, tuple[str, float]] = {}
        for k in range(len(frame["index"])):
            w = dict(zip(SELECTORS, frame["weights"][k].tolist(), strict=True))
            if w["footprint"] > 0:
                regions[k] = ("foreground", w["footprint"])
            elif o.false_positives and w[o.false_positives] > 0:
                regions[k] = ("false", 1.0)
            elif w["random"] > 0:
                regions[k] = ("background", 1.0)
        if not labelled[b] or not regions:
            continue
        size = {k: sum(abs(float(v)) for v in frame["values"][k]) / TEACHER for k in regions}
        per_channel = [sum(abs(float(frame["values"][k, c])) for k in regions) / len(regions) for c in range(TEACHER)]
        a = {k: len(regions) * math.exp(s / o.temperature) / sum(math.exp(v / o.temperature) for v in size.values())
             for k, s in size.items()}  # fmt: skip
        h = [TEACHER * math.exp(s / o.temperature) / sum(math.exp(v / o.temperature) for v in per_channel)
             for s in per_channel]  # fmt: skip
        held = []
        for k in regions:
            place = moved_point(*centre_of(int(frame["index"][k]), GRID), AUGMENTS[b])
            if on_grid(*place, GRID):
                held.append((k, term.adaptor.weight @ slow_at(world.bev[b], *place, GRID) + term.adaptor.bias))
        backgrounds = sum(regions[k][0] == "background" for k, _ in held)
        for k, student in held:
            region, weight = regions[k]
            if o.form == "released" and region == "background":
                weight = 1 / backgrounds
            for c in range(TEACHER):
                factor = weight * (a[k] * h[c] if o.attention else 1.0)
                sums[region] = sums[region] + factor * (student[c] - frame["values"][k, c]) ** 2
            masses[region] += regions[k][1] * TEACHER
            sums["spatial"] = sums["spatial"] + (student.abs().mean() - frame["values"][k].abs().mean()).abs()
            masses["spatial"] += 1
        if held:
            for c in range(TEACHER):
                mean_s = sum(s[c].abs() for _, s in held) / len(held)
                mean_t = sum(frame["values"][k, c].abs() for k, _ in held) / len(held)
                sums["channel"] = sums["channel"] + (mean_s - mean_t).abs() / TEACHER
            masses["channel"] += 1
    if o.form == "released":
        masses = dict.fromkeys(sums, float(sum(labelled)))
    weights = {"foreground": o.foreground_weight, "background": o.background_weight, "false": o.false_weight,
               "spatial": o.spatial_weight, "channel": o.channel_weight}  # fmt: skip
    return 0.7 * sum(weights[n] * s / max(masses[n], 1.0) for n, s in sums.items())


@pytest.mark.parametrize(
    "options", [{}, {"false_positives": "lidar", "temperature": 2.0}, {"form": "released"}, {"attention": False}]
)
def test_values_and_gradients_equal_the_slow_formula(options: dict[str, Any]) -> None:
    world = World(1)
    term = a_term(world, **options)
    found, wanted = total(world.parts(term, range(FRAMES), AUGMENTS)), slow_loss(term, world, [True] * FRAMES)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    tensors = [world.bev, *term.parameters()]
    for one, other in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["sound", "released"])
def test_frames_without_annotations_are_left_out(form: str) -> None:
    world = World(2)
    term, batch = a_term(world, form=form), world.batch(range(FRAMES), AUGMENTS)
    labelled = torch.tensor([True, False, True, True])
    partly: Any = SimpleNamespace(**{name: getattr(batch, name) for name in ("bev_augmentation", "tokens")})
    partly.labelled = labelled
    found = total(term(world.output(range(FRAMES)), partly, world.said(range(FRAMES))))
    assert found.item() == pytest.approx(slow_loss(term, world, labelled.tolist()).item(), rel=1e-10)
    assert annotated_frames(batch, torch.device("cpu")).all()


def test_attention_has_mean_one_and_prefers_what_is_large() -> None:
    teacher = torch.randn(30, 5).double()
    teacher[7] *= 5
    samples = torch.tensor([0] * 20 + [2] * 10)
    by_cell, by_channel = frame_attention(teacher, samples, 3, 0.5)
    assert by_cell[:20].mean().item() == pytest.approx(1)
    assert by_cell[20:].mean().item() == pytest.approx(1)
    assert by_cell[:20].argmax() == 7
    assert torch.allclose(by_channel.mean(dim=1), torch.ones(3).double())
    assert torch.allclose(by_channel[1], torch.ones(5).double())


def test_gradients_batches_and_frames_without_cells() -> None:
    world = World(3)
    for form in ("sound", "released"):
        term = a_term(world, form=form)
        gradients_are_right(world, term, [world.bev, *term.parameters()])
        batches_add_up(world, term)
        nothing_gives_zero(world, term, BARE)


def test_optimised_alone_it_falls() -> None:
    world = World(4)
    falls(world, a_term(world), [world.bev], to=0.5)


def test_a_store_of_every_cell_gives_the_whole_map() -> None:
    """Background on all cells and no augmentation: attention over the whole map, as released."""
    world = World(5)
    teacher = torch.randn(1, TEACHER, *GRID.shape).double()
    weights = torch.zeros(GRID.width * GRID.height, len(SELECTORS))
    weights[:, SELECTORS.index("random")] = 1
    weights[40:46, SELECTORS.index("footprint")] = 0.5
    values = teacher[0].flatten(1).T.contiguous()
    world.cells[0] = {"index": torch.arange(len(weights)), "values": values, "weights": weights}
    term = a_term(world, form="released", background_weight=1.0)
    with torch.no_grad():
        term.adaptor.weight.copy_(torch.eye(TEACHER, 3))
        term.adaptor.bias.zero_()
    parts = world.parts(term, [0], IDENTITY)
    student = torch.cat([world.bev[:1], torch.zeros_like(world.bev[:1, :1])], dim=1)
    spatial = (teacher.abs().mean(1).flatten(1) / 0.5).softmax(1).view(1, *GRID.shape) * len(weights)
    channel = (teacher.abs().mean((2, 3)) / 0.5).softmax(1) * TEACHER
    error = (student - teacher).square() * spatial[:, None] * channel[..., None, None]
    inside = torch.zeros(len(weights)).double()
    inside[40:46] = 1
    inside = inside.view(GRID.shape)
    assert parts["bev.foreground"].numerator.item() == pytest.approx((error * inside * 0.5).sum().item(), rel=1e-10)
    share = (1 - inside) / (1 - inside).sum()
    assert parts["bev.background"].numerator.item() == pytest.approx((error * share).sum().item(), rel=1e-10)


def test_it_says_which_selectors_it_reads() -> None:
    assert needs_of(DistillBevOptions()).selectors == ("footprint(by_size=1)", "random")
    options = DistillBevOptions(false_positives="confident(threshold=0.3)", level="neck")
    assert needs_of(options).selectors[2] == "confident(threshold=0.3)"
    assert "level(name=neck)" in needs_of(options).teacher_fields
