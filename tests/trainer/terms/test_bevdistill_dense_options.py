"""The dense term's masks, distances and normalisers: against loops over cells, and against the whole map."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from cache.store import TeacherStore
from tests.trainer.synthetic import write_frames, write_teacher
from tests.trainer.terms.bevdistill_builders import (
    GRID,
    GROUPS,
    STUDENT,
    TEACHER,
    Frame,
    a_frame,
    a_student,
    a_world,
    batch_of,
    bilinear,
    centre_of,
    leaves_of,
    loss_of,
    moved,
    on_grid,
    output_of,
    parts_of,
    require_equal,
    said_of,
)
from tests.trainer.terms.slow_pieces import gradients
from trainer.augment import BevAugment
from trainer.terms.bevdistill_dense import BevDistillDense, BevDistillDenseOptions, channel_statistics, needs_of
from trainer.terms.bevdistill_instance import BevDistillInstance, BevDistillInstanceOptions
from trainer.terms.fitnet import FitNet, FitNetOptions
from trainer.terms.fitnet import needs_of as fitnet_needs_of
from trainer.terms.monodistill import MonoDistill, MonoDistillOptions

AREA = GRID.height * GRID.width


def a_term(**options: Any) -> BevDistillDense:
    torch.manual_seed(4)
    statistics = (torch.randn(TEACHER), torch.rand(TEACHER) + 0.5)
    parsed = BevDistillDenseOptions(**options)
    return BevDistillDense("t", 1.0, parsed, STUDENT, TEACHER, a_student(), statistics).double()


def slow_loss(term: BevDistillDense, frames: list[Frame]) -> Tensor:
    options = term.options
    total, mass, counted = torch.zeros((), dtype=torch.float64), 0.0, 0
    for frame in frames:
        adapted = term.adaptor(frame.answer["bev"][None])[0]
        heat = torch.cat([frame.answer[f"{g}.heatmap"].detach() for g in range(len(GROUPS))]).amax(0, True).sigmoid()
        weights, distances = [], []
        for k, index in enumerate(frame.cells.index):
            x, y = moved(frame.augment, *centre_of(index))
            weight = float(frame.cells.weights[k, 0]) if options.mask == "gt" else 1.0
            if weight == 0 or not on_grid(x, y):
                continue
            if options.mask == "pred":
                weight = float(bilinear(heat, x, y))
            wanted = (torch.from_numpy(frame.cells.values[k]) - term.teacher_mean) / term.teacher_deviation
            error = (bilinear(adapted, x, y) - wanted).square()
            reduced = error.sum() if options.reduce == "sum" else error.sum() / TEACHER
            weights.append(weight)
            distances.append(reduced.sqrt() if options.distance == "norm" else reduced)
        if not weights:
            continue
        counted += 1
        mass += sum(weights)
        share = 1.0 if options.normaliser == "mass" else 1 / (AREA * max(weights))
        total = total + share * sum(w * d for w, d in zip(weights, distances, strict=True))
    return total / max(mass if options.normaliser == "mass" else counted, 1.0)


@pytest.mark.parametrize("mask", ["gt", "pred", "none"])
@pytest.mark.parametrize(
    ("distance", "reduce", "normaliser"),
    [("squared", "mean", "area"), ("norm", "sum", "area"), ("norm", "mean", "mass")],
)
def test_values_and_gradients_equal_the_slow_formula(mask: str, distance: str, reduce: str, normaliser: str) -> None:
    term = a_term(mask=mask, distance=distance, reduce=reduce, normaliser=normaliser)
    frames = [a_frame(2), a_frame(3, BevAugment(0.4, 1.1)), a_frame(4, objects=0, every_cell=mask != "gt")]
    require_equal(term, frames, lambda: slow_loss(term, frames))


def test_without_a_mask_it_is_the_plain_loss_of_the_whole_map() -> None:
    frames = [a_frame(2), a_frame(3)]
    term = a_term(mask="none")
    target = torch.from_numpy(np.stack([f.teacher_map for f in frames]))
    target = (target - term.teacher_mean[:, None, None]) / term.teacher_deviation[:, None, None]
    wanted = torch.nn.functional.mse_loss(term.adaptor(output_of(frames).bev), target)
    assert loss_of(term, frames).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_the_papers_form_over_the_whole_map() -> None:
    frame = a_frame(2)
    term = a_term(distance="norm", normaliser="area", reduce="sum")
    mask = torch.zeros(AREA, dtype=torch.float64)
    mask[frame.cells.index] = torch.from_numpy(frame.cells.weights[:, 0]).double()
    target = torch.from_numpy(frame.teacher_map)
    target = (target - term.teacher_mean[:, None, None]) / term.teacher_deviation[:, None, None]
    norms = (term.adaptor(frame.answer["bev"][None])[0] - target).norm(dim=0).flatten()
    wanted = (mask * norms).sum() / (AREA * mask.max())
    assert loss_of(term, [frame]).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_the_students_heat_weighs_without_being_pulled() -> None:
    term, frames = a_term(mask="pred"), [a_frame(2)]
    heat = [frames[0].answer[f"{g}.heatmap"] for g in range(len(GROUPS))]
    assert all(g.abs().sum() == 0 for g in gradients(loss_of(term, frames), heat))
    before = loss_of(term, frames).item()
    for leaf in heat:
        leaf.data[:, :3] += 3
    assert abs(loss_of(term, frames).item() - before) > 1e-3


def test_where_the_norm_is_zero_its_gradient_is_zero() -> None:
    term, frame = a_term(distance="norm"), a_frame(2)
    term.adaptor.weight.data.zero_()
    term.adaptor.bias.data.zero_()
    same = term.teacher_mean.expand(len(frame.cells), -1).numpy()
    frame = dataclasses.replace(frame, cells=dataclasses.replace(frame.cells, values=same))
    loss = loss_of(term, [frame])
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients(loss, leaves_of([frame])))


def test_masks_that_read_every_cell_say_so() -> None:
    assert not needs_of(BevDistillDenseOptions()).every_cell
    for mask in ("pred", "none"):
        needs = needs_of(BevDistillDenseOptions(mask=mask))  # type: ignore[arg-type]
        assert needs.every_cell
        assert needs.selectors == ()
    assert needs_of(BevDistillDenseOptions(mask="pred")).student == ("bev", "heads")
    assert fitnet_needs_of(FitNetOptions()).selectors == ("gaussian",)
    assert fitnet_needs_of(FitNetOptions(mask="none")).every_cell


def test_fitnet_over_every_cell_is_the_mean_squared_error() -> None:
    frames = a_world(2)
    frames = [dataclasses.replace(frame, augment=BevAugment()) for frame in frames]
    term = FitNet("t", 1.0, FitNetOptions(mask="none"), STUDENT, TEACHER, a_student()).double()
    target = torch.from_numpy(np.stack([f.teacher_map for f in frames]))
    wanted = torch.nn.functional.mse_loss(term.adaptor(output_of(frames).bev), target)
    assert loss_of(term, frames).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_the_cells_alone_will_do_in_place_of_all_that_the_teacher_said() -> None:
    term, frames = a_term(), a_world(2)
    alone = term(output_of(frames), batch_of(frames), said_of(frames).cells)
    assert torch.equal(alone["t"].numerator, parts_of(term, frames)["t"].numerator)


def test_statistics_without_a_selector_are_those_of_all_cells(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, coverage="gaussian(dilate=0)+dense")
    store = TeacherStore(tmp_path / "teachers" / "demo")
    values = np.concatenate([store.cells(row).values.astype(np.float64) for row in range(2)])
    assert len(values) == 2 * store.grid.height * store.grid.width
    mean, deviation = channel_statistics(store, [0, 1], None)
    assert np.allclose(mean.numpy(), values.mean(axis=0), atol=1e-5)
    assert np.allclose(deviation.numpy(), values.std(axis=0), rtol=1e-4)


def test_a_student_without_heat_is_refused_by_the_terms_that_read_it() -> None:
    silent, none = a_student(heat_classes=()), cast(Any, None)
    builds = [
        lambda: BevDistillDense.build("kd", 1.0, BevDistillDenseOptions(mask="pred"), silent, none, []),
        lambda: BevDistillInstance.build("kd", 1.0, BevDistillInstanceOptions(box_weight=0.0), silent, none, []),
        lambda: MonoDistill.build("kd", 1.0, MonoDistillOptions(), silent, none, []),
    ]
    for build in builds:
        with pytest.raises(ConfigError, match="term kd: reads the student's class heat, but test has no heatmap"):
            build()
    frames = [a_frame(2)]
    answer = dataclasses.replace(output_of(frames), heads=[])
    with pytest.raises(ConfigError, match="term t: reads the student's class heat, its answer has none"):
        a_term(mask="pred")(answer, batch_of(frames), said_of(frames))
