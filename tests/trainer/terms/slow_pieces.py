"""Slow, obvious pieces of the references that terms are held to, and what tests make of a term's parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cache.grid import BevGrid
from models.detector import LossPart
from trainer.augment import BevAugment

AUGMENTS = [BevAugment(), BevAugment(0.4, 1.1), BevAugment(-2.0, 0.95, True), BevAugment(flip_y=True)]


def moved_point(x: float, y: float, augment: BevAugment) -> tuple[float, float]:
    """Turn, scale, mirror: written out, not by `augment.matrix`."""
    c, s = math.cos(augment.rotation_rad), math.sin(augment.rotation_rad)
    x, y = augment.scale * (c * x - s * y), augment.scale * (s * x + c * y)
    return (-x if augment.flip_x else x), (-y if augment.flip_y else y)


def centre_of(cell: int, grid: BevGrid) -> tuple[float, float]:
    return grid.x_min + (cell % grid.width + 0.5) * grid.cell_m, grid.y_min + (cell // grid.width + 0.5) * grid.cell_m


def on_grid(x: float, y: float, grid: BevGrid) -> bool:
    return bool(grid.x_min <= x < grid.x_max and grid.y_min <= y < grid.y_max)


def slow_bilinear(plane: Tensor, row: float, col: float) -> Tensor:
    """(C,) of a map (C, H, W) at a place in cells, border values outside."""
    height, width = plane.shape[1:]
    row, col = min(max(row, 0.0), height - 1.0), min(max(col, 0.0), width - 1.0)
    value = plane[:, 0, 0] * 0
    for r in range(int(row), min(int(row) + 2, height)):
        for c in range(int(col), min(int(col) + 2, width)):
            share = max(0.0, 1 - abs(row - r)) * max(0.0, 1 - abs(col - c))
            if share > 0:
                value = value + plane[:, r, c] * share
    return value


def slow_at(plane: Tensor, x: float, y: float, grid: BevGrid) -> Tensor:
    """(C,) of a map at a place in metres."""
    return slow_bilinear(plane, (y - grid.y_min) / grid.cell_m - 0.5, (x - grid.x_min) / grid.cell_m - 0.5)


def total(parts: Mapping[str, LossPart]) -> Tensor:
    return torch.stack([part.value() for part in parts.values()]).sum()


def gradients(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Zeros where the value does not depend on one."""
    found = torch.autograd.grad(value, tensors, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]
