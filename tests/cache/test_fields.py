"""Fields: encode and decode are inverse, and nothing that a member's bytes claim is believed."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from cache import fields
from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec, decode_npy, encode_npy

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


FIELD_A = FieldSpec("a", "npy", "float32", ("N", "5"))
FIELD_Z = FieldSpec("a", "npy.zstd", "float32", ("N", "5"))


@given(
    st.sampled_from(["npy", "npy.zstd"]),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.integers(0, 2**32 - 1),
)
@example("npy", "float64", (), 0)
@example("npy.zstd", "float32", (0, 5), 0)
def test_any_array_reads_back_with_its_dtype_shape_and_bits(
    ext: str, dtype: str, shape: tuple[int, ...], seed: int
) -> None:
    array = array_of(dtype, shape, seed)
    spec = FieldSpec("a", ext, dtype, tuple(str(size) if i % 2 else "N" for i, size in enumerate(shape)))
    data = spec.encode(array)
    assert spec.encode(array.copy()) == data
    again = spec.decode(data, "test")
    assert again.dtype == array.dtype and again.shape == array.shape and again.tobytes() == array.tobytes()
    assert not again.flags.writeable and again.flags.c_contiguous


def test_memory_layout_does_not_reach_the_bytes() -> None:
    array = array_of("float32", (6, 5), 1)
    assert FIELD_A.encode(np.asfortranarray(array)) == FIELD_A.encode(array)
    assert FIELD_A.encode(np.repeat(array, 2, axis=0)[::2]) == FIELD_A.encode(array)


@pytest.mark.parametrize("ext", ["npy", "npy.zstd"])
def test_stock_numpy_reads_the_member(ext: str) -> None:
    array = array_of("int32", (4, 3), 2)
    data = FieldSpec("a", ext, "int32", ("N", "3")).encode(array)
    raw = Zstd().decode(data) if ext == "npy.zstd" else data
    assert np.array_equal(np.load(io.BytesIO(raw), allow_pickle=False), array)


def test_large_arrays_decode_without_a_copy() -> None:
    data = FIELD_A.encode(np.zeros((200_000, 5), np.float32))
    tracemalloc.start()
    array = FIELD_A.decode(data, "test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.shape == (200_000, 5) and peak < 100_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_reads_back_equal_and_its_bytes_do_not_depend_on_key_order(value: dict[str, Any]) -> None:
    spec = FieldSpec("meta", "json")
    data = spec.encode(value)
    assert spec.decode(data, "test") == value
    assert spec.encode(dict(reversed(value.items()))) == data


def test_jpeg_bytes_pass_untouched() -> None:
    spec = FieldSpec("cam_front", "jpg")
    assert spec.decode(spec.encode(b"\xff\xd8 any \xff\xd9"), "test") == b"\xff\xd8 any \xff\xd9"


def test_json_refuses_what_json_does_not_have() -> None:
    with pytest.raises(StoreError, match=r"field meta: a value is not finite"):
        FieldSpec("meta", "json").encode({"x": float("nan")})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_bytes_that_are_no_json_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError, match=r"shard 3: x\.meta\.json: not JSON"):
        FieldSpec("meta", "json").decode(data, "shard 3: x.meta.json")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 5), np.float64),
        np.zeros((2, 5), ">f4"),
        np.zeros((2, 4), np.float32),
        np.zeros((2, 5, 1), np.float32),
        np.zeros(10, np.float32),
        np.array([[None] * 5], object),
    ],
)
def test_an_array_of_another_dtype_or_shape_is_refused_on_both_sides(array: np.ndarray) -> None:
    with pytest.raises(StoreError, match="field a: found"):
        FIELD_A.encode(array)
    if array.dtype != object:
        with pytest.raises(CorruptError, match=r"here: found .* expected"):
            FIELD_A.decode(encode_npy(array), "here")


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


def zstd_frame(claimed: int, blocks: int) -> bytes:
    """A frame that claims `claimed` bytes and holds `blocks` run-length blocks of 128 KiB, four bytes each."""
    body = b"".join((131072 << 3 | 1 << 1 | (i == blocks - 1)).to_bytes(3, "little") + b"\0" for i in range(blocks))
    return b"\x28\xb5\x2f\xfd\xe0" + claimed.to_bytes(8, "little") + body


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(zstd_frame(2**45, 1), id="32 terabytes claimed"),
        pytest.param(zstd_frame(16384 * 131072, 16384), id="64 kB that unfold to 2 GB"),
        pytest.param(zstd_frame(131072, 1) + zstd_frame(8192 * 131072, 8192), id="a bomb behind a small frame"),
        pytest.param(zstd_frame(131072, 1), id="a good frame, no npy in it"),
        pytest.param(zstd_frame(131073, 1), id="one byte more claimed than held"),
        pytest.param(zstd_frame(0, 1), id="nothing claimed"),
        pytest.param(FIELD_Z.encode(np.ones((9, 5), np.float32))[:-1], id="cut"),
        pytest.param(FIELD_Z.encode(np.ones((9, 5), np.float32)) + b"\0", id="a byte behind"),
        pytest.param(FIELD_Z.encode(np.ones((9, 5), np.float32)) * 2, id="twice"),
        pytest.param(encode_npy(np.ones((9, 5), np.float32)), id="not compressed"),
        pytest.param(b"\x28\xb5\x2f\xfd", id="magic only"),
        pytest.param(b"\x28\xb5\x2f\xfd\xe0\x01", id="cut header"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_compressed_member_that_lies_is_refused_before_memory_is_taken(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(CorruptError, match=r"shards/1\.tar"):
        FIELD_Z.decode(data, "shards/1.tar: member")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@given(st.data())
def test_flipped_bytes_of_a_compressed_member_give_a_well_formed_array_or_an_error(data: st.DataObject) -> None:
    good = bytearray(FIELD_Z.encode(np.tile(np.arange(5, dtype=np.float32), (40, 1))))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = FIELD_Z.decode(bytes(good), "test")
    except CorruptError:
        return
    assert array.dtype == np.float32 and array.shape == (40, 5)


def test_the_content_size_is_read_right_for_every_header_width() -> None:
    for size in (1, 255, 256, 300, 65_791, 65_792, 3_000_000):
        assert fields._zstd_content_size(bytes(Zstd(level=1).encode(b"a" * size))) == size


def test_what_the_reader_would_refuse_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_ARRAY_BYTES", 1000)
    with pytest.raises(StoreError, match="1128 bytes, the format allows 1000"):
        FieldSpec("a", "npy.zstd", "uint8", ("N",)).encode(np.zeros(1000, np.uint8))


@pytest.mark.parametrize("name", ["", "A", "a.b", "a/b", "../a", "_a", "ä", "a b", "a\n", "a" * 49])
def test_names_that_webdataset_or_tar_would_change_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="field name"):
        FieldSpec(name, "npy", "float32", ("N",))


@pytest.mark.parametrize("ext", ["", "pkl", "pyd", "npz", "NPY", "npy.gz", "pt"])
def test_unknown_extensions_are_refused(ext: str) -> None:
    with pytest.raises(StoreError, match="extension"):
        FieldSpec("a", ext, "float32")


@pytest.mark.parametrize("dtype", ["", "object", "O", "U4", "complex64", "float128", "junk", ">f4"])
def test_array_fields_hold_plain_numbers_only(dtype: str) -> None:
    with pytest.raises(StoreError, match="dtype"):
        FieldSpec("a", "npy", dtype, ("N",))


def test_a_spec_reads_back_from_its_dict() -> None:
    spec = FieldSpec("points", "npy.zstd", "float32", ("P", "5"), "m", "x, y, z, intensity, dt")
    assert FieldSpec.from_dict(spec.to_dict()) == spec and spec.member == "points.npy.zstd"
