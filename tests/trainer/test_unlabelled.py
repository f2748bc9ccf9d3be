"""Training on unlabelled frames too: drawn evenly, judged by depth and teacher alone, counted, exactly resumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache.errors import ConfigError, StoreError
from cache.files import file_sha256
from cache.frame import CAMERA_CHANNELS
from cache.store import FrameStore
from models.build import build_detector
from models.detector import Batch, Detector, total_of
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, write_frames, write_teacher
from tests.trainer.test_loop import AUGMENTATION, killed_at, losses, quiet
from trainer.augment import no_augment
from trainer.batches import BatchBuilder
from trainer.loop import train
from trainer.order import epoch_list, epoch_order
from trainer.plan import make_plan, said_reader, training_needs
from trainer.recipe import Recipe, load_recipe, make_recipe
from trainer.run_files import WEIGHTS
from trainer.setup import make_training
from trainer.step import train_step

BOXES = (5, 0, 3)
UNLABELLED = (1, 3, 4)  # of 0..5, so that the first shard has one and the second two
BOX_PARTS = ("heatmap", "center", "height", "dim", "rot", "vel")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames, three of them unlabelled, and the teacher `demo` with the selectors gaussian and dense."""
    root = tmp_path_factory.mktemp("mixed") / "cache"
    write_frames(root, boxes=BOXES, unlabelled=UNLABELLED)
    write_teacher(root, boxes=BOXES, coverage="gaussian(dilate=0)+dense", unlabelled=UNLABELLED)
    return root


def recipe(
    kind: str = "camera", share: float = 1.0, selector: str | None = "dense", depth: bool = True, **more: Any
) -> Recipe:
    terms = [] if selector is None else [{"name": "bevdistill_dense", "options": {"selector": selector}}]
    model = TINY_STUDENT
    if kind == "lidar":  # on the grid of the teacher store
        model = {**TINY_TEACHER, "pillars": {"cell_m": 1.6}}
    data = {**AUGMENTATION, "teacher": "demo" if terms else "", "depth": depth, "unlabelled_per_labelled": share}
    settings = {"steps": 6, "batch": 2, "lr": 1e-3, "log_every": 1, "checkpoint_every": 2, "ema": 0.9, **more}
    return make_recipe({"model": model, "data": data, "train": settings, "terms": terms}, "test", kind)


def the_batch(cache: Path, kind: str, rows: list[int]) -> Batch:
    """The frames of these rows as a step of training reads them, without augmentation."""
    chosen = recipe(kind, selector=None)
    builder = BatchBuilder(FrameStore(cache / "frames"), training_needs(the_model(kind), chosen))
    return builder.build(rows, [no_augment(len(CAMERA_CHANNELS))] * len(rows))[0]


def the_model(kind: str) -> Detector:
    torch.manual_seed(0)
    return build_detector(recipe(kind, selector=None).model).eval()


def box_loss(model: Detector, batch: Batch) -> tuple[dict[str, Any], list[Tensor]]:
    """What is learnt from boxes, and its gradient by every parameter, each frame by itself in the norms (eval)."""
    module = cast(nn.Module, model)
    module.zero_grad()
    parts = {name: part for name, part in model.loss_parts(model(batch), batch).items() if name in BOX_PARTS}
    torch.stack(list(total_of(parts).values())).sum().backward()
    return parts, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_every_epoch_has_all_labelled_entries_and_other_unlabelled_ones() -> None:
    for labelled, unlabelled, drawn in ((5, 7, 3), (4, 4, 4), (1, 10, 1), (6, 9, 8)):
        used = np.zeros(unlabelled, int)
        turn = -(-unlabelled // drawn)
        for epoch in range(3 * turn):
            entries = epoch_list(3, epoch, labelled, unlabelled, drawn)
            assert len(set(entries.tolist())) == len(entries) == labelled + drawn
            assert set(range(labelled)) <= set(entries.tolist()) <= set(range(labelled + unlabelled))
            used[entries[entries >= labelled] - labelled] += 1
            assert entries.tolist() == epoch_list(3, epoch, labelled, unlabelled, drawn).tolist()
            if (epoch + 1) % turn == 0:
                times = (epoch + 1) // turn
                assert times <= used.min() and used.max() <= 2 * times
    assert epoch_list(3, 1, 9, 0, 0).tolist() == epoch_list(3, 1, 9, 5, 0).tolist() == epoch_order(3, 1, 9).tolist()
    first, second = (epoch_list(0, epoch, 2, 50, 5) for epoch in (0, 1))
    assert not set(first[first >= 2]) & set(second[second >= 2])


def test_a_batch_says_which_of_its_frames_are_labelled(mixed: Path) -> None:
    batch = the_batch(mixed, "camera", [0, 1, 2, 3])
    assert batch.labelled is not None and batch.labelled.tolist() == [True, False, True, False]
    assert [len(boxes) for boxes in batch.boxes] == [len(labels) for labels in batch.labels] == [4, 0, 2, 0]
    assert the_batch(mixed, "camera", [0, 2]).labelled is None
    moved = batch.to("meta")
    assert moved.labelled is not None and moved.labelled.device.type == "meta"


@pytest.mark.parametrize("kind", ["camera", "lidar"])
def test_a_mixed_batch_has_the_box_loss_and_gradient_of_its_labelled_part(mixed: Path, kind: str) -> None:
    model = the_model(kind)
    parts, gradients = box_loss(model, the_batch(mixed, kind, [1, 0, 3, 5]))
    expected, wanted = box_loss(model, the_batch(mixed, kind, [0, 5]))
    assert set(parts) == set(expected) == set(BOX_PARTS)
    for name, part in parts.items():
        torch.testing.assert_close(part.numerator, expected[name].numerator, rtol=1e-4, atol=1e-5)
        assert torch.equal(part.normaliser, expected[name].normaliser)
    scale = max(float(gradient.abs().max()) for gradient in wanted)
    assert scale > 0
    for gradient, other in zip(gradients, wanted, strict=True):
        assert float((gradient - other).abs().max()) < 1e-4 * scale
    blind = dataclasses.replace(
        the_batch(mixed, kind, [1, 0, 3, 5]), labelled=None
    )  # as if nothing stood on the others
    heat = [float(found["heatmap"].numerator.detach()) for found in (box_loss(model, blind)[0], parts)]
    assert heat[0] > 1.2 * heat[1]


@pytest.mark.parametrize("kind", ["camera", "lidar"])
def test_a_wholly_unlabelled_batch_teaches_nothing_about_boxes(mixed: Path, kind: str) -> None:
    parts, gradients = box_loss(the_model(kind), the_batch(mixed, kind, [1, 3]))
    assert not any(part.numerator.any() or part.normaliser.any() for part in parts.values())
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_depth_is_judged_on_both_kinds(mixed: Path) -> None:
    model = the_model("camera")
    judged = {}
    for name, rows in (("both", [0, 1]), ("labelled", [0]), ("unlabelled", [1])):
        batch = the_batch(mixed, "camera", rows)
        judged[name] = model.loss_parts(model(batch), batch)["depth"]
    assert float(judged["unlabelled"].normaliser) > 0
    for side in ("numerator", "normaliser"):
        whole, parts = getattr(judged["both"], side), [getattr(judged[n], side) for n in ("labelled", "unlabelled")]
        torch.testing.assert_close(whole, parts[0] + parts[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["camera", "lidar"])
def test_steps_on_any_mixture_are_finite(mixed: Path, kind: str) -> None:
    selector = "dense" if kind == "camera" else None
    plan = make_plan(recipe(kind, selector=selector), mixed)
    assert [plan.frames.is_labelled(row) for row in plan.rows] == [True] * 3 + [False] * 3
    training = make_training(plan, torch.device("cpu"))
    builder = BatchBuilder(plan.frames, training_needs(cast(Detector, training.model), plan.recipe), said_reader(plan))
    for step, entries in enumerate(([0, 3], [4, 5], [1, 2])):
        rows = [plan.rows[i] for i in entries]
        batch, cells = builder.build(rows, [no_augment(len(CAMERA_CHANNELS))] * 2)
        said = train_step(training, batch, cells, plan, step)
        assert all(np.isfinite(value) for value in said.values())
        assert (said["heatmap"] > 0) == (entries != [4, 5])


@pytest.mark.parametrize("selector", ["dense", "gaussian"])
def test_a_resumed_run_goes_on_exactly_and_counts_on(mixed: Path, tmp_path: Path, selector: str) -> None:
    chosen = recipe(selector=selector)
    result = train(chosen, mixed, tmp_path / "whole", progress=quiet)
    for step in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            train(chosen, mixed, tmp_path / "cut", resume=True, progress=killed_at(step))
    train(chosen, mixed, tmp_path / "cut", resume=True, progress=quiet)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert file_sha256(tmp_path / "cut" / WEIGHTS) == file_sha256(tmp_path / "whole" / WEIGHTS)
    lines = losses(tmp_path / "whole")
    # an epoch is three steps of two: three labelled frames and three others
    assert [line["unlabelled_frames"] for line in lines][2::3] == [3, 6]
    assert result.unlabelled_frames == 6
    counted = {} if selector == "dense" else {"bevdistill_dense": 6}
    assert result.skipped == counted == lines[-1]["skipped"]
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert (record["frames"], record["unlabelled_per_epoch"], record["skipped"]) == (3, 3, counted)
    again = train(chosen, mixed, tmp_path / "whole", resume=True, progress=quiet)
    assert (again.unlabelled_frames, again.skipped) == (6, counted)


def test_the_count_at_any_step_is_that_of_its_frames(mixed: Path) -> None:
    plan = make_plan(recipe(share=0.7, batch=2, steps=9), mixed)
    assert (plan.labelled, plan.drawn, plan.epoch_frames) == (3, 2, 5)
    counted = 0
    for step in range(9):
        assert plan.unlabelled_before(step) == counted
        epoch, within = divmod(step, 3)
        counted += int((plan.order(epoch)[2 * within : 2 * within + 2] >= 3).sum())


def test_by_default_nothing_changes(mixed: Path, tmp_path: Path) -> None:
    plan = make_plan(recipe(share=0.0, selector="gaussian"), mixed)
    assert (len(plan.rows), plan.drawn) == (3, 0)
    train(recipe(share=0.0, selector="gaussian", steps=2), mixed, tmp_path / "run", progress=quiet)
    assert not {"unlabelled_frames", "skipped"} & set(losses(tmp_path / "run")[0])


def test_no_more_are_drawn_than_there_are(mixed: Path) -> None:
    assert make_plan(recipe(share=100.0), mixed).drawn == 3
    assert make_plan(recipe(share=0.01), mixed).drawn == 1


def test_a_gaussian_term_adds_nothing_on_unlabelled_frames(mixed: Path) -> None:
    """So skipping is exact: the part of a mixed batch is that of its labelled frames."""
    values = {}
    for name, entries in (("mixed", [0, 3]), ("labelled", [0]), ("unlabelled", [3])):
        plan = make_plan(recipe(selector="gaussian", depth=True), mixed)
        training = make_training(plan, torch.device("cpu"))
        training.model.eval()
        builder = BatchBuilder(
            plan.frames, training_needs(cast(Detector, training.model), plan.recipe), said_reader(plan)
        )
        batch, said = builder.build([plan.rows[i] for i in entries], [no_augment(len(CAMERA_CHANNELS))] * len(entries))
        [term] = training.terms.values()
        [values[name]] = term(training.model(batch), batch, said["demo"]).values()
    assert not values["unlabelled"].normaliser.any() and not values["unlabelled"].numerator.any()
    assert float(values["labelled"].normaliser) > 0
    assert torch.equal(values["mixed"].normaliser, values["labelled"].normaliser)
    torch.testing.assert_close(values["mixed"].numerator, values["labelled"].numerator, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "selector", "said"),
    [("camera", None, "the recipe has no term"), ("camera", "gaussian", "needs the annotated boxes of gaussian")],
)
def test_frames_from_which_nothing_learns_are_refused(
    mixed: Path, tmp_path: Path, kind: str, selector: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"nothing learns from unlabelled frames: .*{said}.*unlabelled_per_labelled"):
        train(recipe(kind, selector=selector, depth=False), mixed, tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run").exists()


def test_a_store_without_unlabelled_frames_is_refused_with_the_flag_to_cache_with(cache: Path) -> None:
    with pytest.raises(StoreError, match=r"split 'train' has no unlabelled frame; .*--between N"):
        make_plan(recipe(), cache)


def test_the_recipe_refuses_a_share_that_is_none() -> None:
    for bad in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="unlabelled_per_labelled"):
            recipe(share=bad)


def test_the_shipped_recipe_is_the_distilled_one_with_a_selector_for_both_kinds() -> None:
    distilled, chosen = (load_recipe(name).to_dict() for name in ("demo-distilled", "demo-unlabelled"))
    assert chosen["data"].pop("unlabelled_per_labelled") == 1.0
    assert distilled["data"].pop("unlabelled_per_labelled") == 0.0
    assert chosen["terms"][0]["options"].pop("selector") == "confident"
    assert distilled["terms"][0]["options"].pop("selector") == "gaussian"
    for values in (distilled, chosen):
        del values["name"]
    assert chosen == distilled
