"""Claims about the overlap of rotated boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.rotated_iou import rotated_iou


def boxes(rows: list[tuple[float, float, float, float, float]]) -> torch.Tensor:
    """x, y, l, w, yaw each."""
    out = torch.zeros(len(rows), 9, dtype=torch.float64)
    for box, (x, y, l, w, yaw) in zip(out, rows, strict=True):
        box[:7] = torch.tensor([x, y, 0, l, w, 1, yaw], dtype=torch.float64)
    return out


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    """One rectangle clipped by the other's edges, one after another (Sutherland and Hodgman), and the shoelace sum."""

    def corners(box: np.ndarray) -> list[np.ndarray]:
        c, s = math.cos(box[6]), math.sin(box[6])
        half = [(0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)]
        return [
            np.array([box[0] + u * box[3] * c - v * box[4] * s, box[1] + u * box[3] * s + v * box[4] * c])
            for u, v in half
        ]

    polygon, ring = corners(a), corners(b)
    for i in range(4):
        p, q = ring[i], ring[(i + 1) % 4]
        kept: list[np.ndarray] = []
        for j, current in enumerate(polygon):
            before = polygon[j - 1]
            side = [(q - p)[0] * (v - p)[1] - (q - p)[1] * (v - p)[0] for v in (before, current)]
            if (side[0] >= 0) != (side[1] >= 0):
                kept.append(before + (current - before) * side[0] / (side[0] - side[1]))
            if side[1] >= 0:
                kept.append(current)
        polygon = kept
        if not polygon:
            return 0.0
    shared = 0.5 * sum(
        polygon[i - 1][0] * polygon[i][1] - polygon[i - 1][1] * polygon[i][0] for i in range(len(polygon))
    )
    return shared / (a[3] * a[4] + b[3] * b[4] - shared)


def test_overlaps_equal_those_of_clipped_polygons() -> None:
    rng = np.random.default_rng(3)
    rows = [boxes([tuple(r) for r in rng.uniform([-2, -2, 0.5, 0.5, -4], [2, 2, 4, 3, 4], (n, 5))]) for n in (12, 15)]
    found = rotated_iou(*rows)
    wanted = [[slow_iou(a.numpy(), b.numpy()) for b in rows[1]] for a in rows[0]]
    assert np.allclose(found.numpy(), wanted, atol=1e-9)
    assert 0.3 < (found > 0).double().mean() < 1


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3), 1.0),
        ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3 + math.pi), 1.0),
        ((0, 0, 4, 2, 0), (0, 0, 2, 1, 0), 0.25),
        ((0, 0, 4, 2, 0), (2, 0, 4, 2, 0), 1 / 3),
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, math.pi / 4), 2 * (math.sqrt(2) - 1) * 4 / (8 - 8 * (math.sqrt(2) - 1))),
        ((0, 0, 4, 2, 0), (4, 0, 4, 2, 0), 0.0),
        ((0, 0, 4, 2, 0), (9, 0, 4, 2, 1), 0.0),
    ],
)
def test_known_overlaps(one: tuple[float, ...], other: tuple[float, ...], wanted: float) -> None:
    assert rotated_iou(boxes([one]), boxes([other])).item() == pytest.approx(wanted, abs=1e-9)  # type: ignore[list-item]


def test_no_boxes_give_no_pairs() -> None:
    assert rotated_iou(boxes([]), boxes([(0, 0, 1, 1, 0)])).shape == (0, 1)
    assert rotated_iou(boxes([(0, 0, 1, 1, 0)]), boxes([])).shape == (1, 0)
