"""What detectors refuse of a batch, each with its preset, the tensor and both shapes; and what they take as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from cache.errors import DataError
from models.build import build_detector, load_preset, resolve_config, told_preset
from models.detector import Batch
from tests.models.synthetic import BEVDEPTH, BEVFORMER, CAMERA, LIDAR, QUERIES, VOXEL, synthetic_batch

POINTS = pytest.mark.parametrize("config", [LIDAR, VOXEL, QUERIES], ids=["pillar", "voxel", "queries"])
IMAGES = pytest.mark.parametrize("config", [CAMERA, BEVDEPTH, BEVFORMER], ids=["lift-splat", "bevdepth", "bevformer"])
EVERY = pytest.mark.parametrize("config", [LIDAR, CAMERA, QUERIES, BEVFORMER], ids=lambda config: config["preset"])
Change = Callable[[Batch], dict[str, object]]


def built(config):
    torch.manual_seed(0)
    return build_detector(config)


def refused(config, words: str, change: Change) -> None:
    batch = synthetic_batch()
    with pytest.raises(DataError, match=rf"preset \S+ with .*{words}"):
        built(config)(dataclasses.replace(batch, **change(batch)))


@POINTS
@pytest.mark.parametrize(
    ("words", "change"),
    [
        (
            r"points of frame 0 have shape \(2000, 4\), expected \(P, 5\)",
            lambda b: {"points": [p[:, :4] for p in b.points]},
        ),
        (r"points of frame 1 have shape \(10000,\)", lambda b: {"points": [b.points[0], b.points[1].flatten()]}),
        (
            r"points of frame 0 have shape \(2000, 6\)",
            lambda b: {"points": [p[:, [0, 0, 1, 2, 3, 4]] for p in b.points]},
        ),
        ("points of 0 frames", lambda b: {"points": []}),
        ("the batch holds no points", lambda b: {"points": None}),
    ],
)
def test_clouds_of_another_shape_are_refused(config, words, change):
    refused(config, words, change)


@IMAGES
@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("images of 127 x 64 pixels, the model reads 128 x 64", lambda b: {"images": b.images[..., 1:]}),
        ("images of 128 x 33 pixels", lambda b: {"images": b.images[..., :33, :]}),
        (
            r"images of shape \(2, 6, 1, 64, 128\), expected .*\(2, 6, 3, 64, 128\)",
            lambda b: {"images": b.images[:, :, :1]},
        ),
        (r"images of shape \(0, 6, 3, 64, 128\)", lambda b: {"images": b.images[:0]}),
        ("images of torch.uint8", lambda b: {"images": b.images.abs().byte()}),
        (
            r"intrinsics of shape \(2, 5, 3, 3\), expected .*\(2, 6, 3, 3\)",
            lambda b: {"intrinsics": b.intrinsics[:, :5]},
        ),
        (r"intrinsics of shape \(1, 6, 3, 3\)", lambda b: {"intrinsics": b.intrinsics[:1]}),
        (r"camera_to_lidar of shape \(2, 6, 3, 4\)", lambda b: {"camera_to_lidar": b.camera_to_lidar[..., :3, :]}),
        ("intrinsics hold a matrix that is not finite", lambda b: {"intrinsics": b.intrinsics * 0}),
        (
            "camera_to_lidar hold a matrix that is not finite",
            lambda b: {"camera_to_lidar": b.camera_to_lidar * math.nan},
        ),
        (r"images of shape \(3,\), expected", lambda b: {"images": torch.zeros(3)}),
        (r"images of shape \(\), expected", lambda b: {"images": torch.tensor(0.0)}),
        (
            r"bev_augmentation of shape \(1, 4, 4\), expected .*\(2, 4, 4\)",
            lambda b: {"bev_augmentation": torch.eye(4)[None]},
        ),
        (
            "bev_augmentation hold a matrix that is not finite or has no inverse",
            lambda b: {"bev_augmentation": torch.zeros(2, 4, 4)},
        ),
        ("the batch holds no images with calibration", lambda b: {"images": None}),
    ],
)
def test_images_and_calibration_of_another_shape_are_refused(config, words, change):
    refused(config, words, change)


@EVERY
@pytest.mark.parametrize(
    ("words", "change"),
    [
        (
            r"boxes of frame 1 have shape \(8, 7\), expected \(N, 9\)",
            lambda b: {"boxes": [b.boxes[0], b.boxes[1][:, :7]]},
        ),
        (
            "labels of frame 0 reach from -1 to -1",
            lambda b: {"labels": [torch.full_like(b.labels[0], -1), b.labels[1]]},
        ),
        (
            r"labels of frame 1 reach from \d to 10",
            lambda b: {"labels": [b.labels[0], b.labels[1].clone().index_fill_(0, torch.tensor([0]), 10)]},
        ),
        ("boxes of 1 frames for an output of 2", lambda b: {"boxes": b.boxes[:1], "labels": b.labels[:1]}),
        ("labelled of 3 frames for an output of 2", lambda b: {"labelled": torch.ones(3, dtype=torch.bool)}),
        ("labelled is torch.int64, expected torch.bool", lambda b: {"labelled": torch.tensor([1, 0])}),
        (
            r"labels of frame 0 have shape \(8, 1\), expected \(8,\)",
            lambda b: {"labels": [label[:, None] for label in b.labels]},
        ),
        (
            "labels of frame 0 are torch.float32, expected ids",
            lambda b: {"labels": [label * math.nan for label in b.labels]},
        ),
    ],
)
def test_annotations_that_do_not_fit_the_output_are_refused(config, words, change):
    batch, model = synthetic_batch(), built(config)
    with torch.no_grad():
        output = model(batch)
    with pytest.raises(DataError, match=rf"preset \S+ with .*{words}"):
        model.loss(output, dataclasses.replace(batch, **change(batch)))


def test_depth_labels_of_another_shape_are_refused():
    batch, model = synthetic_batch(), built(CAMERA)
    with pytest.raises(DataError, match=r"preset \S+ with .*depth_points have shape \(600, 3\), expected \(K, 4\)"):
        model.loss(model(batch), dataclasses.replace(batch, depth_points=batch.depth_points[:, :3]))


@POINTS
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_point_with_any_number_that_is_not_finite_is_as_if_not_there(config, value):
    batch, model = synthetic_batch(), built(config).train()
    spoilt = [cloud.clone() for cloud in batch.points]
    for number in range(5):
        spoilt[0][10 * number : 10 * number + 10, number] = value
    gone = dataclasses.replace(batch, points=[batch.points[0][50:], batch.points[1]])
    with torch.no_grad():
        found, expected = model(dataclasses.replace(batch, points=spoilt)).bev, model(gone).bev
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize("config", [CAMERA, BEVDEPTH], ids=["cross-entropy", "binary"])
def test_weights_that_are_not_finite_are_told_by_the_loss_and_not_by_an_error_of_torch(config):
    batch, model = synthetic_batch(), built(config)
    with torch.no_grad():
        model.depth_net.train()
        next(model.depth_net.parameters()).fill_(math.nan)
    assert math.isnan(float(model.loss(model(batch), batch)["depth"]))


@POINTS
def test_a_frame_with_one_point_is_seen_alike_alone_and_beside_others(config):
    """In evaluation mode the norms need no statistics of the batch, so its company must not matter."""
    model = built(config).eval()
    one = torch.tensor([[3.0, 4.0, -1.0, 20.0, 0.0]])
    with torch.no_grad():
        alone = model(Batch(points=[one])).levels["canvas"][0]
        beside = model(Batch(points=[one, synthetic_batch().points[0]])).levels["canvas"][0]
    assert alone.any()
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [QUERIES, BEVFORMER], ids=["queries", "bevformer"])
def test_heatmap_and_queries_leave_out_the_same_boxes(config):
    batch, model = synthetic_batch(), built(config).eval()
    spoilt = [boxes.clone() for boxes in batch.boxes]
    spoilt[0][0, 2], spoilt[0][1, 3], spoilt[0][2, 5], spoilt[0][3, 6] = math.inf, -2.0, 0.0, math.nan
    gone = [batch.boxes[0][4:], batch.boxes[1]], [batch.labels[0][4:], batch.labels[1]]
    with torch.no_grad():
        output = model(batch)
        found = model.loss(output, dataclasses.replace(batch, boxes=spoilt))
        expected = model.loss(output, dataclasses.replace(batch, boxes=gone[0], labels=gone[1]))
    assert found.keys() == expected.keys() >= {"heatmap", "class", "box"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_a_config_is_told_by_the_preset_it_differs_least_from():
    assert told_preset(load_resolved("cp-voxel-xs")) == "preset cp-voxel-xs"
    assert (
        told_preset(resolve_config({"preset": "bevformer-demo", "queue": 1})) == "preset bevformer-demo with queue = 1"
    )
    wide = {
        "preset": "lift-splat-r50",
        "fpn_channels": 8,
        "context_channels": 8,
        "z_range": [-4.0, 3.0],
        "depth_layers": 2,
    }
    assert told_preset(resolve_config(wide)) == "preset lift-splat-r50 with 4 other keys"
    assert told_preset({"kind": "imported", "callable": "a:b"}) == "kind imported"


def load_resolved(name: str):
    return resolve_config(load_preset(name))
