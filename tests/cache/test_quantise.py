"""u8: at most half a step off, zero and constants exact, per frame and channel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache.errors import StoreError
from cache.quantise import dequantise_u8, keeps_zero, quantise_u8

FINITE32 = st.floats(-(2.0**100), 2.0**100, width=32)


def slow_codes(channel: list[float]) -> tuple[list[int], float, float]:
    """The codes, offset and step of one channel, in exact arithmetic as far as Python's float64 goes."""
    low, high = min(channel), max(channel)
    around = low < 0 <= high
    step = float(np.float32((high - low) / (254 if around else 255)))
    if around and step:
        low = -float(np.float32(math.ceil(-low / step) * step))
    return [min(255, max(0, round((value - low) / step))) if step else 0 for value in channel], low, step


@given(st.lists(st.lists(FINITE32, min_size=3, max_size=3), min_size=1, max_size=30))
def test_every_value_is_at_most_half_a_step_off(rows: list[list[float]]) -> None:
    values = np.array(rows, np.float32)
    codes, scale = quantise_u8(values, 1)
    again = dequantise_u8(codes, scale, 1)
    assert codes.dtype == np.uint8 and scale.dtype == again.dtype == np.float32
    assert codes.shape == again.shape == values.shape and scale.shape == (2, 3)
    error = np.abs(again.astype(np.float64) - values)
    # float32's own rounding: of the step, 255 times, and of the sum
    rounding = 2.0**-23 * (np.abs(values).max(axis=0).astype(np.float64) + 256 * scale[1]) + 1e-42
    assert (error <= 0.5 * scale[1].astype(np.float64) + rounding).all()


@given(st.lists(st.integers(-1000, 1000).map(lambda i: i / 16), min_size=1, max_size=40))
def test_codes_are_the_obvious_ones(channel: list[float]) -> None:
    codes, scale = quantise_u8(np.array(channel, np.float32)[:, None], 1)
    expected, low, step = slow_codes(channel)
    assert scale[1, 0] == step
    if min(channel) < 0 <= max(channel):
        assert scale[0, 0] == low or abs(scale[0, 0] - low) <= 1.001 * step  # a quotient at a whole number
        return
    assert scale[0, 0] == low
    assert np.abs(codes[:, 0].astype(int) - expected).max() <= 1  # a tie may fall to the other side in float32


@given(st.lists(st.floats(0, 2.0**60, width=32), min_size=1, max_size=50), st.integers(0, 49))
def test_zero_stays_exactly_zero_in_a_channel_that_is_not_negative(channel: list[float], where: int) -> None:
    """As after a ReLU: most values of a BEV feature are zeros."""
    values = np.array(channel, np.float32)
    values[where % len(values)] = 0
    again = dequantise_u8(*quantise_u8(values[:, None], 1), 1)[:, 0]
    assert (again[values == 0] == 0).all() and (again >= 0).all()


@given(st.lists(FINITE32, min_size=1, max_size=50), st.integers(0, 49))
@example([0.0, -3.2369994525903274e-42], 0)
@example([0.0, -1.401298464324817e-45], 0)
def test_zero_stays_exactly_zero_in_every_channel(channel: list[float], where: int) -> None:
    """A cell that no camera reached is told by its zeros, whatever other cells have in a channel."""
    values = np.array(channel, np.float32)
    values[where % len(values)] = 0
    codes, scale = quantise_u8(values[:, None], 1)
    assert (dequantise_u8(codes, scale, 1)[:, 0][values == 0] == 0).all()
    assert keeps_zero(scale).all()


def test_a_scale_that_loses_zeros_is_told() -> None:
    """As stores had it where a channel's least value is negative; without a zero in reach there is none to lose."""
    scale = np.array([[-1.0, 0.0, 0.5, -9.0], [0.3, 0.3, 0.3, 0.03]], np.float32)
    assert keeps_zero(scale).tolist() == [False, True, True, True]


@given(FINITE32, st.integers(1, 9))
def test_a_constant_channel_is_exact(value: float, count: int) -> None:
    values = np.full((count, 2), value, np.float32)
    values[:, 1] = np.linspace(0, 1, count)
    assert (dequantise_u8(*quantise_u8(values, 1), 1)[:, 0] == np.float32(value)).all()


def test_the_least_and_the_greatest_value_of_a_channel_are_kept() -> None:
    """To half a step where one of the codes means 0."""
    values = np.array([[-3.0, 10.0, -9.0], [5.0, 20.0, -4.0], [1.0, 11.0, -5.0]], np.float32)
    again = dequantise_u8(*quantise_u8(values, 1), 1)
    np.testing.assert_allclose(again[[0, 1], [0, 0]], [-3, 5], atol=0.501 * 8 / 254)
    np.testing.assert_allclose(again[[0, 1], [1, 1]], [10, 20], rtol=1e-6)
    np.testing.assert_allclose(again[[0, 1], [2, 2]], [-9, -4], rtol=1e-6)


def test_each_channel_and_each_frame_has_its_own_step() -> None:
    values = np.array([[1000.0, 0.001], [0.0, 0.0], [500.0, 0.0005]], np.float32)
    codes, scale = quantise_u8(values, 1)
    assert codes[:, 0].tolist() == codes[:, 1].tolist() == [255, 0, 128]
    assert scale[1, 0] == pytest.approx(1000 / 255) and scale[1, 1] == pytest.approx(0.001 / 255)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_any_axis_may_hold_the_channels(axis: int) -> None:
    values = np.random.default_rng(axis + 9).normal(size=(3, 4, 5)).astype(np.float32)
    codes, scale = quantise_u8(values, axis)
    moved, same = quantise_u8(np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]), 1)
    assert codes.shape == values.shape and np.array_equal(scale, same)
    assert np.array_equal(np.moveaxis(codes, axis, -1).reshape(moved.shape), moved)
    assert codes.flags.c_contiguous
    assert dequantise_u8(codes, scale, axis).shape == values.shape


def test_a_frame_without_cells_is_empty() -> None:
    codes, scale = quantise_u8(np.zeros((0, 4), np.float32), 1)
    assert codes.shape == (0, 4) and codes.dtype == np.uint8 and scale.shape == (2, 4) and not scale.any()
    assert dequantise_u8(codes, scale, 1).shape == (0, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_what_is_not_finite_in_float32_is_refused(value: float) -> None:
    with pytest.raises(StoreError, match="not finite"), np.errstate(over="ignore"):
        quantise_u8(np.array([[0.0, value]]), 1)


def test_half_precision_features_are_taken() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)
    codes, scale = quantise_u8(values, 1)
    assert np.abs(dequantise_u8(codes, scale, 1) - values).max() <= 0.51 * scale[1].max()


def test_a_range_that_float32_cannot_hold_is_refused_and_the_widest_is_kept() -> None:
    top = np.finfo(np.float32).max
    again = dequantise_u8(*quantise_u8(np.array([[-top / 2], [top / 2.1], [0.0]], np.float32), 1), 1)
    assert np.isfinite(again).all() and abs(float(again[2, 0])) <= 0.51 * float(top) / 255
    with pytest.raises(StoreError, match=r"spans 6\.8\d*e\+38, .* use --dtype float32"):
        quantise_u8(np.array([[-top], [top]], np.float32), 1)
