"""npy bytes: what stock numpy reads and writes, and nothing that a header claims is believed."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import CorruptError
from cache.npy import decode_npy, decode_npy_as, encode_npy, npy_header

DTYPES = ["bool", "uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]


def array_of(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bits at all, NaNs with payload among them."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, count, np.uint8)
    return raw.view(dtype).reshape(shape)


def npy(header: str, payload: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1") + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + payload


def claim(descr: str = "'<f4'", order: str = "False", shape: str = "(3, 5)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4).map(tuple), st.integers(0, 2**32 - 1))
def test_any_array_reads_back_and_is_what_stock_numpy_reads(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    array = array_of(dtype, shape, seed)
    data = encode_npy(array)
    for again in (decode_npy(data, "test"), decode_npy(memoryview(data), "test")):
        assert again.dtype == array.dtype and again.shape == array.shape and again.tobytes() == array.tobytes()
        assert not again.flags.writeable and again.flags.c_contiguous
    assert np.load(io.BytesIO(data), allow_pickle=False).tobytes() == array.tobytes()
    assert encode_npy(array.copy(order="F")) == data


def test_what_numpy_saves_is_read() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12, dtype=np.int32).reshape(3, 4))
    assert decode_npy(buffer.getvalue(), "test").tolist() == np.arange(12).reshape(3, 4).tolist()


def test_large_arrays_decode_without_a_copy() -> None:
    data = encode_npy(np.zeros((200_000, 5), np.float32))
    tracemalloc.start()
    array = decode_npy(data, "test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.shape == (200_000, 5) and peak < 100_000


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(npy(claim("'|O'", shape="(0,)")), id="object, no payload"),
        pytest.param(npy(claim("'|O'", shape="(1,)"), b"cos\nsystem\n(S'true'\ntR."), id="object with a pickle"),
        pytest.param(npy(claim("'<U2'", shape="(1,)"), bytes(8)), id="text"),
        pytest.param(npy(claim("'|V0'", shape="(9999999999,)")), id="items without bytes"),
        pytest.param(npy(claim("[('x', '<f4')]", shape="(1,)"), bytes(4)), id="record"),
        pytest.param(npy(claim("'<c8'", shape="(1,)"), bytes(8)), id="complex"),
        pytest.param(npy(claim(order="True"), bytes(60)), id="column order"),
        pytest.param(npy(claim(), bytes(59)), id="a byte short"),
        pytest.param(npy(claim(), bytes(61)), id="a byte long"),
        pytest.param(npy(claim(shape="(100000000000, 5)"), bytes(60)), id="two terabytes"),
        pytest.param(npy(claim(shape=f"(0, {10**30})")), id="a dimension beyond int64"),
        pytest.param(npy(claim(shape="(" + "0, " * 40 + ")")), id="40 dimensions"),
        pytest.param(npy(claim(shape="(-1, 5)")), id="negative"),
        pytest.param(npy(claim(shape="(-3, -5)"), bytes(60)), id="two negatives"),
        pytest.param(npy(claim(shape="(3.0, 5)"), bytes(60)), id="fractional"),
        pytest.param(npy(claim(shape="'ab'")), id="shape is text"),
        pytest.param(npy(claim(descr="()")), id="empty descr"),
        pytest.param(npy(claim(descr="'no such'")), id="unknown descr"),
        pytest.param(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,"), id="cut header"),
        pytest.param(npy("{'descr': '<f4'}"), id="keys missing"),
        pytest.param(npy("__import__('os').abort()"), id="code"),
        pytest.param(npy("-" * 900 + "1"), id="deep expression"),
        pytest.param(npy("(" * 900), id="deep brackets"),
        pytest.param(npy(claim() + " " * 60_000, bytes(60)), id="oversized header"),
        pytest.param(npy(claim(), bytes(60), b"\x02\x00"), id="version 2"),
        pytest.param(npy(claim(), bytes(60), b"\x09\x00"), id="version 9"),
        pytest.param(b"\x93NUMPY\x01\x00\xff\xff{", id="header beyond the end"),
        pytest.param(b"\x93NUMPY\x01", id="cut magic"),
        pytest.param(b"PK\x03\x04" + bytes(60), id="a zip"),
        pytest.param(b"\x80\x04\x95", id="a pickle"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(CorruptError, match=r"shards/1\.tar"):
        decode_npy(data, "shards/1.tar: member")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@given(st.data())
def test_flipped_header_bytes_give_an_array_of_the_same_bytes_or_an_error(data: st.DataObject) -> None:
    good = bytearray(encode_npy(array_of("float32", (3, 5), 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    try:
        array = decode_npy(bytes(good), "test")
    except CorruptError:
        return
    assert array.nbytes == 60 and array.tobytes() == bytes(good[-60:])


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_an_array_or_an_error(tail: bytes) -> None:
    for data in (tail, b"\x93NUMPY\x01\x00" + tail, npy(tail.decode("latin1"))):
        with contextlib.suppress(CorruptError):
            decode_npy(data, "test")


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4).map(tuple), st.integers(0, 2**32 - 1))
def test_knowing_what_comes_reads_the_same(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    array = array_of(dtype, shape, seed)
    data = encode_npy(array)
    for expected in ((dtype, shape), ("float16", (3,)), (dtype, (*shape, 1))):
        found = decode_npy_as(data, *expected, "test")
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
        assert not found.flags.writeable
    assert npy_header(dtype, shape) == data[: len(data) - array.nbytes]
    with pytest.raises(CorruptError):
        decode_npy_as(data[:-1] if array.nbytes else data + b"x", dtype, shape, "test")
