"""Cached equals live: what a store keeps of a teacher gives the loss and gradient of all that the teacher says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from models.build import build_detector
from models.center_head import BRANCHES
from models.detector import Batch, total_of
from tests.models.synthetic import synthetic_batch
from tests.trainer.synthetic import TINY_TEACHER
from tests.trainer.terms.sparsekd_builders import CHANNELS, COARSE, FINE, STUDENT_CHANNELS, World, a_student, value_of
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.box_features import BoxFeatures, MimicOptions
from trainer.terms.fitnet import FgOptions, FitNet
from trainer.terms.registry import RELABELS
from trainer.terms.registry import TERMS as ALL_TERMS
from trainer.terms.sparsekd_logits import SparseKdLogits, SparseKdLogitsOptions
from trainer.terms.sparsekd_regression import SparseKdRegression, SparseKdRegressionOptions


class LiveWorld(World):
    """The teacher in the loop: every cell of its maps is at hand, with the weights that the store's selectors give."""

    def kept(self, b: int) -> np.ndarray:
        return np.arange(self.grid.height * self.grid.width)


def logits(grid: Any) -> Any:
    return SparseKdLogits("t", 1.0, SparseKdLogitsOptions(selectors=("gaussian*confident",)), a_student(grid))


def regression(grid: Any) -> Any:
    return SparseKdRegression("t", 1.0, SparseKdRegressionOptions(), a_student(grid), FINE)


def fg(grid: Any) -> Any:
    torch.manual_seed(0)
    return FitNet("t", 1.0, FgOptions(), STUDENT_CHANNELS, CHANNELS, a_student(grid)).double()


@pytest.mark.parametrize("make", [logits, regression, fg])
@pytest.mark.parametrize("grid", [FINE, COARSE])
def test_the_stored_cells_give_the_loss_and_gradient_of_the_whole_maps(make: Callable[[Any], Any], grid: Any) -> None:
    stored, live = World(81, student_grid=grid), LiveWorld(81, student_grid=grid)
    live.weights[:, 2] = stored.weights[:, 2]
    assert len(stored.said().cells.index) < len(live.said().cells.index)
    found = []
    for world in (stored, live):
        loss = value_of(make(grid), world)
        wanted = [tensor for name, tensor in world.student.items()]
        found.append((loss, torch.autograd.grad(loss, wanted, allow_unused=True)))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-12) and found[0][0].item() > 1e-3
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, rtol=1e-10, atol=1e-14)


def test_points_of_boxes_read_from_a_wide_enough_footprint_are_those_of_the_whole_map() -> None:
    """A margin of 1.5 cells around each box holds all that bilinear reading needs."""
    stored, live = World(82), LiveWorld(82)
    centres = FINE.centres()
    for b, boxes in enumerate(stored.boxes):
        stored.weights[b] = 0
        for box in boxes:
            local = centres - box[:2]
            along = local[..., 0] * np.cos(box[6]) + local[..., 1] * np.sin(box[6])
            across = -local[..., 0] * np.sin(box[6]) + local[..., 1] * np.cos(box[6])
            inside = (abs(along) <= box[3] / 2 + 1.2) & (abs(across) <= box[4] / 2 + 1.2)
            stored.weights[b, 2] = np.maximum(stored.weights[b, 2], inside)
    torch.manual_seed(0)
    options = MimicOptions(source="cells", selector="dense")
    term = BoxFeatures("t", 1.0, options, STUDENT_CHANNELS, CHANNELS, a_student()).double()
    parts = [term(world.output(), world.batch(), world.said())["t"] for world in (stored, live)]
    assert parts[0].normaliser.item() == parts[1].normaliser.item() > 300
    assert parts[0].numerator.item() == pytest.approx(parts[1].numerator.item(), rel=1e-12)


NAMES = ("sparsekd_logits", "sparsekd_regression", "kd_logits", "gid_logits", "fg", "mimic", "gid_features")
TERMS = {name: ALL_TERMS[name] for name in NAMES}


def live_said(teacher: Any, batch: Batch) -> TeacherSaid:
    """What a teacher in the loop says: every cell of its maps, with made-up weights."""
    with torch.no_grad():
        output = teacher.eval()(batch)
    frames, size = len(batch.boxes), teacher.grid.height * teacher.grid.width

    def rows(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).transpose(1, 2).reshape(frames * size, -1)

    weights = torch.rand(frames * size, 3)
    cells = TeacherCells(
        torch.arange(size).repeat(frames),
        rows(output.bev),
        weights,
        torch.arange(frames + 1) * size,
        ("gaussian*confident", "gaussian", "dense"),
    )
    columns, first = {}, 0
    for name, channels in BRANCHES.items():
        columns[name] = slice(first, first + channels)
        first += channels
    found = teacher.decode(output)
    item = "samples(points=7x7)"
    return TeacherSaid(
        teacher.grid,
        cells,
        logits=rows(output.heads[0]["heatmap"]),
        regression=rows(torch.cat([output.heads[0][name] for name in BRANCHES], dim=1)),
        regression_columns=(columns,),
        groups=(teacher.heat_classes,),
        boxes=[torch.from_numpy(f.boxes_lidar) for f in found],
        scores=[torch.from_numpy(f.scores) for f in found],
        labels=[torch.from_numpy(f.labels).long() for f in found],
        samples={item: [torch.randn(len(boxes), 49, output.bev.shape[1]) for boxes in batch.boxes]},
        sample_inside={item: [torch.ones(len(boxes), 49, dtype=torch.bool) for boxes in batch.boxes]},
    )


def test_all_of_them_together_train_a_real_student_under_autocast() -> None:
    torch.manual_seed(0)
    student: Any = build_detector({**TINY_TEACHER, "pillars": {"cell_m": 3.2}}).train()
    teacher: Any = build_detector(TINY_TEACHER)
    batch = dataclasses.replace(
        synthetic_batch(frames=2, objects=4, points=500), bev_augmentation=torch.eye(4).expand(2, 4, 4)
    )
    said = live_said(teacher, batch)
    assert said.grid != student.grid
    store_like: Any = type("Store", (), {"grid": said.grid, "bev": type("Bev", (), {"channels": teacher.bev_channels})})
    terms = [kind.build(name, 1.0, kind.options(), student, store_like, []) for name, kind in TERMS.items()]
    with torch.autocast("cpu", torch.bfloat16):
        output = student(batch)
    options, build = RELABELS["sparsekd_label"].options, RELABELS["sparsekd_label"].build
    relabelled = build("label", options(threshold=0.05))(batch, said)
    parts = student.loss_parts(output, relabelled.batch)
    for term in terms:
        parts.update(term(output, batch, said))
    values = total_of(parts)
    assert {name for name in TERMS if name != "gid_logits"} <= {n for n, v in values.items() if v.item() > 0}
    torch.stack(list(values.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for term in terms for p in term.parameters())
    assert relabelled.counts["label/kept"] > 0
