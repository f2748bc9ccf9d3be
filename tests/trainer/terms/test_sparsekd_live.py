"""Cached equals live: what a store keeps of a teacher gives the loss and gradient of all that the teacher says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.terms.sparsekd_builders import CHANNELS, COARSE, FINE, STUDENT_CHANNELS, World, a_student, value_of
from trainer.terms.box_features import BoxFeatures, MimicOptions
from trainer.terms.masked_features import FgOptions, MaskedFeatures
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
    return MaskedFeatures("t", 1.0, FgOptions(), STUDENT_CHANNELS, CHANNELS, a_student(grid)).double()


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
