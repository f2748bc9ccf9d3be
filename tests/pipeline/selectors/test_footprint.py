"""footprint: equals the polygon test of each cell, moves with the boxes, keeps small boxes, stays on the grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cache.grid import BevGrid
from pipeline.selectors.footprint import BORDER_M, footprint_mask
from tests.pipeline.selectors.scenes import GRID, SQUARE, random_boxes, turned, turned_map


def slow_footprint(boxes: np.ndarray, grid: BevGrid, margin: float) -> np.ndarray:
    """A cell at a time: is its centre on the inner side of all four sides, or does it hold the box's centre."""
    mask = np.zeros(grid.shape, np.float32)
    for box in boxes.astype(np.float64):
        x, y, length, width, yaw = (float(box[i]) for i in (0, 1, 3, 4, 6))
        if not all(map(math.isfinite, (x, y, length, width, yaw))):
            continue
        l, w = length / 2 + margin + BORDER_M, width / 2 + margin + BORDER_M
        corners = [
            (x + a * math.cos(yaw) - b * math.sin(yaw), y + a * math.sin(yaw) + b * math.cos(yaw))
            for a, b in ((l, w), (-l, w), (-l, -w), (l, -w))  # counter-clockwise
        ]
        for row in range(grid.height):
            for col in range(grid.width):
                left, bottom = grid.x_min + col * grid.cell_m, grid.y_min + row * grid.cell_m
                px, py = left + grid.cell_m / 2, bottom + grid.cell_m / 2
                inside = all(
                    (bx - ax) * (py - ay) - (by - ay) * (px - ax) >= 0
                    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True)
                )
                holds_centre = left <= x < left + grid.cell_m and bottom <= y < bottom + grid.cell_m
                if inside or holds_centre:
                    mask[row, col] = 1
    return mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_the_mask_equals_the_polygon_test_of_every_cell(seed: int, margin: float) -> None:
    boxes = random_boxes(np.random.default_rng(seed), 8)
    fast = footprint_mask(boxes, GRID, margin)
    np.testing.assert_array_equal(fast, slow_footprint(boxes, GRID, margin))
    assert fast.dtype == np.float32 and 0 < fast.sum() < fast.size


def test_a_hand_case_counts_centres_on_the_border_and_the_margin_on_each_side() -> None:
    box = np.array([[0.25, 0.25, 0, 2, 1, 1, 0, 0, 0]], np.float32)  # centre of cell (12, 20), sides on cell centres
    rows, cols = np.nonzero(footprint_mask(box, GRID))
    assert (sorted(set(rows)), sorted(set(cols)), len(rows)) == ([11, 12, 13], [18, 19, 20, 21, 22], 15)
    rows, cols = np.nonzero(footprint_mask(box, GRID, 0.5))
    assert (min(rows), max(rows), min(cols), max(cols), len(rows)) == (10, 14, 17, 23, 35)


def test_the_yaw_turns_the_length_from_x_to_y() -> None:
    box = np.array([[0.25, 0.25, 0, 4, 0.4, 1, np.pi / 2, 0, 0]], np.float32)
    rows, cols = np.nonzero(footprint_mask(box, GRID))
    assert set(cols) == {20} and set(rows) == set(range(8, 17))


def test_a_box_smaller_than_a_cell_keeps_the_cell_of_its_centre() -> None:
    cone = np.array([[0.01, 0.49, 0, 0.3, 0.3, 1, 0.4, 0, 0]], np.float32)
    assert np.argwhere(footprint_mask(cone, GRID)).tolist() == [[12, 20]]


def test_moving_the_boxes_by_whole_cells_moves_the_mask() -> None:
    boxes = random_boxes(np.random.default_rng(5), 6, reach=2.0).astype(np.float64)
    moved = boxes.copy()
    moved[:, :2] += (3 * GRID.cell_m, -2 * GRID.cell_m)
    wide = BevGrid(-20, 20, -20, 20, 0.5)  # all of both on the grid
    expected = np.roll(footprint_mask(boxes, wide, 0.3), (-2, 3), axis=(0, 1))
    np.testing.assert_array_equal(footprint_mask(moved, wide, 0.3), expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_quarter_turn_of_the_boxes_turns_the_mask(seed: int) -> None:
    boxes = random_boxes(np.random.default_rng(seed), 10)
    expected = turned_map(footprint_mask(boxes, SQUARE, 0.2))
    np.testing.assert_array_equal(footprint_mask(turned(boxes), SQUARE, 0.2), expected)


def test_the_union_of_boxes_is_the_union_of_masks_and_a_margin_only_adds() -> None:
    boxes = random_boxes(np.random.default_rng(7), 9)
    each = [footprint_mask(boxes[i : i + 1], GRID, 0.4) for i in range(9)]
    np.testing.assert_array_equal(footprint_mask(boxes, GRID, 0.4), np.max(each, axis=0))
    assert (footprint_mask(boxes, GRID, 0.4) >= footprint_mask(boxes, GRID)).all()


def test_boxes_with_a_nan_are_skipped() -> None:
    boxes = random_boxes(np.random.default_rng(8), 6, reach=5)
    for row, column in enumerate((0, 1, 3, 4, 6)):
        boxes[row, column] = (np.nan, np.inf)[row % 2]
    np.testing.assert_array_equal(footprint_mask(boxes, GRID), footprint_mask(boxes[5:], GRID))
    assert not footprint_mask(boxes[:5], GRID).any()


def test_boxes_off_the_grid_keep_what_reaches_it_and_never_wrap_around() -> None:
    bus = np.array([[11.0, 5.9, 0, 6, 2, 3, 0.0, 0, 0]], np.float32)  # its centre is past x_max
    mask = footprint_mask(bus, GRID)
    rows, cols = np.nonzero(mask)
    assert min(cols) == 36 and max(cols) == 39 and min(rows) >= 21
    far = np.array([[1e30, 0, 0, 4, 2, 1, 0, 0, 0], [-300, 40, 0, 4, 2, 1, 0, 0, 0], [0, 0, 0, -3, -1, 1, 0, 0, 0]])
    assert np.argwhere(footprint_mask(far, GRID)).tolist() == [[12, 20]]  # the last, without an area


def test_no_boxes_give_no_cells() -> None:
    assert not footprint_mask(np.zeros((0, 9), np.float32), GRID).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_by_size_a_cell_has_the_weight_of_the_smallest_box_over_it(seed: int, margin: float) -> None:
    boxes = random_boxes(np.random.default_rng(seed), 12, reach=8)
    expected = np.zeros(GRID.shape)
    for box in boxes:
        length, width = float(box[3]) + 2 * margin, float(box[4]) + 2 * margin
        weight = min(1.0, math.sqrt(GRID.cell_m**2 / (length * width)))
        expected = np.maximum(expected, weight * slow_footprint(box[None], GRID, margin))
    found = footprint_mask(boxes, GRID, margin, by_size=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32 and len(np.unique(found)) > 5


def test_by_size_a_hand_case() -> None:
    boxes = np.array([[0.25, 0.25, 0, 4, 1, 1, 0, 0, 0], [0.25, 0.25, 0, 0.3, 0.3, 1, 0, 0, 0]], np.float32)
    mask = footprint_mask(boxes[:1], GRID, by_size=True)
    assert set(np.unique(mask)) == {0, np.float32(0.25)}  # sqrt(0.25 / 4)
    both = footprint_mask(boxes, GRID, by_size=True)  # what is smaller than a cell has a cell's weight
    assert both[12, 20] == 1 and np.array_equal(np.delete(both, 12 * 40 + 20), np.delete(mask, 12 * 40 + 20))
    odd = np.array([[0.25, 0.25, 0, -3, 0, 1, 0, 0, 0]])
    assert (
        footprint_mask(odd, GRID, by_size=True).sum() == 1
        and footprint_mask(odd, GRID, 1.0, by_size=True).max() == 0.25
    )
