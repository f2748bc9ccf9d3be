"""confident: the best class's heat where it reaches the threshold; logits and NaN are told, not stored."""

from __future__ import annotations

import numpy as np
import pytest

from cache.errors import DataError
from pipeline.selectors.confident import confident_mask
from tests.pipeline.selectors.scenes import GRID


def a_heat(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (10, *GRID.shape)).astype(np.float32) ** 9


def test_the_mask_equals_the_loop_over_cells() -> None:
    heat = a_heat(0)
    mask = confident_mask(heat, GRID, 0.6)
    for row in range(GRID.height):
        for col in range(GRID.width):
            best = max(heat[:, row, col])
            assert mask[row, col] == (best if best >= 0.6 else 0)
    assert mask.dtype == np.float32 and 0 < (mask > 0).sum() < mask.size


def test_a_heat_of_exactly_the_threshold_counts() -> None:
    heat = np.full((1, *GRID.shape), 0.1, np.float32)  # 0.1 in float32 is not 0.1 in float64
    assert (confident_mask(heat, GRID, 0.1) == np.float32(0.1)).all()
    assert not confident_mask(heat, GRID, 0.1001).any()


def test_a_higher_threshold_keeps_a_part_with_the_same_weights() -> None:
    low, high = (confident_mask(a_heat(1), GRID, t) for t in (0.2, 0.7))
    np.testing.assert_array_equal(high, np.where(high > 0, low, 0))
    assert (high > 0).sum() < (low > 0).sum()


@pytest.mark.parametrize("value", [np.nan, -0.5, 3.0, np.inf])
def test_what_is_no_probability_is_refused(value: float) -> None:
    heat = a_heat(2)
    heat[:, 3, 4] = value
    with pytest.raises(DataError, match=r"heat reaches .* expected probabilities"):
        confident_mask(heat, GRID, 0.1)


@pytest.mark.parametrize("shape", [(10, 40, 24), (24, 40), (0, 24, 40)])
def test_a_heat_of_another_grid_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"has shape \(.*expected \(classes, 24, 40\)"):
        confident_mask(np.zeros(shape, np.float32), GRID, 0.1)


def test_at_threshold_0_the_weight_is_the_heat_of_every_cell_and_without_soft_it_is_1() -> None:
    heat = a_heat(3)
    np.testing.assert_array_equal(confident_mask(heat, GRID, 0), heat.max(axis=0))
    np.testing.assert_array_equal(confident_mask(heat, GRID, 0.6, soft=False), heat.max(axis=0) >= np.float32(0.6))
