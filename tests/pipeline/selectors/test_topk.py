"""topk: the cells of the k best heats as a sorted list says; a cell that is best for two classes takes two places."""

from __future__ import annotations

import numpy as np
import pytest

from cache.errors import DataError
from pipeline.selectors.topk import topk_mask
from tests.pipeline.selectors.scenes import GRID


def slow_topk(heat: np.ndarray, k: int) -> np.ndarray:
    """Top k of each class, then top k of those, as the method says it."""
    classes, height, width = heat.shape
    best = []
    for label in range(classes):
        ranked = sorted((-float(heat[label, r, c]), label, r, c) for r in range(height) for c in range(width))
        best += ranked[:k]
    mask = np.zeros((height, width), np.float32)
    for _, _, row, col in sorted(best)[:k]:
        mask[row, col] = 1
    return mask


@pytest.mark.parametrize(("seed", "k"), [(0, 1), (1, 7), (2, 200), (3, 960), (4, 3000)])
def test_the_mask_equals_ranking_by_class_and_then_over_classes(seed: int, k: int) -> None:
    heat = np.random.default_rng(seed).integers(0, 40, (3, *GRID.shape)).astype(np.float32) / 40  # many ties
    mask = topk_mask(heat, GRID, k)
    np.testing.assert_array_equal(mask, slow_topk(heat, k))
    assert mask.dtype == np.float32


def test_a_hand_case() -> None:
    heat = np.zeros((2, *GRID.shape), np.float32)
    heat[0, 3, 4], heat[1, 3, 4], heat[1, 5, 6], heat[0, 7, 8] = 0.9, 0.8, 0.7, 0.6
    assert np.argwhere(topk_mask(heat, GRID, 2)).tolist() == [[3, 4]]  # one cell takes both places
    assert np.argwhere(topk_mask(heat, GRID, 3)).tolist() == [[3, 4], [5, 6]]
    assert topk_mask(heat, GRID, 10**8).all()


def test_what_is_no_heat_of_this_grid_is_refused() -> None:
    with pytest.raises(DataError, match=r"topk: the teacher's heat has shape"):
        topk_mask(np.zeros((2, 3, 3), np.float32), GRID, 5)
    with pytest.raises(DataError, match=r"topk: .* expected probabilities"):
        topk_mask(np.full((1, *GRID.shape), np.nan, np.float32), GRID, 5)
