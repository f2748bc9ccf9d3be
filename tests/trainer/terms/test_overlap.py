"""Overlap of rotated boxes: against shapely's polygons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapely import affinity, box

from trainer.terms.overlap import bev_iou


def polygon(values: np.ndarray) -> object:
    flat = box(-values[3] / 2, -values[4] / 2, values[3] / 2, values[4] / 2)
    return affinity.translate(affinity.rotate(flat, values[6], use_radians=True), values[0], values[1])


def pairs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    boxes = np.zeros((2, count, 9))
    boxes[..., :2] = rng.uniform(-1.5, 1.5, (2, count, 2)) + rng.uniform(-50, 50, (1, count, 2))
    boxes[..., 3:6] = rng.uniform(0.2, 5, (2, count, 3))
    boxes[..., 6] = rng.uniform(-7, 7, (2, count))
    return boxes[0], boxes[1]


@pytest.mark.parametrize("seed", range(3))
def test_random_pairs_equal_polygons(seed: int) -> None:
    a, b = pairs(seed, 200)
    found = bev_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    shapes = [(polygon(x), polygon(y)) for x, y in zip(a, b, strict=True)]
    wanted = [one.intersection(other).area / one.union(other).area for one, other in shapes]
    assert 0.2 < np.mean(np.array(wanted) > 0) < 1
    assert np.allclose(found, wanted, atol=1e-9)


def test_a_box_covers_itself_whatever_its_heading() -> None:
    a, _ = pairs(9, 100)
    assert np.allclose(bev_iou(torch.from_numpy(a), torch.from_numpy(a)).numpy(), 1, atol=1e-7)
    turned = a.copy()
    turned[:, 6] += np.pi
    assert np.allclose(bev_iou(torch.from_numpy(a), torch.from_numpy(turned)).numpy(), 1, atol=1e-7)


def test_a_box_within_another_and_boxes_that_share_an_edge() -> None:
    outer, inner = np.zeros((1, 9)), np.zeros((1, 9))
    outer[0, 3:6], inner[0, 3:6] = 4, 1
    assert bev_iou(torch.from_numpy(outer), torch.from_numpy(inner)).item() == pytest.approx(1 / 16)
    inner[0, :2] = [1.5, 0]  # its edge on the outer's
    assert bev_iou(torch.from_numpy(outer), torch.from_numpy(inner)).item() == pytest.approx(1 / 16)
    inner[0, :2] = [2.5, 0]  # touches from outside
    assert bev_iou(torch.from_numpy(outer), torch.from_numpy(inner)).item() == pytest.approx(0, abs=1e-9)
    assert bev_iou(torch.zeros(0, 9), torch.zeros(0, 9)).shape == (0,)
