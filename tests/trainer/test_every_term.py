"""What holds for every term of the registry, whatever its formula: on real stores and a student's real answers, under
an augmentation, in fp64. A term that has no case, or no loop-written reference, makes these tests fail."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cache.errors import BevcaskError
from models.detector import Batch, DetectorOutput, LossPart, total_of
from models.pictures import ImageAugment
from tests.trainer.terms.references import REFERENCES, Where, watched
from tests.trainer.test_cached_equals_live import (
    CASES,
    Case,
    World,
    answers,
    kept_boxes,
    leaves_of,
    options_of,
    world,
)
from trainer.augment import BevAugment, FrameAugment
from trainer.batches import BatchBuilder, Needs
from trainer.said import TeacherCells, TeacherSaid
from trainer.said_reader import SaidReader, Wanted
from trainer.terms import RELABELS, TERMS, require_served

__all__ = ["answers", "world"]  # fixtures: stores of four teachers, and what three students answer

LOSSES = [pytest.param(case, id=str(case) + case.options[:24]) for case in CASES if case.term in TERMS]
every_loss = pytest.mark.parametrize("case", LOSSES)

WAYS: tuple[Where, ...] = ("value", "gradient")


@pytest.mark.parametrize("name", TERMS)
def test_a_formula_in_loops_holds_every_part_of_a_term(name: str, world: World, answers: Any) -> None:
    """The comparison, which passes on the term as it is (tests/trainer/terms), fails where one of the parts that the
    term has is a thousandth off, be it in its gradient alone."""
    assert name in REFERENCES, f"term {name}: write a test against a formula in loops, and name it in references.py"
    case = next((case for case in CASES if case.term == name), None)
    assert case is not None, f"term {name}: give it a case in test_cached_equals_live.py"
    parts = {part.removeprefix(name) for part in scene(case, world, answers).parts()}
    check, arguments = REFERENCES[name].check, REFERENCES[name].arguments
    for part in parts:
        for where in WAYS:
            with watched(name, part, where) as seen, pytest.raises(AssertionError):
                check(**arguments)
            assert parts <= seen, f"{check.__module__} compares {sorted(seen)} of {name}, which has {sorted(parts)}"


def test_no_reference_is_of_a_term_that_is_gone() -> None:
    assert set(REFERENCES) == set(TERMS)
    assert {case.term for case in CASES} <= {*TERMS, *RELABELS}


@pytest.mark.parametrize("name", TERMS)
def test_whatever_store_and_student_it_meets_a_term_serves_or_is_refused(name: str, world: World, answers: Any) -> None:
    """By an error of ours that names it, before its first step; never by one of torch's."""
    kind, rows, served = TERMS[name], [0, 1], 0
    refusals: list[str] = []
    options = kind.options()
    for store in (store for (_, dtype), store in world.teachers.items() if dtype == "float16"):
        for student, augment in answers:
            model, batch, answer = answers[student, augment]
            try:
                require_served(name, kind.needs(options), store, model)
                term = kind.build(name, 1.0, options, model, store, rows)
            except BevcaskError as error:
                refusals.append(str(error))
                continue
            reader = SaidReader(store, world.frames, Wanted.by([kind.needs(options)], store))
            said = reader.read(rows, rows, kept_boxes(world.frames, rows))
            assert all(bool(torch.isfinite(loss)) for loss in total_of(term(answer, batch, said)).values())
            served += 1
    assert served
    assert all(f"term {name}: " in refusal for refusal in refusals)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A term, a student's answer as fp64 leaves, and what it reads beside it."""

    term: Any
    output: DetectorOutput
    leaves: list[Tensor]
    batch: Batch
    said: TeacherSaid

    def parts(self, output: DetectorOutput | None = None) -> dict[str, LossPart]:
        parts: dict[str, LossPart] = self.term(output or self.output, self.batch, self.said)
        return parts

    def loss(self) -> Tensor:
        return torch.stack(list(total_of(self.parts()).values())).sum()


def scene(case: Case, made: World, found: Any, rows: tuple[int, ...] = (0, 1)) -> Scene:
    student, _, answer = found[case.student, "moved"]
    store, kind, options = made.teachers[case.teacher, "float16"], TERMS[case.term], options_of(case)
    lidar = student.modality == "lidar"
    needs = Needs(points=lidar, image_size=None if lidar else (64, 32), depth=not lidar, labels=True)
    bev = BevAugment(rotation_rad=0.3, scale=1.04, flip_x=True)
    augment = FrameAugment(bev, (ImageAugment(resize=1.1, flip=True),) * 6)
    batch, _ = BatchBuilder(made.frames, needs).build(list(rows), [augment] * len(rows))
    reader = SaidReader(store, made.frames, Wanted.by([kind.needs(options)], store))
    said = reader.read(rows, rows, kept_boxes(made.frames, list(rows)))
    torch.manual_seed(3)
    term = kind.build(case.term, 1.0, options, student, store, [0, 1]).double().train()
    for module in term.modules():  # a batch norm's statistics are the one thing that frames share
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    output, leaves = leaves_of(in_double(only(answer, rows)))
    return Scene(term, output, list(leaves.values()), batch, in_double(said))


def only(answer: DetectorOutput, rows: tuple[int, ...]) -> DetectorOutput:
    """The answers to these frames of a batch."""
    at, depth, queries = list(rows), answer.depth_logits, answer.queries
    return DetectorOutput(
        answer.bev[at],
        [{name: values[at] for name, values in maps.items()} for maps in answer.heads],
        None if depth is None else depth.unflatten(0, (-1, 6))[at].flatten(0, 1),
        {name: values[at] for name, values in answer.levels.items()},
        queries
        and dataclasses.replace(
            queries,
            logits=queries.logits[:, at],
            boxes=queries.boxes[:, at],
            references=queries.references[:, at],
            embeddings=queries.embeddings[at],
        ),
    )


def in_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list):
        return [in_double(item) for item in value]
    if isinstance(value, dict):
        return {name: in_double(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(in_double(getattr(value, f.name)) for f in dataclasses.fields(value)))
    return value


@every_loss
def test_single_frames_sum_to_the_batch(case: Case, world: World, answers: Any) -> None:
    whole = scene(case, world, answers).parts()
    single = [scene(case, world, answers, (row,)).parts() for row in (0, 1)]
    assert any(bool(part.numerator.abs().sum() > 0) for part in whole.values())
    for name, part in whole.items():
        for side in ("numerator", "normaliser"):
            wanted = getattr(single[0][name], side) + getattr(single[1][name], side)
            torch.testing.assert_close(getattr(part, side), wanted, rtol=1e-9, atol=1e-11, msg=f"{name}: {side}")


@every_loss
def test_gradients_equal_differences(case: Case, world: World, answers: Any) -> None:
    """Along random directions of all that has a gradient."""
    made = scene(case, world, answers)
    wanted = [*made.leaves, *made.term.parameters()]
    gradients = torch.autograd.grad(made.loss(), wanted, allow_unused=True)
    used = [(value, gradient) for value, gradient in zip(wanted, gradients, strict=True) if gradient is not None]
    assert used and any(bool(gradient.abs().sum() > 0) for _, gradient in used)
    if '"places": "queries"' in case.options:  # where the queries look is read without gradient by design
        used = [(value, gradient) for value, gradient in used if gradient.abs().sum() > 0]
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        ways = [torch.randn(value.shape, dtype=value.dtype, generator=generator) for value, _ in used]
        slope = sum(float((gradient * way).sum()) for (_, gradient), way in zip(used, ways, strict=True))
        ends, step = [], 1e-7
        for sign in (1, -1):
            with torch.no_grad():
                for (value, _), way in zip(used, ways, strict=True):
                    value.add_(way, alpha=sign * step)
            ends.append(float(made.loss().detach()))
            with torch.no_grad():
                for (value, _), way in zip(used, ways, strict=True):
                    value.sub_(way, alpha=sign * step)
        scale = (
            sum(float((gradient * way).square().sum()) for (_, gradient), way in zip(used, ways, strict=True)) ** 0.5
        )
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-4 * scale + 1e-7)


def emptied(cells: TeacherCells) -> TeacherCells:
    none = torch.zeros(0, dtype=torch.int64)
    return dataclasses.replace(
        cells, index=none, values=cells.values[:0], weights=cells.weights[:0], offsets=torch.zeros_like(cells.offsets)
    )


def nothing_there(made: Scene) -> Scene:
    """The same frames where nobody annotated, stored, found or measured anything."""
    said, batch = made.said, made.batch
    empty: dict[str, Any] = {"levels": {name: emptied(cells) for name, cells in said.levels.items()}}
    empty |= {name: [part[:0] for part in getattr(said, name)] for name in ("boxes", "scores", "labels")}
    empty |= {name: [part[:0] for part in getattr(said, name)] for name in ("query_logits", "query_boxes")}
    empty |= {
        name: {item: [part[:0] for part in parts] for item, parts in getattr(said, name).items()}
        for name in ("samples", "sample_inside")
    }
    for name in ("logits", "regression"):
        values = getattr(said, name)
        empty[name] = None if values is None else values[:0]
    empty["cells"] = None if said.cells is None else emptied(said.cells)
    nobody = dataclasses.replace(
        batch,
        boxes=[boxes[:0] for boxes in batch.boxes],
        labels=[labels[:0] for labels in batch.labels],
        depth_points=None if batch.depth_points is None else batch.depth_points[:0],
    )
    return dataclasses.replace(made, said=dataclasses.replace(said, **empty), batch=nobody)


@every_loss
def test_frames_with_nothing_give_zero_and_finite_gradients(case: Case, world: World, answers: Any) -> None:
    made = nothing_there(scene(case, world, answers))
    if '"places": "queries"' in case.options or case.options == '{"mask": "none"}':
        assert not made.said.cells or not len(made.said.cells.index)
    parts = made.parts()
    assert parts and all(float(part.value().detach()) == 0 for part in parts.values())
    assert all(not bool(part.normaliser.any()) for part in parts.values())
    loss = torch.stack(list(total_of(parts).values())).sum()
    if loss.requires_grad:
        found = torch.autograd.grad(loss, [*made.leaves, *made.term.parameters()], allow_unused=True)
        assert all(bool((gradient == 0).all()) for gradient in found if gradient is not None)


@every_loss
def test_it_falls_when_a_student_is_optimised_on_it_alone(case: Case, world: World, answers: Any) -> None:
    """At one of three rates, since losses differ in scale: to a half within 40 steps, or by a tenth at their end; a
    contrast of objects that differ, to a tenth."""
    contrast, reached = case.term == "bevdistill_contrast", []
    early, late = (0.1, 0.1) if contrast else (0.5, 0.9)
    for rate in (0.03, 0.1, 0.003):
        made = scene(case, world, answers)
        made = with_distinct_objects(made) if contrast else made
        # at a student's rate the heads of a contrast throw all objects onto one point before they tell them apart
        own: dict[str, Any] = {"params": list(made.term.parameters()), "lr": 1e-3 if contrast else rate}
        optimiser, share = torch.optim.Adam([{"params": made.leaves}, own], rate), 1.0
        start = made.loss()
        loss = start
        for _ in range(40):
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss = made.loss()
            share = float(loss.detach() / start.detach())
            if 0 <= share < early:
                return
        if 0 <= share < late:
            return
        reached.append(share)
    raise AssertionError(f"of its first value it reached {reached}")


def with_distinct_objects(made: Scene) -> Scene:
    """A teacher that has learnt nothing says much the same of every object, so that in 40 steps their contrast falls to
    log(objects) alone, its value where all are one; here they differ by as much as they are large."""

    def spread(parts: list[Tensor]) -> list[Tensor]:
        values = torch.cat(parts)
        if not len(values):
            return parts
        flat = values.flatten(0, -2)
        return list(((values - flat.mean(0)) / flat.std(0).clamp(min=1e-9)).split([len(part) for part in parts]))

    said = made.said
    cells = said.cells and dataclasses.replace(said.cells, values=spread([said.cells.values])[0])
    samples = {name: spread(parts) for name, parts in said.samples.items()}
    return dataclasses.replace(made, said=dataclasses.replace(said, cells=cells, samples=samples))


@every_loss
def test_five_hundred_objects_a_frame_are_finite(case: Case, world: World, answers: Any) -> None:
    made = scene(case, world, answers)
    said, batch = made.said, made.batch

    def many(parts: list[Tensor]) -> list[Tensor]:
        return [part[torch.arange(500) % len(part)] if len(part) else part for part in parts]

    crowd: dict[str, Any] = {name: many(getattr(said, name)) for name in ("boxes", "scores", "labels")}
    crowd |= {
        name: {item: many(parts) for item, parts in getattr(said, name).items()}
        for name in ("samples", "sample_inside")
    }
    crowded = dataclasses.replace(batch, boxes=many(batch.boxes), labels=many(batch.labels))
    full = dataclasses.replace(made, said=dataclasses.replace(said, **crowd), batch=crowded)
    loss = full.loss()
    found = torch.autograd.grad(loss, [*full.leaves, *full.term.parameters()], allow_unused=True)
    assert bool(torch.isfinite(loss)) and all(bool(torch.isfinite(g).all()) for g in found if g is not None)
