from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.cells import Cells, gather_cells, scatter_cells
from cache.errors import ConfigError, StoreError
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.build import build_detector
from models.detector import Batch, DetectorOutput
from models.gaussian import foreground_mask
from tests.trainer.conftest import BOXES
from tests.trainer.synthetic import GRID as STORE_GRID
from tests.trainer.synthetic import TINY_STUDENT, write_frames, write_teacher
from trainer.augment import BevAugment
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms import JoinedTeacher, Spec, build_terms
from trainer.terms.bevdistill_dense import BevDistillDense, BevDistillDenseOptions, channel_statistics

GRID = BevGrid(-8.0, 8.0, -6.0, 6.0, 0.8)
STUDENT, TEACHER = 3, 5
AUGMENTS = [BevAugment(), BevAugment(0.4, 1.1), BevAugment(-2.0, 0.95, True), BevAugment(flip_y=True)]
EMPTY = 2  # the sample without an object


def a_term(seed: int = 0, **options: Any) -> BevDistillDense:
    torch.manual_seed(seed)
    statistics = (torch.randn(TEACHER), torch.rand(TEACHER) + 0.5)
    model: Any = SimpleNamespace(grid=GRID)
    return BevDistillDense("dense", 1.0, BevDistillDenseOptions(**options), STUDENT, TEACHER, model, statistics)


def stored_cells(seed: int, samples: int, dtype: str = "float32") -> list[Cells]:
    rng = np.random.default_rng(seed)
    out = []
    for b in range(samples):
        boxes = np.zeros((0 if b == EMPTY else 4, 9), np.float32)
        boxes[:, 0], boxes[:, 1] = rng.uniform(-7.5, 7.5, len(boxes)), rng.uniform(-5.5, 5.5, len(boxes))
        boxes[:, 3:6] = 2
        weights = np.stack([foreground_mask(boxes, GRID), (rng.random(GRID.shape) < 0.1).astype(np.float32)])
        out.append(gather_cells(rng.normal(0, 2, (TEACHER, *GRID.shape)), weights, dtype))
    return out


def said(cells: list[Cells]) -> TeacherSaid:
    joined = TeacherCells(
        torch.from_numpy(np.concatenate([c.index for c in cells]).astype(np.int64)),
        torch.from_numpy(np.concatenate([c.values for c in cells])),
        torch.from_numpy(np.concatenate([c.weights for c in cells])),
        torch.from_numpy(np.cumsum([0, *(len(c) for c in cells)])),
        ("gaussian", "random"),
    )
    return TeacherSaid(GRID, joined)


def a_batch(augments: list[BevAugment]) -> Batch:
    matrices = torch.from_numpy(np.stack([a.matrix() for a in augments]))
    return Batch(tokens=[str(i) for i in range(len(augments))], bev_augmentation=matrices)


def a_map(samples: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, STUDENT, *GRID.shape, generator=generator, dtype=dtype).requires_grad_()


def value_of(term: BevDistillDense, bev: Tensor, augments: list[BevAugment], cells: list[Cells]) -> Tensor:
    return term(DetectorOutput(bev, []), a_batch(augments), said(cells))["dense"].value()


def slow_loss(
    term: BevDistillDense, bev: Tensor, augments: list[BevAugment], cells: list[Cells], reduce: str
) -> Tensor:
    """The formula, cell by cell and channel by channel, in float64 with its own bilinear rule."""
    weight, bias = term.adaptor.weight[:, :, 0, 0], term.adaptor.bias
    numerator, mass = bev.sum() * 0, 0.0
    for b, (augment, stored) in enumerate(zip(augments, cells, strict=True)):
        a = augment.matrix()
        for k in range(len(stored)):
            w = float(stored.weights[k, 0])
            x = GRID.x_min + (stored.index[k] % GRID.width + 0.5) * GRID.cell_m
            y = GRID.y_min + (stored.index[k] // GRID.width + 0.5) * GRID.cell_m
            px, py = (a @ [x, y, 0.0, 1.0])[:2]
            if w == 0 or not (GRID.x_min <= px < GRID.x_max and GRID.y_min <= py < GRID.y_max):
                continue
            c, r = (px - GRID.x_min) / GRID.cell_m - 0.5, (py - GRID.y_min) / GRID.cell_m - 0.5
            error = bev.sum() * 0
            for channel in range(TEACHER):
                value = bias[channel]
                for source in range(STUDENT):
                    for row in range(GRID.height):
                        for col in range(GRID.width):
                            rr, cc = min(max(r, 0), GRID.height - 1), min(max(c, 0), GRID.width - 1)
                            share = max(0.0, 1 - abs(rr - row)) * max(0.0, 1 - abs(cc - col))
                            if share > 0:
                                value = value + weight[channel, source] * bev[b, source, row, col] * share
                wanted = (float(stored.values[k, channel]) - term.teacher_mean[channel]) / term.teacher_deviation[
                    channel
                ]
                error = error + (value - wanted) ** 2
            numerator = numerator + w * (error / TEACHER if reduce == "mean" else error)
            mass += w
    return numerator / max(mass, 1.0)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_values_and_gradients_equal_the_slow_formula(reduce: str) -> None:
    term = a_term(reduce=reduce).double()
    bev, cells = a_map(4), stored_cells(1, 4)
    found = value_of(term, bev, AUGMENTS, cells)
    grads = torch.autograd.grad(found, [bev, *term.adaptor.parameters()])
    wanted = slow_loss(term, bev, AUGMENTS, cells, reduce)
    wanted_grads = torch.autograd.grad(wanted, [bev, *term.adaptor.parameters()])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    for one, other in zip(grads, wanted_grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_without_augmentation_it_equals_the_dense_masked_loss() -> None:
    term = a_term().double()
    augments, cells = [BevAugment()] * 4, stored_cells(2, 4)
    bev = a_map(4)
    found = value_of(term, bev, augments, cells)
    gradient = torch.autograd.grad(found, bev)[0]
    dense = [scatter_cells(c, GRID.shape) for c in cells]
    teacher = torch.from_numpy(np.stack([values for values, _ in dense])).double()
    mask = torch.from_numpy(np.stack([weights[0] for _, weights in dense])).double()[:, None]  # (B, 1, H, W)
    target = (teacher - term.teacher_mean[:, None, None]) / term.teacher_deviation[:, None, None]
    wanted = (mask * (term.adaptor(bev) - target) ** 2).mean(dim=1).sum() / mask.sum()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(wanted, bev)[0], rtol=1e-9, atol=1e-12)


def test_a_frame_without_objects_gives_zero_and_finite_gradients() -> None:
    term = a_term()
    bev = a_map(1, dtype=torch.float32)
    empty = Cells(np.zeros(0, np.int32), np.zeros((0, TEACHER), np.float16), np.zeros((0, 2), np.float32))
    loss = value_of(term, bev, [BevAugment(0.1)], [empty])
    loss.backward()
    assert loss.item() == 0.0
    assert bev.grad.abs().sum() == 0
    assert all(torch.isfinite(p.grad).all() for p in term.parameters())


def test_a_frame_without_objects_changes_nothing_for_the_others() -> None:
    term, cells = a_term().double(), stored_cells(3, 3)
    bev = a_map(3)
    with_empty = value_of(term, bev, AUGMENTS[:3], cells)
    without = value_of(term, bev[:2], AUGMENTS[:2], cells[:2])
    # sample 2 has no object: its only cells are of the other selector
    assert len(cells[EMPTY]) > 0
    assert with_empty.item() == pytest.approx(without.item(), rel=1e-12)


def test_numerators_and_normalisers_of_single_frames_sum_to_those_of_the_batch() -> None:
    term, cells, bev = a_term().double(), stored_cells(4, 4), a_map(4)
    whole = term(DetectorOutput(bev, []), a_batch(AUGMENTS), said(cells))["dense"]
    parts = [
        term(DetectorOutput(bev[b : b + 1], []), a_batch([AUGMENTS[b]]), said([cells[b]]))["dense"] for b in range(4)
    ]
    assert whole.numerator.item() == pytest.approx(sum(p.numerator.item() for p in parts), rel=1e-12)
    assert whole.normaliser.item() == pytest.approx(sum(p.normaliser.item() for p in parts), rel=1e-12)


def test_the_same_batch_twice_over_has_the_same_loss() -> None:
    term, cells, bev = a_term().double(), stored_cells(5, 4), a_map(4)
    once = value_of(term, bev, AUGMENTS, cells)
    twice = value_of(term, torch.cat([bev, bev]), AUGMENTS * 2, cells * 2)
    assert once.item() == pytest.approx(twice.item(), rel=1e-12)


def test_cells_that_leave_the_grid_count_neither_above_nor_below() -> None:
    term, bev = a_term().double(), a_map(1)
    cell = Cells(np.array([0, 150], np.int32), np.ones((2, TEACHER), np.float32), np.ones((2, 2), np.float32))
    away = BevAugment(scale=1.5)  # cell 0, at the corner, leaves
    part = term(DetectorOutput(bev, []), a_batch([away]), said([cell]))["dense"]
    alone = Cells(cell.index[1:], cell.values[1:], cell.weights[1:])
    wanted = term(DetectorOutput(bev, []), a_batch([away]), said([alone]))["dense"]
    assert part.normaliser.item() == 1.0
    assert part.numerator.item() == pytest.approx(wanted.numerator.item(), rel=1e-12)


def test_moving_world_and_student_together_leaves_the_loss_as_it_was() -> None:
    """The student of a mirrored world that answers with the mirrored map is as right as before: exact."""
    term, cells, bev = a_term().double(), stored_cells(6, 2), a_map(2)
    plain = value_of(term, bev, [BevAugment()] * 2, cells)
    mirrored = value_of(term, bev.flip(3), [BevAugment(flip_x=True)] * 2, cells)
    assert plain.item() == pytest.approx(mirrored.item(), rel=1e-12)


def test_bf16_maps_under_autocast_are_compared_in_fp32() -> None:
    term, cells = a_term(), stored_cells(7, 4, "float16")
    bev = a_map(4, dtype=torch.float32).detach().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        part = term(DetectorOutput(bev, []), a_batch(AUGMENTS), said(cells))["dense"]
    assert part.numerator.dtype == torch.float32
    wanted = value_of(term.double(), bev.double(), AUGMENTS, cells)
    assert part.value().item() == pytest.approx(wanted.item(), rel=1e-5)


def test_optimised_alone_it_falls() -> None:
    term = a_term()
    bev, basis = a_map(4, dtype=torch.float32), np.random.default_rng(8).normal(0, 1, (STUDENT, TEACHER))
    # values of the student's rank, so that they can be met exactly
    cells = [Cells(c.index, (c.values[:, :STUDENT] @ basis).astype(np.float32), c.weights) for c in stored_cells(8, 4)]
    optimiser = torch.optim.Adam([bev, *term.parameters()], lr=0.05)
    losses = []
    for _ in range(80):
        loss = value_of(term, bev, AUGMENTS, cells)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_the_released_adaptor_works_and_the_weight_multiplies() -> None:
    term = a_term(adaptor="conv3x3", reduce="sum")
    term.weight = 0.01
    part = term(DetectorOutput(a_map(4, dtype=torch.float32), []), a_batch(AUGMENTS), said(stored_cells(9, 4)))["dense"]
    assert part.value().item() == pytest.approx(0.01 * part.numerator.item() / part.normaliser.item(), rel=1e-6)
    assert math.isfinite(part.value().item())


def test_channel_statistics_are_those_of_the_selected_cells(cache: Path) -> None:
    teacher = TeacherStore(cache / "teachers" / "demo")
    rows = list(range(6))
    mean, deviation = channel_statistics(teacher, rows, "gaussian")
    values = []
    for row in rows:
        cells = teacher.cells(row)
        values.append(cells.values[cells.weights[:, 0] > 0].astype(np.float64))
    stacked = np.concatenate(values)
    assert np.allclose(mean.numpy(), stacked.mean(axis=0), atol=1e-5)
    assert np.allclose(deviation.numpy(), stacked.std(axis=0), rtol=1e-4)
    assert len(stacked) < sum(len(teacher.cells(row)) for row in rows)  # the store holds more than that selector


def test_a_store_without_the_selector_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, coverage="dense")
    model, teacher = build_detector(TINY_STUDENT), TeacherStore(tmp_path / "teachers" / "demo")
    with pytest.raises(StoreError, match=r"gaussian, the store covers dense; .*'dense\+gaussian\(dilate=1\)'"):
        build_terms([Spec("bevdistill_dense")], model, {"": JoinedTeacher(teacher, [0, 1])})


def test_a_store_on_another_grid_is_refused_with_both_grids(tmp_path: Path) -> None:
    other = BevGrid(-51.2, 51.2, -51.2, 51.2, 3.2)
    write_frames(tmp_path, frames=2)
    write_teacher(tmp_path, frames=2, grid=other)
    model, teacher = build_detector(TINY_STUDENT), TeacherStore(tmp_path / "teachers" / "demo")
    with pytest.raises(ConfigError, match=r"cell 3\.2 m.*cell 6\.4 m"):
        build_terms([Spec("bevdistill_dense")], model, {"": JoinedTeacher(teacher, [0, 1])})


def test_a_teacher_that_marked_nothing_is_refused(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2, boxes=(0,))
    write_teacher(tmp_path, frames=2, boxes=(0,), coverage="gaussian(dilate=0)+dense")
    with pytest.raises(StoreError, match="nothing to distil"):
        channel_statistics(TeacherStore(tmp_path / "teachers" / "demo"), [0, 1], "gaussian")


def test_an_unknown_term_and_an_unknown_option_are_refused_by_name(cache: Path) -> None:
    model, teacher = build_detector(TINY_STUDENT), TeacherStore(cache / "teachers" / "demo")
    with pytest.raises(ConfigError, match=r"'magic'.*bevdistill_dense"):
        build_terms([Spec("magic")], model, {"": JoinedTeacher(teacher, [0])})
    with pytest.raises(
        ConfigError, match=r"'masks'.*adaptor, distance, mask, normaliser, reduce, selector, standardise"
    ):
        build_terms([Spec("bevdistill_dense", 1.0, {"masks": "gt"})], model, {"": JoinedTeacher(teacher, [0])})
    with pytest.raises(ConfigError, match=r"set \[data\] teacher"):
        build_terms([Spec("bevdistill_dense")], model, {})


def test_stores_of_the_tests_have_frames_with_and_without_objects(cache: Path) -> None:
    teacher = TeacherStore(cache / "teachers" / "demo")
    mass = [float(teacher.cells(row).weights[:, 0].sum()) for row in range(6)]
    assert [m > 0 for m in mass] == [BOXES[i % len(BOXES)] > 0 for i in range(6)]
    assert teacher.grid == STORE_GRID
