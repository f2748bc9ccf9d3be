"""Claims about overlaps seen from above: equal to clipping polygons, corner by corner, and to shapely."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from shapely.geometry import Polygon

from models.rotated_iou import corners, every_iou, paired_intersection, paired_iou, rectangles


def slow_corners(box) -> list[tuple[float, float]]:
    x, y, l, w, yaw = (float(v) for v in box)
    out = []
    for a, b in ((l / 2, w / 2), (-l / 2, w / 2), (-l / 2, -w / 2), (l / 2, -w / 2)):
        out.append((x + a * math.cos(yaw) - b * math.sin(yaw), y + a * math.sin(yaw) + b * math.cos(yaw)))
    return out


def slow_intersection(first, second) -> float:
    """Sutherland and Hodgman: the first polygon cut by each edge of the second; then the shoelace formula."""
    polygon, cutter = slow_corners(first), slow_corners(second)
    for (ax, ay), (bx, by) in zip(cutter, cutter[1:] + cutter[:1], strict=True):
        kept = []
        sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in polygon]
        for i, (here, side) in enumerate(zip(polygon, sides, strict=True)):
            there, other = polygon[(i + 1) % len(polygon)], sides[(i + 1) % len(polygon)]
            if side >= 0:
                kept.append(here)
            if side * other < 0:
                t = side / (side - other)
                kept.append((here[0] + t * (there[0] - here[0]), here[1] + t * (there[1] - here[1])))
        polygon = kept
    return sum(x * v - y * u for (x, y), (u, v) in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2


def slow_iou(first, second) -> float:
    shared = slow_intersection(first, second)
    whole = float(first[2] * first[3] + second[2] * second[3]) - shared
    return shared / whole if whole > 0 else 0.0


def random_boxes(seed: int, count: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    low, size = torch.tensor([-3.0, 40, 0.3, 0.3, -7]), torch.tensor([6.0, 6, 5, 3, 14])
    return (torch.rand(count, 5, generator=g) * size + low).double()


def test_random_pairs_equal_the_clipped_polygons():
    for seed in range(5):
        first, second = random_boxes(seed, 100), random_boxes(seed + 100, 100)
        found = paired_iou(first, second)
        expected = torch.tensor([slow_iou(a, b) for a, b in zip(first, second, strict=True)], dtype=torch.float64)
        assert (expected > 0.02).sum() > 20
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=f"seed {seed}")


def test_a_thousand_random_pairs_equal_shapely():
    first, second = random_boxes(7, 1000), random_boxes(8, 1000)
    a, b = ([Polygon(np.asarray(c)) for c in corners(boxes)] for boxes in (first, second))
    shared = torch.tensor([p.intersection(q).area for p, q in zip(a, b, strict=True)], dtype=torch.float64)
    whole = torch.tensor([p.union(q).area for p, q in zip(a, b, strict=True)], dtype=torch.float64)
    assert (shared > 0.1).sum() > 200
    torch.testing.assert_close(paired_iou(first, second), shared / whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(paired_intersection(first, second), shared, atol=1e-5, rtol=0)


BOX = (1.0, 2.0, 4.0, 2.0, 0.0)


@pytest.mark.parametrize("turn", [0.0, 0.4, math.pi / 2, 2.9, -40.0])
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (BOX, 8.0),  # itself
        ((1.0, 2.0, 4.0, 2.0, math.pi), 8.0),  # headed the other way
        ((1.0, 2.0, 2.0, 4.0, math.pi / 2), 8.0),
        ((1.0, 2.0, 2.0, 1.0, 0.0), 2.0),  # inside
        ((1.0, 2.0, 6.0, 2.0, 0.0), 8.0),  # on two of its edges
        ((2.0, 2.0, 4.0, 2.0, 0.0), 6.0),
        ((3.0, 3.0, 4.0, 2.0, 0.0), 2.0),
        ((5.0, 2.0, 4.0, 2.0, 0.0), 0.0),  # side by side
        ((5.0, 4.0, 4.0, 2.0, 0.0), 0.0),  # corner to corner
        ((50.0, 2.0, 4.0, 2.0, 1.0), 0.0),
        ((1.0, 2.0, 10.0, 10.0, math.pi / 4), 8.0),
        ((1.0, 2.0, 0.0, 2.0, 0.0), 0.0),
    ],
)
def test_boxes_that_share_edges_corners_or_all(turn, other, expected):
    """Both turned about the origin together, where rounding decides on which side an edge falls."""
    cos, sin = math.cos(turn), math.sin(turn)

    def turned(box):
        x, y, l, w, yaw = box
        return torch.tensor([[x * cos - y * sin, x * sin + y * cos, l, w, yaw + turn]], dtype=torch.float64)

    for pair in ((turned(BOX), turned(other)), (turned(other), turned(BOX))):
        assert paired_intersection(*pair).item() == pytest.approx(expected, abs=1e-5)
    union = 8.0 + other[2] * other[3] - expected
    assert paired_iou(turned(BOX), turned(other)).item() == pytest.approx(expected / union, abs=1e-6)


def test_float32_boxes_far_from_the_origin_keep_their_overlap():
    first = torch.tensor([[50.3, -49.7, 0.7, 0.6, 0.3]])
    second = first + torch.tensor([[0.1, 0.05, 0, 0, 0.2]])
    assert paired_iou(first, second).item() == pytest.approx(slow_iou(first[0], second[0]), abs=1e-6)


def test_no_pairs():
    assert paired_iou(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_every_pair_of_two_lists_has_the_overlap_of_its_pair():
    first, second = random_boxes(3, 12), random_boxes(4, 15)
    second[0, :2] += 500.0
    found = every_iou(first, second)
    expected = [[slow_iou(a, b) for b in second] for a in first]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert 0.2 < (found > 0).double().mean() < 0.95 and not found[:, 0].any()
    assert every_iou(first[:0], second).shape == (0, 15) and every_iou(first, second[:0]).shape == (12, 0)


def test_a_boxs_rectangle_is_its_place_length_width_and_heading():
    box = torch.tensor([[1.0, 2, 9, 4, 3, 9, 0.5, 9, 9]])
    assert rectangles(box).tolist() == [[1.0, 2, 4, 3, 0.5]]
