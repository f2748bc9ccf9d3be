"""Claims about whole detectors: turn or mirror what they see and the boxes they say are turned or mirrored with it.

A network with any weights knows left from right. Here every kernel is made symmetric, so that the detector has no
preferred direction, and the branches that say vectors (place in the cell, heading, velocity) become derivatives of
their map. What is left that could tell directions apart is geometry: cells, lifting, the order of x and y, decoding.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from models.build import build_detector
from tests.models.synthetic import CAMERA, LIDAR, VOXEL, synthetic_batch
from trainer.augment import move_boxes

EVERY = {
    "flip x": [[-1.0, 0.0], [0.0, 1.0]],
    "flip y": [[1.0, 0.0], [0.0, -1.0]],
    "quarter turn": [[0.0, -1.0], [1.0, 0.0]],
    "half turn": [[-1.0, 0.0], [0.0, -1.0]],
    "diagonal": [[0.0, 1.0], [1.0, 0.0]],
}
# The sites of a halving sparse convolution begin at row and column 0, which a flip would make the last ones.
CASES = [(LIDAR, name) for name in EVERY] + [(VOXEL, "diagonal")]
CASES += [({**CAMERA, "depth_net": "linear"}, name) for name in EVERY]
DERIVATIVE_X = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def without_direction(weight: torch.Tensor, stride: int) -> torch.Tensor:
    """A kernel (out, in, k, k) as one that every turn and flip of its input commutes with.

    Of stride 2 and padding 1 it reads columns 2i - 1 .. 2i + 1 for output i, which covers 2i and 2i + 1: the first tap
    must be 0. Kernels as large as their stride are made constant.
    """
    k = weight.shape[-1]
    if stride > 1 and k == 3:
        out = torch.zeros_like(weight)
        out[..., 1:, 1:] = weight.mean(dim=(2, 3), keepdim=True)
        return out
    if stride > 1:
        return weight.mean(dim=(2, 3), keepdim=True).expand_as(weight)
    turned = [torch.rot90(weight, n, (2, 3)) for n in range(4)]
    return torch.stack([*turned, *(t.flip(3) for t in turned)]).mean(dim=0)


@torch.no_grad()
def symmetric(config):
    """A detector of `config` that knows no direction, with strong answers."""
    torch.manual_seed(0)
    model = build_detector(config).eval()
    parts = [model.backbone] if model.modality == "lidar" else [model.encoder]
    for part in (*parts, model.head):
        for module in part.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                pointwise = module.kernel_size[0] == 1
                stride = 1 if pointwise else module.stride[0]
                module.weight.copy_(without_direction(module.weight, stride))
                if pointwise and module.stride[0] > 1:  # a shortcut that reads one cell of four
                    module.weight.zero_()
    if hasattr(model.encoder, "linear"):  # pillars: z, intensity, time and the height above the mean
        model.encoder.linear.weight[:, [0, 1, 5, 6, 8, 9]] = 0
    for module in model.encoder.modules():
        if type(module).__name__ in ("SubMConv3d", "SparseConv3d"):  # (out, z, y, x, in)
            module.weight.copy_((module.weight + module.weight.transpose(2, 3)) / 2)
    if config is VOXEL:
        model.encoder.input.conv.weight[..., :2] = 0  # z, intensity, time
    for task in model.head.tasks:
        g = torch.Generator().manual_seed(1)
        for name, scale in (("center", 0.1), ("rot", 3.0), ("vel", 3.0)):
            last = task[name][-1]
            factors = torch.randn(last.weight.shape[1], 1, 1, generator=g) * scale
            along = torch.stack([DERIVATIVE_X * factors, DERIVATIVE_X.T * factors])  # (2, in, 3, 3): x, then y
            last.weight.copy_(along.flip(0) if name == "rot" else along)  # rot is sin, cos
            last.bias.fill_(0.5 if name == "center" else 0.0)
        task["heatmap"][-1].weight.mul_(4)
        task["heatmap"][-1].bias.fill_(-3.0)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
    model.train()(seen(config))  # answers of order one, whatever the depth
    return model.eval()


def seen(config):
    """A frame of points and cameras. Nothing lies on the border of a cell, where a mirror image may fall either way."""
    batch = synthetic_batch(frames=1, image_size=(128, 64))
    aside = torch.eye(4)
    c, s = math.cos(0.1234), math.sin(0.1234)
    aside[:2, :2], aside[:2, 3] = torch.tensor([[c, -s], [s, c]]), torch.tensor([0.217, -0.389])
    return dataclasses.replace(batch, camera_to_lidar=aside @ batch.camera_to_lidar)


def moved(batch, a: torch.Tensor):
    cloud = batch.points[0].clone()
    cloud[:, :3] = cloud[:, :3] @ a[:3, :3].T
    turned = a @ batch.camera_to_lidar
    return dataclasses.replace(batch, points=[cloud], camera_to_lidar=turned, bev_augmentation=a[None])


@pytest.mark.parametrize(("config", "name"), CASES, ids=lambda v: v if isinstance(v, str) else v["preset"])
@torch.no_grad()
def test_decoded_boxes_move_as_what_is_seen_does(config, name):
    model, batch = symmetric(config), seen(config)
    a = torch.eye(4)
    a[:2, :2] = torch.tensor(EVERY[name])
    before, after = (model.decode(model(frames))[0] for frames in (batch, moved(batch, a)))
    strong = before.scores > np.unique(before.scores)[0] + 1e-3
    assert strong.sum() > 20
    boxes, expected = before.boxes_lidar[strong], move_boxes(before.boxes_lidar[strong], a.numpy())
    # every strong box before has its image after, and the other way round in number
    assert (after.scores > before.scores[strong].min() - 1e-5).sum() == strong.sum()
    for box, score, label in zip(expected, before.scores[strong], before.labels[strong], strict=True):
        near = np.abs(after.boxes_lidar[:, :3] - box[:3]).max(axis=1) < 2e-3
        near &= (np.abs(after.scores - score) < 1e-4) & (after.labels == label)
        assert near.any(), (box, score)
        found = after.boxes_lidar[np.flatnonzero(near)[0]]
        np.testing.assert_allclose(found[3:6], box[3:6], rtol=1e-3)
        turn = found[6] - box[6]
        assert abs(math.atan2(math.sin(turn), math.cos(turn))) < 1e-2
        np.testing.assert_allclose(found[7:9], box[7:9], atol=1e-3, rtol=1e-3)
    # the answers are of all sorts, or the test would see nothing
    assert boxes[:, 6].std() > 0.5 and np.abs(boxes[:, 7:9]).max() > 0.05
    assert np.abs(expected[:, :2] - boxes[:, :2]).max() > 1
