"""Cells keep exactly the cells with a weight, and refuse what they would have to change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.cells import FP16_MAX, gather_cells, scatter_cells
from cache.errors import StoreError


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_scatter_of_gather_is_the_map_where_a_weight_is_and_zero_elsewhere(
    seed: int, channels: int, height: int, width: int, selectors: int, dtype: str, share: float
) -> None:
    rng = np.random.default_rng(seed)
    bev = rng.normal(size=(channels, height, width)).astype(dtype)
    kept = rng.uniform(size=(selectors, height, width)) < share
    weights = (rng.uniform(0.1, 1, kept.shape) * kept).astype(np.float32)
    cells = gather_cells(bev, weights, dtype)
    values, again = scatter_cells(cells, (height, width))
    assert values.dtype == bev.dtype and np.array_equal(values, np.where(kept.any(axis=0), bev, 0))
    assert again.dtype == np.float32 and np.array_equal(again, weights)
    assert len(cells) == kept.any(axis=0).sum()  # and not one cell more


def test_a_cell_is_named_by_row_times_width_plus_column() -> None:
    bev = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    weights = np.zeros((1, 3, 5), np.float32)
    weights[0, 2, 1] = weights[0, 0, 4] = 0.5
    cells = gather_cells(bev, weights)
    assert cells.index.dtype == np.int32 and cells.index.tolist() == [4, 11]
    assert cells.values.dtype == np.float16 and cells.values.tolist() == [[4, 19], [11, 26]]
    assert cells.weights.dtype == np.float32 and cells.weights.tolist() == [[0.5], [0.5]]


def test_one_selectors_cells_carry_the_other_selectors_zero() -> None:
    weights = np.zeros((2, 1, 2), np.float32)
    weights[0, 0, 0], weights[1, 0, 1] = 0.25, 0.75
    cells = gather_cells(np.ones((1, 1, 2), np.float32), weights)
    assert cells.weights.tolist() == [[0.25, 0.0], [0.0, 0.75]]


def test_a_masked_mean_over_cells_equals_the_dense_one() -> None:
    rng = np.random.default_rng(7)
    bev = rng.normal(size=(4, 8, 8)).astype(np.float32)
    weights = (rng.uniform(size=(1, 8, 8)) * (rng.uniform(size=(1, 8, 8)) < 0.2)).astype(np.float32)
    student = rng.normal(size=(4, 8, 8))
    dense = (weights * (student - bev) ** 2).sum() / weights.sum()
    cells = gather_cells(bev, weights, "float32")
    picked = student.reshape(4, -1)[:, cells.index].T
    assert (cells.weights * (picked - cells.values) ** 2).sum() / cells.weights.sum() == pytest.approx(dense, rel=1e-6)


@pytest.mark.parametrize("value", [65505.0, -65505.0, 1e9])
def test_what_float16_cannot_hold_is_refused_and_float32_offered(value: float) -> None:
    bev = np.full((1, 2, 2), value, np.float32)
    with pytest.raises(StoreError, match=r"above float16's 65504; use --dtype float32"):
        gather_cells(bev, np.ones((1, 2, 2)))
    assert gather_cells(bev, np.ones((1, 2, 2)), "float32").values[0, 0] == np.float32(value)


def test_the_largest_float16_is_kept_and_what_is_not_stored_may_be_anything() -> None:
    bev = np.array([[[FP16_MAX, -FP16_MAX, math.nan, 1e9]]], np.float32)
    cells = gather_cells(bev, np.array([[[1.0, 1.0, 0.0, 0.0]]]))
    assert cells.values.ravel().tolist() == [FP16_MAX, -FP16_MAX]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_feature_that_is_not_finite_is_refused(value: float, dtype: str) -> None:
    with pytest.raises(StoreError, match="not finite"):
        gather_cells(np.full((1, 1, 1), value), np.ones((1, 1, 1)), dtype)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -0.5])
def test_a_weight_that_would_be_dropped_silently_is_refused(weight: float) -> None:
    with pytest.raises(StoreError, match="weight"):
        gather_cells(np.ones((1, 1, 2)), np.array([[[weight, 1.0]]]))


def test_a_weight_below_float32_is_no_weight() -> None:
    assert len(gather_cells(np.ones((1, 1, 2)), np.array([[[1e-60, 1.0]]]))) == 1


@pytest.mark.parametrize("shape", [(1, 4, 2), (1, 2, 3), (1, 1, 8)])
def test_two_grids_are_refused_even_of_equal_area(shape: tuple[int, ...]) -> None:
    with pytest.raises(StoreError, match="one grid"):
        gather_cells(np.ones((3, 2, 4)), np.ones(shape))


def test_a_type_that_would_wrap_is_refused() -> None:
    with pytest.raises(StoreError, match="float16 or float32"):
        gather_cells(np.ones((3, 2, 4)), np.ones((1, 2, 4)), "uint8")
