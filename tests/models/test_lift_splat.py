"""The claim that lift-splat's map is the sum, pixel by pixel and bin by bin, of what the paper's picture shows."""

from __future__ import annotations

import math

import numpy as np
import torch

from models.build import build_detector
from tests.models.synthetic import CAMERA, rig


def slow_map(model, depth_logits, context, intrinsics, camera_to_lidar) -> np.ndarray:
    """(B, C, H, W) float64: each pixel's context goes to the cell of each bin's middle, times the bin's probability."""
    frames, cameras = intrinsics.shape[:2]
    grid, (z_low, z_high) = model.grid, model.settings.z_range
    out = np.zeros((frames, context.shape[1], *grid.shape))
    depths = model.depth_centres.double().tolist()
    for image in range(frames * cameras):
        frame, camera = divmod(image, cameras)
        k, to_lidar = intrinsics[frame, camera].double().numpy(), camera_to_lidar[frame, camera].double().numpy()
        fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
        for v in range(context.shape[2]):
            for u in range(context.shape[3]):
                weights = np.exp(depth_logits[image, :, v, u].double().numpy())
                weights /= weights.sum()
                px, py = (u + 0.5) * model.stride, (v + 0.5) * model.stride
                for depth, weight in zip(depths, weights, strict=True):
                    x, y, z, _ = to_lidar @ [(px - cx) / fx * depth, (py - cy) / fy * depth, depth, 1.0]
                    col, row = math.floor((x - grid.x_min) / grid.cell_m), math.floor((y - grid.y_min) / grid.cell_m)
                    if 0 <= col < grid.width and 0 <= row < grid.height and z_low <= z < z_high:
                        out[frame, :, row, col] += weight * context[image, :, v, u].double().numpy()
    return out


def test_the_map_of_two_frames_equals_the_loop():
    torch.manual_seed(0)
    model = build_detector(CAMERA)
    k, to_lidar = rig((128, 64))
    turned = torch.eye(4)
    turned[:2, :2] = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    turned[:3, 3] = torch.tensor([0.7, -0.4, 0.1])
    intrinsics, poses = (
        torch.stack([k, k * torch.tensor([[1.1], [0.9], [1.0]])]),
        torch.stack([to_lidar, turned @ to_lidar]),
    )
    g = torch.Generator().manual_seed(3)
    size = (64 // model.stride, 128 // model.stride)
    depth_logits, context = torch.randn(12, 16, *size, generator=g), torch.randn(12, 48, *size, generator=g)
    found = model._splat(depth_logits, context, intrinsics, poses)
    expected = slow_map(model, depth_logits, context, intrinsics, poses)
    assert (np.abs(expected).sum(axis=1) > 0).mean() > 0.2
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
