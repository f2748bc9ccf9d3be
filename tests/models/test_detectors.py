"""Claims that hold for every detector: protocol, learning, empty frames, bf16, and no Python loop over data."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cache.errors import DataError
from cache.frame import Detections
from models.build import build_detector
from models.detector import Batch, Detector
from tests.models.synthetic import (
    BEVDEPTH,
    BEVDET,
    BEVFORMER,
    CAMERA,
    LIDAR,
    QUERIES,
    VOXEL,
    synthetic_batch,
)

EVERY = pytest.mark.parametrize(
    "config",
    [LIDAR, VOXEL, CAMERA, BEVDEPTH, BEVDET, QUERIES, BEVFORMER],
    ids=["lidar", "voxel", "camera", "bevdepth", "bevdet", "queries", "bevformer"],
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(config) -> Detector:
    torch.manual_seed(0)
    return build_detector(config)


def empty(batch: Batch) -> Batch:
    """The same frames with no object, no point and no return."""
    frames = len(batch)
    return dataclasses.replace(
        batch,
        points=[torch.zeros(0, 5)] * frames,
        boxes=[torch.zeros(0, 9)] * frames,
        labels=[torch.zeros(0, dtype=torch.long)] * frames,
        depth_points=torch.zeros(0, 4),
    )


@EVERY
def test_output_is_what_the_protocol_says(config):
    model, batch = build(config), synthetic_batch()
    output = model.eval()(batch)
    assert output.bev.shape == (2, model.bev_channels, *model.grid.shape)
    centre = {"center", "height", "dim", "rot", "vel"} if output.queries is None else set()
    assert [set(maps) for maps in output.heads] == [{"heatmap"} | centre]
    assert output.class_heat().shape[1] == len(model.heat_classes)
    for name, level in model.levels.items():
        assert output.levels[name].shape == (2, level.channels, *level.grid.shape), name
    assert output.levels.keys() == model.levels.keys()
    assert all(m.shape[-2:] == model.grid.shape for maps in output.heads for m in maps.values())
    assert (output.depth_logits is not None) == (config in (CAMERA, BEVDEPTH, BEVDET))
    found = model.decode(output)
    assert len(found) == 2
    assert all(isinstance(f, Detections) and isinstance(f.boxes_lidar, np.ndarray) for f in found)
    parts, loss = model.loss_parts(output, batch), model.loss(output, batch)
    assert set(parts) == set(loss)
    assert all(value.shape == () and value.dtype == torch.float32 for value in loss.values())


@EVERY
def test_thirty_steps_on_one_batch_halve_the_loss(config):
    model, batch = build(config), synthetic_batch()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    history = []
    for _ in range(30):
        loss = sum(model.loss(model(batch), batch).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0], history


@EVERY
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("frames", ["full", "empty", "one empty"])
def test_losses_and_gradients_are_finite(config, precision, frames):
    model, batch = build(config), synthetic_batch()
    if frames == "empty":
        batch = empty(batch)
    elif frames == "one empty":
        none = empty(batch)
        batch = dataclasses.replace(
            batch,
            points=[batch.points[0], none.points[0]],
            boxes=[batch.boxes[0], none.boxes[0]],
            labels=[batch.labels[0], none.labels[0]],
        )
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        output = model.train()(batch)
    total = sum(model.loss(output, batch).values())
    total.backward()
    assert math.isfinite(total.item())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not part of the loss"
        assert torch.isfinite(parameter.grad).all(), name
    assert all(np.isfinite(found.boxes_lidar).all() for found in model.decode(output))


@EVERY
def test_a_frame_without_annotations_teaches_nothing_about_boxes(config):
    """What a batch says of boxes is what its labelled frames say alone, whatever the model thinks of the others."""
    model, batch = build(config).eval(), synthetic_batch()
    none = empty(batch)
    alone = synthetic_part(batch, 0)
    mixed = dataclasses.replace(
        batch,
        boxes=[batch.boxes[0], none.boxes[1]],
        labels=[batch.labels[0], none.labels[1]],
        labelled=torch.tensor([True, False]),
    )
    parts, expected = (model.loss_parts(model(given), given) for given in (mixed, alone))
    assert set(parts) == set(expected)
    for name in set(parts) - {"depth"}:  # returns need no annotations
        torch.testing.assert_close(parts[name].numerator, expected[name].numerator, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parts[name].normaliser, expected[name].normaliser)
    unlabelled = dataclasses.replace(none, points=batch.points, labelled=torch.tensor([False, False]))
    for name, part in model.loss_parts(model(unlabelled), unlabelled).items():
        assert not part.numerator.any() and not part.normaliser.any(), name


def synthetic_part(batch: Batch, frame: int) -> Batch:
    """One frame of the batch, without its depth returns."""
    return dataclasses.replace(
        batch,
        **{name: getattr(batch, name)[frame : frame + 1] for name in ("points", "boxes", "labels", "tokens")},
        **{name: getattr(batch, name)[frame : frame + 1] for name in ("images", "intrinsics", "camera_to_lidar")},
        depth_points=torch.zeros(0, 4),
    )


@EVERY
def test_bf16_agrees_with_fp32(config):
    model, batch = build(config), synthetic_batch()
    model.train()
    model(batch)  # batch norm statistics of this batch
    model.eval()
    with torch.no_grad():
        plain = model(batch).bev
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch).bev.float()
    assert (half - plain).norm() < 0.05 * plain.norm()


@EVERY
def test_frames_of_a_batch_do_not_mix(config):
    model = build(config).eval()
    batch = synthetic_batch(frames=2)
    alone = dataclasses.replace(
        batch,
        points=batch.points[1:],
        images=batch.images[1:],
        intrinsics=batch.intrinsics[1:],
        camera_to_lidar=batch.camera_to_lidar[1:],
        tokens=batch.tokens[1:],
    )
    with torch.no_grad():
        torch.testing.assert_close(model(alone).bev[0], model(batch).bev[1], atol=1e-4, rtol=1e-4)


class CountOperations(TorchDispatchMode):
    """How many tensor operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@EVERY
def test_the_number_of_operations_does_not_grow_with_points_objects_or_returns(config):
    model = build(config).train()

    def operations(batch: Batch) -> int:
        with CountOperations() as counter:
            model.loss(model(batch), batch)
        return counter.count

    small, large = synthetic_batch(objects=3, points=500), synthetic_batch(objects=30, points=5000)
    large = dataclasses.replace(large, depth_points=large.depth_points.repeat(7, 1))
    assert operations(large) == operations(small)


def test_the_wrong_kind_of_batch_is_refused_with_the_remedy():
    batch = synthetic_batch()
    with pytest.raises(DataError, match="--points"):
        build(LIDAR)(dataclasses.replace(batch, points=None))
    with pytest.raises(DataError, match="no images"):
        build(CAMERA)(dataclasses.replace(batch, images=None))
    for config in (CAMERA, BEVFORMER):
        with pytest.raises(DataError, match="64 x 64 pixels, the model reads 128 x 64"):
            build(config)(dataclasses.replace(batch, images=batch.images[..., :64]))


def test_a_batch_knows_its_length_and_moves_whole():
    batch = synthetic_batch(frames=3)
    assert len(batch) == 3
    assert len(Batch(points=batch.points)) == 3
    moved = batch.to("cpu")
    assert moved.tokens == batch.tokens
    assert moved.bev_augmentation is None
    assert torch.equal(moved.boxes[2], batch.boxes[2])
