"""BEV encodings: cells or dense, float16, float32 or u8; the same cells come back, as near as the dtype promises."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.bev import DTYPES, LAYOUTS, BevEncoding
from cache.cells import FP16_MAX, gather_cells, scatter_cells
from cache.errors import ConfigError, CorruptError, StoreError

ALL = list(itertools.product(LAYOUTS, DTYPES))
BOTH = pytest.mark.parametrize(("layout", "dtype"), ALL)
SHAPE = (3, 4, 5)  # C, H, W


def encoding(layout: str, dtype: str, selectors: int = 2) -> BevEncoding:
    return BevEncoding(*SHAPE, selectors, layout, dtype)


def bev_and_weights(seed: int, share: float = 0.4, selectors: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kept = rng.uniform(size=(selectors, *SHAPE[1:])) < share
    return rng.normal(size=SHAPE).astype(np.float32), (rng.uniform(0.1, 1, kept.shape) * kept).astype(np.float32)


WHERE = "here: bev_index"


def step_of(bev: np.ndarray, dtype: str, picked: np.ndarray) -> np.ndarray:
    """(C,) the largest error that the dtype promises for values `picked` (C, n) of `bev`."""
    if dtype == "u8":
        reach = picked.max(axis=1) - picked.min(axis=1) if picked.shape[1] else np.zeros(len(bev))
        return 0.501 * reach / 254 + 1e-6  # 255 where 0 needs no code of its own
    return np.full(len(bev), 2.0**-11 * np.abs(bev).max() if dtype == "float16" else 0.0)


@given(st.sampled_from(ALL), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 3))
def test_stored_cells_are_the_weighted_ones_with_their_values(
    how: tuple[str, str], seed: int, share: float, selectors: int
) -> None:
    bev, weights = bev_and_weights(seed, share, selectors)
    chosen = encoding(*how, selectors)
    fields = chosen.encode(bev, weights)
    cells = chosen.to_cells(fields, WHERE)
    expected = gather_cells(bev, weights, "float32")
    assert np.array_equal(cells.index, expected.index) and np.array_equal(cells.weights, expected.weights)
    assert cells.values.dtype == np.dtype("float16" if how[1] == "float16" else "float32")
    assert cells.values.shape == expected.values.shape
    stored = bev.reshape(3, -1) if how[0] == "dense" else expected.values.T
    assert (np.abs(cells.values - expected.values) <= step_of(bev, how[1], stored)).all()


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_fields_are_declared_as_they_are_written(layout: str, dtype: str, share: float) -> None:
    chosen = encoding(layout, dtype)
    written = chosen.encode(*bev_and_weights(1, share))
    assert [spec.name for spec in chosen.fields()] == sorted(written, key=[spec.name for spec in chosen.fields()].index)
    assert set(written) == {spec.name for spec in chosen.fields()}
    for spec in chosen.fields():
        sizes = spec.sizes_to_write(written[spec.name])
        assert spec.shape_under(sizes) == written[spec.name].shape
        assert np.array_equal(spec.decode(spec.encode(written[spec.name]), sizes, "t"), written[spec.name])


def test_names_of_the_fields_are_those_of_the_format_page() -> None:
    names = {how: [spec.name for spec in encoding(*how).fields()] for how in ALL}
    assert names["cells", "float16"] == names["cells", "float32"] == ["bev_index", "bev_values", "bev_weights"]
    assert names["dense", "float16"] == ["bev_index", "bev_map", "bev_weights"]
    assert names["cells", "u8"] == ["bev_index", "bev_values", "bev_weights", "bev_scale"]
    assert names["dense", "u8"] == ["bev_index", "bev_map", "bev_weights", "bev_scale"]
    assert encoding("cells", "u8").fields()[1].dtype == "uint8"


@BOTH
def test_the_map_is_whole_under_dense_and_zero_beside_the_cells_else(layout: str, dtype: str) -> None:
    bev, weights = bev_and_weights(2)
    chosen = encoding(layout, dtype)
    fields = chosen.encode(bev, weights)
    found = chosen.to_map(fields, WHERE)
    assert found.shape == SHAPE
    if layout == "dense":
        assert (np.abs(found - bev) <= step_of(bev, dtype, bev.reshape(3, -1))[:, None, None]).all()
    else:
        expected, _ = scatter_cells(chosen.to_cells(fields, WHERE), SHAPE[1:])
        assert np.array_equal(found, expected) and not found[:, ~(weights > 0).any(axis=0)].any()


@BOTH
def test_a_frame_without_a_single_cell(layout: str, dtype: str) -> None:
    bev, weights = bev_and_weights(3, share=0.0)
    chosen = encoding(layout, dtype)
    cells = chosen.to_cells(chosen.encode(bev, weights), WHERE)
    assert len(cells) == 0 and cells.values.shape == (0, 3) and cells.weights.shape == (0, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_of_a_rectified_feature_stay_zero_under_u8(layout: str) -> None:
    bev, weights = bev_and_weights(4, share=0.9)
    bev = np.maximum(bev, 0)
    chosen = encoding(layout, "u8")
    cells = chosen.to_cells(chosen.encode(bev, weights), WHERE)
    exact = gather_cells(bev, weights, "float32").values
    assert (exact == 0).any() and (cells.values[exact == 0] == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_u8_step_is_the_frames_and_the_channels_own(layout: str) -> None:
    bev, weights = bev_and_weights(5)
    bev[1] *= 1000
    chosen = encoding(layout, "u8")
    one, other = chosen.encode(bev, weights)["bev_scale"], chosen.encode(bev * 2, weights)["bev_scale"]
    assert one.dtype == np.float32 and one.shape == (2, 3)
    assert one[1, 1] > 50 * one[1, 0] and np.allclose(other, 2 * one)


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_stored_value_that_is_not_finite_is_refused(layout: str, dtype: str, value: float) -> None:
    bev, weights = bev_and_weights(6)
    kept = tuple(np.argwhere((weights > 0).any(axis=0))[0])
    bev[(0, *kept)] = value
    with pytest.raises(StoreError, match="not finite"):
        encoding(layout, dtype).encode(bev, weights)


@pytest.mark.parametrize(("layout", "dtype"), [(layout, dtype) for layout, dtype in ALL if dtype == "float16"])
def test_float16_refuses_what_it_cannot_hold_and_the_others_take_it(layout: str, dtype: str) -> None:
    bev, weights = bev_and_weights(7, share=1.0)
    bev[0, 0, 0] = 1e5
    with pytest.raises(StoreError, match=r"above float16's 65504; use --dtype float32"):
        encoding(layout, dtype).encode(bev, weights)
    bev[0, 0, 0] = -FP16_MAX
    assert np.isfinite(encoding(layout, dtype).encode(bev, weights)["bev_index"]).all()
    bev[0, 0, 0] = 1e5
    for other in ("float32", "u8"):
        chosen = encoding(layout, other)
        found = chosen.to_cells(chosen.encode(bev, weights), WHERE).values[0, 0]
        assert found == pytest.approx(1e5) if other == "float32" else abs(found - 1e5) <= 0.501 * 1e5 / 254


@pytest.mark.parametrize(("layout", "dtype"), [("cells", dtype) for dtype in DTYPES])
def test_what_is_not_stored_may_be_anything(layout: str, dtype: str) -> None:
    bev, weights = bev_and_weights(8)
    bev[:, ~(weights > 0).any(axis=0)] = math.nan
    chosen = encoding(layout, dtype)
    assert np.isfinite(chosen.to_cells(chosen.encode(bev, weights), WHERE).values).all()


@BOTH
def test_two_grids_are_refused(layout: str, dtype: str) -> None:
    bev, weights = bev_and_weights(9)
    for wrong in (weights[:, :3], weights.transpose(0, 2, 1)):
        with pytest.raises(StoreError, match="one grid"):
            encoding(layout, dtype).encode(bev, wrong)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index[::-1],
        lambda index: np.repeat(index[:1], len(index)),
        lambda index: index - index[0] - 1,
        lambda index: index + 20 - index[-1],
        lambda index: index + 2**30,
    ],
)
@BOTH
def test_cells_out_of_order_or_outside_are_refused(layout: str, dtype: str, change: Any) -> None:
    chosen = encoding(layout, dtype)
    fields = chosen.encode(*bev_and_weights(10))
    fields["bev_index"] = change(fields["bev_index"])
    with pytest.raises(CorruptError, match=r"here: bev_index: cells out of order or outside 4 x 5"):
        chosen.to_cells(fields, WHERE)


@BOTH
def test_encoding_values_that_are_gathered_already_is_the_same(layout: str, dtype: str) -> None:
    bev, weights = bev_and_weights(11)
    cells = gather_cells(bev, weights, "float32")
    chosen = encoding(layout, dtype)
    again = chosen.encode_values(bev if layout == "dense" else cells.values, cells.index, cells.weights)
    for name, value in chosen.encode(bev, weights).items():
        assert again[name].dtype == value.dtype and np.array_equal(again[name], value)


@BOTH
def test_it_reads_back_from_a_header(layout: str, dtype: str) -> None:
    assert BevEncoding.from_dict(encoding(layout, dtype).to_dict()) == encoding(layout, dtype)


@pytest.mark.parametrize("values", [{}, {"channels": "many"}, {**encoding("cells", "u8").to_dict(), "dtype": "int4"}])
def test_a_header_that_makes_no_sense_is_corrupt(values: dict[str, Any]) -> None:
    with pytest.raises(CorruptError, match=r"header: bev is .*run verify"):
        BevEncoding.from_dict(values)


@pytest.mark.parametrize(("layout", "dtype"), [("sparse", "float16"), ("cells", "uint8"), ("cells", "float64")])
def test_an_unknown_encoding_is_refused_with_those_there_are(layout: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one of cells, dense in one of float16, float32, u8"):
        encoding(layout, dtype)


@BOTH
def test_joined_cells_are_each_frames_cells_one_after_another(layout: str, dtype: str) -> None:
    chosen = encoding(layout, dtype)
    frames = [chosen.encode(*bev_and_weights(seed, share=share)) for seed, share in enumerate((0.3, 0.0, 0.6, 0.0))]
    offsets = np.cumsum([0, *(len(fields["bev_index"]) for fields in frames)])
    joined = {name: np.concatenate([fields[name] for fields in frames]) for name in frames[0]}
    found = chosen.to_joined_cells(joined, offsets)
    if layout == "dense":
        assert found is None
        return
    assert found is not None
    for i, fields in enumerate(frames):
        expected, part = chosen.to_cells(fields, WHERE), slice(offsets[i], offsets[i + 1])
        assert np.array_equal(found.index[part], expected.index)
        assert np.array_equal(found.values[part], expected.values) and found.values.dtype == expected.values.dtype
        assert np.array_equal(found.weights[part], expected.weights)
    for wrong in (offsets[0], offsets[2], offsets[3] - 1):  # the first of two frames, and the last cell of all
        index = joined["bev_index"].copy()
        index[wrong] = -1 if wrong != offsets[3] - 1 else SHAPE[1] * SHAPE[2]
        assert chosen.to_joined_cells({**joined, "bev_index": index}, offsets) is None
