"""Claims about `models.gaussian`: CornerNet's radius, and heatmaps equal to a loop over boxes and cells."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cache.grid import BevGrid
from models.gaussian import draw_gaussians, foreground_mask, gaussian_radius

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8)


def slow_radius(height: float, width: float, overlap: float) -> float:
    """mmdetection3d's gaussian_radius, line by line."""
    b1, c1 = height + width, width * height * (1 - overlap) / (1 + overlap)
    r1 = (b1 + math.sqrt(b1**2 - 4 * 1 * c1)) / 2
    a2, b2, c2 = 4, 2 * (height + width), (1 - overlap) * width * height
    r2 = (b2 + math.sqrt(b2**2 - 4 * a2 * c2)) / 2
    a3, b3, c3 = 4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height
    r3 = (b3 + math.sqrt(b3**2 - 4 * a3 * c3)) / 2
    return min(r1, r2, r3)


def slow_heatmaps(boxes, channels, count, grid, min_radius, dilate):
    """Cell by cell, with no window other than the radius's square."""
    out = np.zeros((count, *grid.shape), np.float32)
    for box, channel in zip(boxes, channels, strict=True):
        if not np.isfinite(box[:5]).all():
            continue
        col, row = math.floor((box[0] - grid.x_min) / grid.cell_m), math.floor((box[1] - grid.y_min) / grid.cell_m)
        if not (0 <= col < grid.width and 0 <= row < grid.height):
            continue
        radius = max(int(slow_radius(box[3] / grid.cell_m, box[4] / grid.cell_m, 0.1)), min_radius) + dilate
        sigma = (2 * radius + 1) / 6
        for i in range(grid.height):
            for j in range(grid.width):
                if max(abs(i - row), abs(j - col)) <= radius:
                    value = np.float32(math.exp(-((i - row) ** 2 + (j - col) ** 2) / (2 * sigma**2)))
                    out[channel, i, j] = max(out[channel, i, j], value)
    return out


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    boxes = rng.uniform(-60, 60, (count, 9))
    boxes[:, 3:6] = rng.uniform(0.3, 12, (count, 3))
    return boxes


def test_radius_equals_the_published_code():
    rng = np.random.default_rng(3)
    sides = rng.uniform(0.1, 30, (200, 2))
    for overlap in (0.1, 0.5, 0.7):
        expected = [slow_radius(length, width, overlap) for length, width in sides]
        np.testing.assert_allclose(gaussian_radius(sides[:, 0], sides[:, 1], overlap), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("l_m", "w_m", "radius"),
    [(4.6, 1.95, 1), (0.7, 0.7, 1), (0.5, 2.5, 1), (11.0, 2.9, 2), (12.3, 2.9, 2), (6.9, 2.5, 2)],
)
def test_radius_of_nuscenes_sizes_on_0_8_m_cells(l_m, w_m, radius):
    """Car, pedestrian and barrier get 1; bus, trailer and truck get 2 (BEVDistill's masks)."""
    assert max(int(gaussian_radius(l_m / 0.8, w_m / 0.8)), 1) == radius


def test_hand_case():
    """A car in the middle of cell (64, 64): sigma 0.5, so e^-2 beside it and e^-4 at the corners."""
    mask = foreground_mask(np.array([[0.4, 0.4, 0, 4.6, 1.95, 1.7, 0.3, 0, 0]], np.float32), GRID)
    expected = np.zeros((3, 3))
    expected[1, 1], expected[0, 1], expected[0, 0] = 1, math.exp(-2), math.exp(-4)
    expected[1, 0] = expected[1, 2] = expected[2, 1] = expected[0, 1]
    expected[0, 2] = expected[2, 0] = expected[2, 2] = expected[0, 0]
    np.testing.assert_allclose(mask[63:66, 63:66], expected, rtol=1e-6)
    assert np.count_nonzero(mask) == 9


@pytest.mark.parametrize(("min_radius", "dilate"), [(1, 0), (2, 0), (1, 1), (0, 3)])
def test_heatmaps_equal_the_loop(min_radius, dilate):
    rng = np.random.default_rng(min_radius * 10 + dilate)
    boxes, channels = random_boxes(rng, 40), rng.integers(0, 3, 40)
    grid = BevGrid(-48, 48, -32, 32, 1.6)
    fast = draw_gaussians(boxes, channels, 3, grid, min_radius=min_radius, dilate=dilate)
    np.testing.assert_array_equal(fast, slow_heatmaps(boxes, channels, 3, grid, min_radius, dilate))


def test_boxes_that_are_nan_or_outside_are_skipped():
    good = [0.0, 0.0, 0, 4, 2, 1.5, 0, 0, 0]
    bad = np.array([good] * 6)
    bad[1, 0] = np.nan
    bad[2, 1] = 51.2  # the upper border belongs to the next cell
    bad[3, 0] = -51.2001  # just below the lower one
    bad[4, 3] = np.nan
    bad[5, 1] = np.inf
    np.testing.assert_array_equal(foreground_mask(bad, GRID), foreground_mask(bad[:1], GRID))
    assert not foreground_mask(bad[1:], GRID).any()


def test_a_box_far_larger_than_the_grid_is_drawn_on_it_alone():
    """Its window is cut to the grid: uncut, the last of these would ask for more memory than any machine has."""
    grid = BevGrid(-9.6, 9.6, -6.4, 6.4, 1.6)
    for side in (300.0, 1e6, 1e20):
        box = np.array([[0.4, 0.4, 0, side, side, 2, 0, 0, 0]])
        heat = foreground_mask(box, grid)
        assert heat[4, 6] == heat.max() == 1
        assert heat.min() > 0.5
    box[0, 3:5] = 300.0
    np.testing.assert_array_equal(foreground_mask(box, grid), slow_heatmaps(box, [0], 1, grid, 1, 0)[0])


def test_unknown_velocity_does_not_matter():
    box = np.array([[3.0, 4.0, 0, 4, 2, 1.5, 0, np.nan, np.nan]])
    assert foreground_mask(box, GRID).max() == 1


def test_no_box_gives_an_empty_mask():
    for none in (np.zeros((0, 9), np.float32), []):
        mask = foreground_mask(none, GRID)
        assert mask.shape == GRID.shape
        assert mask.dtype == np.float32
        assert not mask.any()


def test_dilation_grows_the_support_by_one_ring():
    box = np.array([[0.4, 0.4, 0, 4.6, 1.95, 1.7, 0, 0, 0]])
    assert np.count_nonzero(foreground_mask(box, GRID, dilate=1)) == 25
    assert np.count_nonzero(foreground_mask(box, GRID, dilate=2)) == 49
