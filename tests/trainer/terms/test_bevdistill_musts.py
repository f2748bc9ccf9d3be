"""What holds for every term of BEVDistill and its comparison rows, under each way to set them up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.detector import DetectorOutput, QueryOutput, total_of
from tests.trainer.terms.bevdistill_builders import (
    EMBEDDING,
    EMPTY,
    GROUPS,
    STUDENT,
    TEACHER,
    Frame,
    a_frame,
    a_student,
    a_world,
    batch_of,
    leaves_of,
    loss_of,
    output_of,
    parts_of,
    said_of,
)
from tests.trainer.terms.slow_pieces import AUGMENTS, gradients
from trainer.augment import BevAugment
from trainer.terms.adaptor import FrozenAdaptor
from trainer.terms.bevdistill_contrast import BevDistillContrast, BevDistillContrastOptions
from trainer.terms.bevdistill_dense import BevDistillDense, BevDistillDenseOptions
from trainer.terms.bevdistill_heat import BevDistillHeat, BevDistillHeatOptions
from trainer.terms.bevdistill_instance import BevDistillInstance, BevDistillInstanceOptions
from trainer.terms.bevdistill_sparse import BevDistillSparse, BevDistillSparseOptions
from trainer.terms.fitnet import FitNet, FitNetOptions
from trainer.terms.monodistill import MonoDistill, MonoDistillOptions
from trainer.terms.set2set import Set2SetOptions
from trainer.terms.uvtr import Uvtr, UvtrOptions


def dense(**options: Any) -> nn.Module:
    statistics = (torch.randn(TEACHER), torch.rand(TEACHER) + 0.5)
    return BevDistillDense("t", 1.0, BevDistillDenseOptions(**options), STUDENT, TEACHER, a_student(), statistics)


def contrast(**options: Any) -> nn.Module:
    parsed = BevDistillContrastOptions(**{"width": 8, "embedding_channels": EMBEDDING, **options})
    channels = EMBEDDING if parsed.student == "embeddings" else STUDENT
    return BevDistillContrast("t", 1.0, parsed, channels, TEACHER, a_student())


def heat(**options: Any) -> nn.Module:
    parsed = BevDistillHeatOptions(convs=2, **options)
    frozen = FrozenAdaptor(np.random.default_rng(5).normal(0, 0.4, (TEACHER, TEACHER, 3, 3)), np.full(TEACHER, 0.3))
    read = frozen if parsed.teacher == "adaptor" else None
    return BevDistillHeat("t", 1.0, parsed, STUDENT, TEACHER, a_student(), read)


def sparse(**options: Any) -> nn.Module:
    return BevDistillSparse("t", 1.0, BevDistillSparseOptions(**options), a_student())


def instance(**options: Any) -> nn.Module:
    return BevDistillInstance("t", 1.0, BevDistillInstanceOptions(**options), a_student())


def mono(**options: Any) -> nn.Module:
    return MonoDistill("t", 1.0, MonoDistillOptions(block=4, **options), STUDENT, TEACHER, a_student())


def uvtr(**options: Any) -> nn.Module:
    return Uvtr("t", 1.0, UvtrOptions(**options), STUDENT, TEACHER, a_student())


def fitnet(**options: Any) -> nn.Module:
    return FitNet("t", 1.0, FitNetOptions(**options), STUDENT, TEACHER, a_student())


CASES: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: dense(),
    "dense pred": lambda: dense(mask="pred", distance="norm"),
    "dense none area": lambda: dense(mask="none", normaliser="area", reduce="sum"),
    "dense paper": lambda: dense(distance="norm", normaliser="area", reduce="sum"),
    "sparse": lambda: sparse(),
    "sparse released": lambda: sparse(
        objects="queries", quality="score", released_square=True, class_weight=0.0, top=3
    ),
    "sparse last": lambda: sparse(layers="last", gamma=0.3, background=0.2),
    "instance": lambda: instance(),
    "instance queries": lambda: instance(objects="queries", quality="score"),
    "contrast boxes": lambda: contrast(),
    "contrast boxes cells": lambda: contrast(teacher="cells", objects="queries", apart_cells=0.5),
    "contrast embeddings": lambda: contrast(student="embeddings", symmetric=True),
    "contrast cells": lambda: contrast(places="cells", limit=9, critic="crd", noise=2.0),
    "contrast queries": lambda: contrast(places="queries", layers="all", apart_cells=0.0),
    "heat adaptor": lambda: heat(dense_weight=1.0),
    "heat whole map": lambda: heat(over="map", dense_weight=1.0),
    "heat level": lambda: heat(teacher="level", dense_weight=1.0, reduce="mean"),
    "fitnet": lambda: fitnet(),
    "fitnet none": lambda: fitnet(mask="none"),
    "set2set": lambda: BevDistillSparse("t", 1.0, Set2SetOptions(top=4).sparse(), a_student()),
    "mono": lambda: mono(),
    "mono every cell": lambda: mono(over="every_cell"),
    "uvtr": lambda: uvtr(),
    "uvtr queries": lambda: uvtr(places="queries"),
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_term(case: str) -> nn.Module:
    """With batch norms in their evaluation mode: theirs are the only statistics that frames share."""
    torch.manual_seed(1)
    term = CASES[case]().double().train()
    for module in term.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return term


@every_case
@pytest.mark.parametrize("every_cell", [True, False])
def test_numerators_and_normalisers_of_single_frames_sum_to_those_of_the_batch(case: str, every_cell: bool) -> None:
    frames = a_world(3, frames=4, every_cell=every_cell)
    assert (len(frames[EMPTY].cells) == 0) != every_cell
    term = a_term(case)
    whole = parts_of(term, frames)
    single = [parts_of(term, [frame]) for frame in frames]
    for name, part in whole.items():
        for side in ("numerator", "normaliser"):
            wanted = sum(getattr(parts[name], side) for parts in single)
            assert torch.allclose(getattr(part, side), wanted, rtol=1e-10, atol=1e-12), (name, side)
    if every_cell or "queries" not in case:
        assert any(part.numerator.abs().sum() > 0 for part in whole.values())


@pytest.mark.parametrize("case", ["dense", "dense paper", "contrast cells", "heat level", "fitnet", "mono", "uvtr"])
def test_stored_cells_give_the_very_loss_and_gradient_of_every_cell(case: str) -> None:
    """What a live teacher says of the whole map adds nothing to the cells that a store keeps of it."""
    term = a_term(case)
    live, stored = a_world(9, every_cell=True), a_world(9, every_cell=False)
    for frame, other in zip(live, stored, strict=True):
        kept = np.isin(frame.cells.index, other.cells.index)
        assert np.array_equal(frame.cells.values[kept], other.cells.values)
        assert kept.sum() < len(kept)
        other.cell_logits[:] = frame.cell_logits[kept]
        other.adapted.values[:] = frame.adapted.values[kept]
        other.answer.update({name: leaf.detach().clone().requires_grad_() for name, leaf in frame.answer.items()})
    one, two = loss_of(term, live), loss_of(term, stored)
    assert one.item() == two.item() > 0
    for a, b in zip(gradients(one, leaves_of(live)), gradients(two, leaves_of(stored)), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-15)


@every_case
def test_without_objects_it_is_zero_and_gradients_are_finite(case: str) -> None:
    term, frames = a_term(case), [a_frame(7, AUGMENTS[1], objects=0, every_cell=False)]
    parts = parts_of(term, frames)
    loss = torch.stack(list(total_of(parts).values())).sum()
    loss.backward()
    given = [leaf.grad for leaf in leaves_of(frames) if leaf.grad is not None]
    given += [p.grad for p in term.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in given)
    zero = {name: part.value().item() for name, part in parts.items() if not name.endswith(".heat")}
    assert set(zero.values()) <= {0.0}, zero
    assert all(part.normaliser.sum() == 0 for part in parts.values())


@every_case
def test_gradients_equal_differences(case: str) -> None:
    term, frames = a_term(case), [a_frame(11, AUGMENTS[1])]
    leaves = [leaf for leaf in leaves_of(frames) if leaf.requires_grad]
    names = list(frames[0].answer)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        changed = dataclasses.replace(frames[0], answer=dict(zip(names, values, strict=True)))
        out = loss_of(term, [changed])
        return out + sum(0 * value.sum() for value in values)

    if "pred" in case or "queries" in case:  # read without gradient by design: nudging them moves the loss
        detached = ("heatmap",) if "pred" in case else ("query_boxes",) if "uvtr" in case or "contrast" in case else ()
        for name, leaf in frames[0].answer.items():
            leaf.requires_grad_(not name.endswith(detached) if detached else True)
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True, eps=1e-7, atol=1e-5)


@every_case
def test_optimised_alone_it_falls(case: str) -> None:
    term, frames = a_term(case), a_world(6, frames=2)
    start = loss_of(term, frames).item()
    optimiser = torch.optim.Adam([*leaves_of(frames), *term.parameters()], lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        loss = loss_of(term, frames)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.7 * start, (start, loss.item())


@pytest.mark.parametrize("case", [case for case in CASES if "heat" not in case])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_moving_world_and_student_together_leaves_the_loss_as_it_was(case: str, axis: str) -> None:
    """The student of a mirrored world that answers with the mirrored answer is as right as before: exact."""
    term, frames = a_term(case), [dataclasses.replace(f, augment=BevAugment()) for f in a_world(6, frames=2)]
    plain = parts_of(term, frames)
    mirrored = parts_of(term, [mirror(frame, axis) for frame in frames])
    for name, part in plain.items():
        assert torch.allclose(part.numerator, mirrored[name].numerator, rtol=1e-9, atol=1e-11), name
        assert torch.allclose(part.normaliser, mirrored[name].normaliser, rtol=1e-9), name


def mirror(frame: Frame, axis: str) -> Frame:
    """The frame under a flip that changes the sign of `axis`, and the student's answer with it."""
    x = axis == "x"
    answer = {name: leaf.detach().clone() for name, leaf in frame.answer.items()}
    for name in ("bev", *(f"{g}.{branch}" for g in range(len(GROUPS)) for branch in
                          ("heatmap", "center", "height", "dim", "rot", "vel"))):  # fmt: skip
        answer[name] = answer[name].flip(2 if x else 1)
    for g in range(len(GROUPS)):
        answer[f"{g}.center"][0 if x else 1] = 1 - answer[f"{g}.center"][0 if x else 1]
        answer[f"{g}.rot"][1 if x else 0] *= -1
        answer[f"{g}.vel"][0 if x else 1] *= -1
    for number in (0, 7, 8) if x else (1, 6, 9):
        answer["query_boxes"][..., number] *= -1
    flip = BevAugment(flip_x=x, flip_y=not x)
    return dataclasses.replace(frame, augment=flip, answer={n: a.requires_grad_() for n, a in answer.items()})


@every_case
def test_bf16_answers_under_autocast_are_compared_in_fp32(case: str) -> None:
    term, frames = a_term(case).float(), a_world(8, frames=2)
    exact = output_of(frames)
    rounded = DetectorOutput(
        exact.bev.bfloat16(),
        [{name: values.bfloat16() for name, values in maps.items()} for maps in exact.heads],
        queries=QueryOutput(
            exact.queries.logits.bfloat16(),
            exact.queries.boxes.bfloat16(),
            exact.queries.references,
            exact.queries.embeddings.bfloat16(),
        ),
    )
    said, batch = single_precision(said_of(frames)), batch_of(frames)
    batch = dataclasses.replace(batch, boxes=[boxes.float() for boxes in batch.boxes])
    with torch.autocast("cpu", torch.bfloat16):
        parts = term(rounded, batch, said)
    plain = DetectorOutput(
        rounded.bev.float(),
        [{name: values.float() for name, values in maps.items()} for maps in rounded.heads],
        queries=QueryOutput(
            rounded.queries.logits.float(),
            rounded.queries.boxes.float(),
            rounded.queries.references,
            rounded.queries.embeddings.float(),
        ),
    )
    wanted = term(plain, batch, said)
    for name, part in parts.items():
        assert part.numerator.dtype == torch.float32, name
        assert part.normaliser.dtype == torch.float32, name
        assert torch.allclose(part.numerator, wanted[name].numerator, rtol=1e-6), name


def single_precision(said: Any) -> Any:
    def single(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.float() if value.is_floating_point() else value
        if isinstance(value, list):
            return [single(item) for item in value]
        if isinstance(value, dict):
            return {name: single(item) for name, item in value.items()}
        if dataclasses.is_dataclass(value) and hasattr(value, "offsets"):
            return dataclasses.replace(value, values=value.values.half(), weights=value.weights.float())
        return value

    return dataclasses.replace(
        said, **{f.name: single(getattr(said, f.name)) for f in dataclasses.fields(said) if f.name != "grid"}
    )
