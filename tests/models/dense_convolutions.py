"""Sparse 3-D convolutions the slow and obvious way: dense ones, masked to the active sites. For tests only."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def submanifold(x: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias=None) -> torch.Tensor:
    """x: (B, C, z, y, x), zero off the mask (B, 1, z, y, x); weight: (out, in, k, k, k). Sites stay."""
    return F.conv3d(x, weight, bias, padding=weight.shape[-1] // 2) * mask


def strided(x, mask, weight, stride, padding) -> tuple[torch.Tensor, torch.Tensor]:
    """A site of the output is active where any site under the kernel is. Returns values and mask."""
    mask = (F.conv3d(mask, torch.ones(1, 1, *weight.shape[2:]), None, stride, padding) > 0).float()
    return F.conv3d(x, weight, None, stride, padding) * mask, mask


def norm(x, mask, weight, bias, mean, variance, eps=1e-3) -> torch.Tensor:
    """Batch norm by given statistics, at active sites."""
    a, b, c, d = (v.view(1, -1, 1, 1, 1) for v in (weight, bias, mean, variance))
    return ((x - c) / (d + eps).sqrt() * a + b) * mask


def dense_voxels(points, shape_zyx, low_xyz, size_xyz) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the points in each voxel (B, 5, z, y, x) and the mask (B, 1, z, y, x), point by point."""
    values = torch.zeros(len(points), 5, *shape_zyx)
    counts = torch.zeros(len(points), 1, *shape_zyx)
    for b, cloud in enumerate(points):
        for point in cloud:
            x, y, z = (int((point[i] - low_xyz[i]) // size_xyz[i]) for i in range(3))
            if 0 <= x < shape_zyx[2] and 0 <= y < shape_zyx[1] and 0 <= z < shape_zyx[0] - 1:
                values[b, :, z, y, x] += point
                counts[b, 0, z, y, x] += 1
    return values / counts.clamp(min=1), (counts > 0).float()
