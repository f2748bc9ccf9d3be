"""Bilinear samples: by hand at centres, between them and off the map; by loops elsewhere; as the student is read."""

from __future__ import annotations

import math

import numpy as np
import torch

from cache.grid import BevGrid
from pipeline.fields.samples import sample_points
from trainer.terms.sampling import sample_bilinear

GRID = BevGrid(-2.0, 4.0, 0.0, 2.0, 1.0)  # 2 x 6, centres at x -1.5 .. 3.5, y 0.5 and 1.5


def at(x: float, y: float) -> np.ndarray:
    return np.array([[[x, y]]])


def test_values_by_hand() -> None:
    bev = np.arange(24, dtype=np.float32).reshape(2, 2, 6)  # channel 0: rows 0..5 and 6..11; channel 1: 12 more
    for place, expected in (
        ((-1.5, 0.5), 0.0),  # a centre
        ((-0.5, 1.5), 7.0),
        ((-1.0, 0.5), 0.5),  # half way along x
        ((-1.5, 1.0), 3.0),  # half way along y
        ((-1.25, 0.75), 0.25 + 0.25 * 6),
        ((-2.0, 0.0), 0.0),  # the lower corner of the map: the border's value holds
        ((3.999, 1.999), 11.0),
    ):
        values, inside = sample_points(bev, GRID, at(*place))
        np.testing.assert_allclose(values[0, 0], [expected, expected + 12], atol=2e-6)
        assert inside.all()


def test_points_off_the_map_are_zero_and_marked() -> None:
    bev = np.full((3, 2, 6), 7.0, np.float32)
    for place in ((-2.001, 1.0), (4.0, 1.0), (0.0, -0.001), (0.0, 2.0), (np.nan, 1.0), (0.0, np.inf)):
        values, inside = sample_points(bev, GRID, at(*place))
        assert not inside.any() and (values == 0).all(), place


def slowly(bev: np.ndarray, grid: BevGrid, x: float, y: float) -> np.ndarray | None:
    """One point: the four nearest centres, each by its distance along x and y; border values beyond the outer ones."""
    if not (grid.x_min <= x < grid.x_max and grid.y_min <= y < grid.y_max):
        return None
    col, row = (x - grid.x_min) / grid.cell_m - 0.5, (y - grid.y_min) / grid.cell_m - 0.5
    out = np.zeros(len(bev))
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(col), math.floor(col) + 1):
            share = (1 - abs(row - r)) * (1 - abs(col - c))
            out += share * bev[:, min(max(r, 0), grid.height - 1), min(max(c, 0), grid.width - 1)]
    return out


def test_samples_equal_the_obvious_way_and_the_students() -> None:
    rng = np.random.default_rng(8)
    grid = BevGrid(-6.4, 6.4, -3.2, 3.2, 0.8)
    bev = rng.normal(size=(5, *grid.shape)).astype(np.float32)
    points = rng.uniform((-7.5, -4), (7.5, 4), (30, 9, 2))
    values, inside = sample_points(bev, grid, points)
    assert 0.3 < inside.mean() < 0.95
    for i in range(30):
        for j in range(9):
            expected = slowly(bev, grid, *points[i, j])
            assert inside[i, j] == (expected is not None)
            np.testing.assert_allclose(values[i, j], 0 if expected is None else expected, atol=1e-5)
    row, col = (torch.from_numpy((points[inside][:, a] + half) / 0.8 - 0.5) for a, half in ((1, 3.2), (0, 6.4)))
    student = sample_bilinear(torch.from_numpy(bev)[None], torch.zeros(len(row), dtype=torch.long), row, col)
    np.testing.assert_allclose(values[inside], student.numpy(), atol=1e-5)


def test_no_boxes_give_no_samples() -> None:
    values, inside = sample_points(np.ones((4, 2, 6), np.float32), GRID, np.empty((0, 9, 2)))
    assert values.shape == (0, 9, 4) and inside.shape == (0, 9)
