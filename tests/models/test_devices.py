"""The same maps, boxes, losses and gradients on a GPU as on the CPU; skipped without one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from models.build import build_detector
from models.detector import Batch, total_of
from tests.models.synthetic import BEVDEPTH, BEVDET, BEVFORMER, CAMERA, LIDAR, QUERIES, VOXEL, synthetic_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine")

EVERY = pytest.mark.parametrize(
    "config",
    [LIDAR, VOXEL, CAMERA, BEVDEPTH, BEVDET, QUERIES, BEVFORMER],
    ids=["lidar", "voxel", "camera", "bevdepth", "bevdet", "queries", "bevformer"],
)
# Relative to the largest value of a map, fp32 without tf32: sums in another order, a few hundred terms deep.
MAPS, GRADIENTS, BOXES_M = 1e-4, 1e-2, 1e-2  # gradients: of their norm


@pytest.fixture(autouse=True)
def _exact_products():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def both(config, batch: Batch):
    """One model and its twin on the GPU, with the batch of each."""
    torch.manual_seed(0)
    here, there = build_detector(config), build_detector(config)
    there.load_state_dict(here.state_dict())
    return (here, batch), (there.to("cuda"), batch.to("cuda"))


def near(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=share * max(largest, 1e-6), rtol=0)


@EVERY
def test_maps_and_boxes_are_those_of_the_cpu(config):
    (here, mine), (there, theirs) = both(config, synthetic_batch())
    with torch.no_grad():
        expected, found = here.eval()(mine), there.eval()(theirs)
    near(found.bev, expected.bev, MAPS)
    for name, level in expected.levels.items():
        near(found.levels[name], level, MAPS)
    for ours, others in zip(expected.heads, found.heads, strict=True):
        for name, value in ours.items():
            near(others[name], value, MAPS)
    if expected.depth_logits is not None:
        near(found.depth_logits, expected.depth_logits, MAPS)
    if expected.queries is not None:
        near(found.queries.logits, expected.queries.logits, MAPS)
        near(found.queries.boxes, expected.queries.boxes, MAPS)
    for ours, others in zip(here.decode(expected), there.decode(found), strict=True):
        best = ours.scores > float(np.median(ours.scores)) + 1e-3  # ranks of near ties may change
        distance = np.abs(ours.boxes_lidar[best, None, :2] - others.boxes_lidar[None, :, :2]).max(axis=2)
        assert (distance.min(axis=1) < BOXES_M).all()


@EVERY
def test_losses_and_gradients_are_those_of_the_cpu(config):
    losses, gradients = [], []
    for model, batch in both(config, synthetic_batch()):
        parts = total_of(model.loss_parts(model.train()(batch), batch))
        torch.stack([value.cpu() for value in parts.values()]).sum().backward()
        losses.append(torch.stack([value.detach().cpu() for value in parts.values()]))
        gradients.append(torch.cat([p.grad.cpu().flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=1e-3)
    assert (gradients[1] - gradients[0]).norm() < GRADIENTS * gradients[0].norm()


@EVERY
def test_frames_without_points_and_objects_are_taken_there_too(config):
    batch = synthetic_batch(objects=0)
    batch = dataclasses.replace(
        batch, points=[cloud[:0] for cloud in batch.points], depth_points=batch.depth_points[:0]
    )
    _, (model, theirs) = both(config, batch)
    assert all(bool(torch.isfinite(value)) for value in model.loss(model.train()(theirs), theirs).values())
