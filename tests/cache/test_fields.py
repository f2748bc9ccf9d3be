"""Fields: encode and decode are inverse in both formats, and nothing that a member's bytes claim is believed."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from cache import fields
from cache.codecs import CODECS, _zstd_content_size
from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec, letters_of
from cache.npy import encode_npy
from tests.cache.test_npy import DTYPES, array_of

FIELD_A = FieldSpec("a", "npy", "float32", ("N", "5"))
FIELD_Z = FieldSpec("a", "npy.zstd", "float32", ("N", "5"))
EXTENSIONS = [f"npy.{codec}".rstrip(".") for codec in CODECS]
ROOM = {"N": 9}
WHERE = "shards/1.tar: member"


def test_letters_are_told_once_in_the_order_they_come() -> None:
    specs = [FIELD_A, FieldSpec("b", "npy", "int8", ("M", "2", "N")), FieldSpec("c", "jpg"), FieldSpec("d", "json")]
    assert letters_of(specs) == ("N", "M") and letters_of([]) == ()


@given(
    st.sampled_from(EXTENSIONS),
    st.sampled_from(DTYPES),
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=4),
    st.integers(0, 2**32 - 1),
)
@example("npy", "float64", [], 0)
@example("npy.zstd", "float32", [(0, True), (5, False)], 0)
def test_any_array_reads_back_with_its_dtype_shape_and_bits(
    ext: str, dtype: str, dimensions: list[tuple[int, bool]], seed: int
) -> None:
    """As a tar member and as a Zarr chunk with more room than it needs."""
    shape = tuple(size if letter else size + 1 for size, letter in dimensions)
    array = array_of(dtype, shape, seed)
    letters = dict(zip("ABCD", shape, strict=False))
    declared = tuple("ABCD"[i] if letter else str(shape[i]) for i, (_, letter) in enumerate(dimensions))
    spec = FieldSpec("a", ext, dtype, declared)
    capacity = {letter: max(1, size + seed % 3) for letter, size in letters.items()}
    assert spec.sizes_to_write(array) == {letter: letters[letter] for letter in declared if letter in letters}
    data, chunk = spec.encode(array), spec.encode_padded(array, capacity)
    assert spec.encode(array.copy()) == data and spec.encode_padded(array.copy(order="F"), capacity) == chunk
    for again in (spec.decode(data, letters, "test"), spec.decode_padded(chunk, letters, capacity, "test")):
        assert again.dtype == array.dtype and again.shape == array.shape and again.tobytes() == array.tobytes()
        assert not again.flags.writeable


def test_memory_layout_does_not_reach_the_bytes() -> None:
    array = array_of("float32", (6, 5), 1)
    for same in (np.asfortranarray(array), np.repeat(array, 2, axis=0)[::2]):
        assert FIELD_A.encode(same) == FIELD_A.encode(array)
        assert FIELD_A.encode_padded(same, ROOM) == FIELD_A.encode_padded(array, ROOM)


@pytest.mark.parametrize("ext", ["npy", "npy.zstd"])
def test_stock_numpy_reads_the_member(ext: str) -> None:
    array = array_of("int32", (4, 3), 2)
    data = FieldSpec("a", ext, "int32", ("N", "3")).encode(array)
    raw = Zstd().decode(data) if ext == "npy.zstd" else data
    assert np.array_equal(np.load(io.BytesIO(raw), allow_pickle=False), array)


def test_a_chunk_is_the_bare_values_with_zeros_to_the_capacity() -> None:
    array = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    assert FIELD_A.encode_padded(array, ROOM) == array.astype("<f4").tobytes() + bytes(7 * 5 * 4)
    both = FieldSpec("a", "npy", "uint8", ("N", "M"))
    chunk = both.encode_padded(np.ones((1, 2), np.uint8), {"N": 2, "M": 3})
    assert chunk == bytes([1, 1, 0, 0, 0, 0])


def test_more_than_the_capacity_is_refused_with_what_it_needs() -> None:
    with pytest.raises(StoreError, match=r"field a: 10 of N, the store's arrays hold 9; .*--capacity N=10"):
        FIELD_A.encode_padded(np.zeros((10, 5), np.float32), ROOM)
    assert FIELD_A.encode_padded(np.zeros((9, 5), np.float32), ROOM)


def test_large_arrays_decode_without_a_copy() -> None:
    array = np.zeros((200_000, 5), np.float32)
    member, chunk = FIELD_A.encode(array), FIELD_A.encode_padded(array, {"N": 200_000})
    for decode in (
        lambda: FIELD_A.decode(member, {"N": 200_000}, "test"),
        lambda: FIELD_A.decode_padded(chunk, {"N": 100_000}, {"N": 200_000}, "test"),
    ):
        tracemalloc.start()
        found = decode()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.shape[1] == 5 and peak < 100_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_reads_back_equal_and_its_bytes_do_not_depend_on_key_order(value: dict[str, Any]) -> None:
    spec = FieldSpec("meta", "json")
    data = spec.encode(value)
    assert spec.decode(data, {}, "test") == value
    assert spec.encode(dict(reversed(value.items()))) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_jpeg_bytes_pass_untouched(kind: Any) -> None:
    spec = FieldSpec("cam_front", "jpg")
    assert spec.decode(spec.encode(kind(b"\xff\xd8 any \xff\xd9")), {}, "test") == b"\xff\xd8 any \xff\xd9"


@pytest.mark.parametrize("value", [5, "text", None, [1, 2], np.zeros(3)])
def test_what_is_no_bytes_is_no_image(value: Any) -> None:
    with pytest.raises(StoreError, match=r"field cam_front: found a .*, expected the image file's bytes"):
        FieldSpec("cam_front", "jpg").encode(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.zeros(3), {1, 2}, b"bytes", np.float32(1)])
def test_json_refuses_what_json_does_not_have(value: Any) -> None:
    with pytest.raises(StoreError, match=r"field meta: a value is not finite or not JSON's"):
        FieldSpec("meta", "json").encode({"x": value})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_bytes_that_are_no_json_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError, match=r"shard 3: x\.meta\.json: not JSON"):
        FieldSpec("meta", "json").decode(data, {}, "shard 3: x.meta.json")


WRONG = [
    np.zeros((2, 5), np.float64),
    np.zeros((2, 5), ">f4"),
    np.zeros((2, 4), np.float32),
    np.zeros((2, 5, 1), np.float32),
    np.zeros(10, np.float32),
    np.zeros((), np.float32),
    np.array([[None] * 5], object),
]


@pytest.mark.parametrize("array", WRONG)
def test_an_array_of_another_dtype_or_shape_is_refused_on_both_sides(array: np.ndarray) -> None:
    for encode in (FIELD_A.encode, lambda value: FIELD_A.encode_padded(value, ROOM)):
        with pytest.raises(StoreError, match="field a: found"):
            encode(array)
    if array.dtype != object:
        with pytest.raises(CorruptError, match=r"here: found .* expected"):
            FIELD_A.decode(encode_npy(array), {"N": 2}, "here")


@pytest.mark.parametrize("value", [None, 5, [[1.0] * 5], "text", b"bytes", np.float32(3)])
def test_what_is_no_array_is_refused(value: Any) -> None:
    with pytest.raises(StoreError, match=r"field a: found a .*, expected an array"):
        FIELD_A.encode(value)


@pytest.mark.parametrize("said", [0, 1, 3, 2**32 - 1])
@pytest.mark.parametrize("spec", [FIELD_A, FIELD_Z])
def test_an_array_of_another_size_than_the_index_says_is_refused(spec: FieldSpec, said: int) -> None:
    data = spec.encode(np.zeros((2, 5), np.float32))
    with pytest.raises(CorruptError, match=r"here: (found shape|zstd header claims|npy header|.* bytes, expected)"):
        spec.decode(data, {"N": said}, "here")


def test_a_letter_that_stands_twice_is_one_size() -> None:
    square = FieldSpec("a", "npy", "int8", ("N", "N"))
    assert square.sizes_to_write(np.zeros((3, 3), np.int8)) == {"N": 3}
    with pytest.raises(StoreError, match=r"field a: found shape \[3, 2\]"):
        square.encode(np.zeros((3, 2), np.int8))


@pytest.mark.parametrize("spec", [FIELD_A, FIELD_Z])
@pytest.mark.parametrize(
    ("sizes", "capacity"),
    [
        ({"N": 10}, {"N": 9}),
        ({"N": 2}, {"N": 8}),
        ({"N": 2}, {"N": 10}),
        ({"N": 2}, {"N": 2**40}),
        ({"N": 0}, {"N": 0}),
    ],
)
def test_a_chunk_of_another_capacity_than_the_manifest_says_is_refused(
    spec: FieldSpec, sizes: dict[str, int], capacity: dict[str, int]
) -> None:
    chunk = spec.encode_padded(np.zeros((2, 5), np.float32), ROOM)
    with pytest.raises(CorruptError, match=r"here: "):
        spec.decode_padded(chunk, sizes, capacity, "here")


# --- compressed members


def zstd_frame(claimed: int, blocks: int) -> bytes:
    """A frame that claims `claimed` bytes and holds `blocks` run-length blocks of 128 KiB, four bytes each."""
    body = b"".join((131072 << 3 | 1 << 1 | (i == blocks - 1)).to_bytes(3, "little") + b"\0" for i in range(blocks))
    return b"\x28\xb5\x2f\xfd\xe0" + claimed.to_bytes(8, "little") + body


LIES = [
    pytest.param(zstd_frame(2**45, 1), id="32 terabytes claimed"),
    pytest.param(zstd_frame(16384 * 131072, 16384), id="64 kB that unfold to 2 GB"),
    pytest.param(zstd_frame(131072, 1) + zstd_frame(8192 * 131072, 8192), id="a bomb behind a small frame"),
    pytest.param(zstd_frame(131072, 1), id="a good frame of another size"),
    pytest.param(zstd_frame(131073, 1), id="one byte more claimed than held"),
    pytest.param(zstd_frame(180, 1), id="fewer bytes claimed than held"),
    pytest.param(zstd_frame(0, 1), id="nothing claimed"),
    pytest.param(FIELD_Z.encode(np.ones((9, 5), np.float32))[:-1], id="cut"),
    pytest.param(FIELD_Z.encode(np.ones((9, 5), np.float32)) + b"\0", id="a byte behind"),
    pytest.param(FIELD_Z.encode(np.ones((9, 5), np.float32)) * 2, id="twice"),
    pytest.param(FIELD_Z.encode_padded(np.ones((9, 5), np.float32), ROOM)[:-1], id="cut chunk"),
    pytest.param(FIELD_Z.encode_padded(np.ones((9, 5), np.float32), ROOM) * 2, id="chunk twice"),
    pytest.param(encode_npy(np.ones((9, 5), np.float32)), id="not compressed"),
    pytest.param(b"\x28\xb5\x2f\xfd", id="magic only"),
    pytest.param(b"\x28\xb5\x2f\xfd\xe0\x01", id="cut header"),
    pytest.param(b"", id="nothing"),
]


@pytest.mark.parametrize("data", LIES)
def test_a_compressed_member_that_lies_is_refused_before_memory_is_taken(data: bytes) -> None:
    for decode in (
        lambda: FIELD_Z.decode(data, {"N": 9}, WHERE),
        lambda: FIELD_Z.decode_padded(data, {"N": 9}, ROOM, WHERE),
    ):
        tracemalloc.start()
        with pytest.raises(CorruptError, match=r"shards/1\.tar"):
            decode()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


BOMB = """
import resource, sys
import numpy as np
from cache.errors import CorruptError
from cache.fields import FieldSpec
from tests.cache.test_fields import zstd_frame
spec = FieldSpec("a", "npy.zstd", "uint8", ("N",))
bombs = [zstd_frame(16384 * 131072, 16384), zstd_frame(131072, 1) + zstd_frame(8192 * 131072, 8192)]
good = spec.encode(np.zeros(1 << 20, np.uint8))
here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + (64 << 20),) * 2)
decoders = [lambda data: spec.decode(data, {"N": 1 << 20}, "x")]
decoders += [lambda data: spec.decode_padded(data, {"N": 5}, {"N": 1 << 20}, "x")]
for data in bombs:
    for decode in decoders:
        try:
            decode(data)
            sys.exit("decoded")
        except CorruptError:
            pass
assert spec.decode(good, {"N": 1 << 20}, "x").shape == (1 << 20,)
"""


def test_what_unfolds_to_gigabytes_is_refused_where_the_process_has_64_megabytes() -> None:
    """The kernel's word on it, which also sees what a C library allocates."""
    done = subprocess.run([sys.executable, "-c", BOMB], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(st.data())
def test_flipped_bytes_of_a_compressed_member_give_a_well_formed_array_or_an_error(data: st.DataObject) -> None:
    array = np.tile(np.arange(5, dtype=np.float32), (40, 1))
    good = bytearray(FIELD_Z.encode(array) if data.draw(st.booleans()) else FIELD_Z.encode_padded(array, {"N": 50}))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    for decode in (
        lambda: FIELD_Z.decode(bytes(good), {"N": 40}, "test"),
        lambda: FIELD_Z.decode_padded(bytes(good), {"N": 40}, {"N": 50}, "test"),
    ):
        try:
            found = decode()
        except CorruptError:
            continue
        assert found.dtype == np.float32 and found.shape == (40, 5)


def test_the_content_size_is_read_right_for_every_header_width() -> None:
    for size in (1, 255, 256, 300, 65_791, 65_792, 3_000_000):
        assert _zstd_content_size(bytes(Zstd(level=1).encode(b"a" * size))) == size


def test_what_the_reader_would_refuse_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_ARRAY_BYTES", 1000)
    spec = FieldSpec("a", "npy.zstd", "uint8", ("N",))
    for encode in (spec.encode, lambda value: spec.encode_padded(value, {"N": 2000})):
        with pytest.raises(StoreError, match="1001 bytes, the format allows 1000"):
            encode(np.zeros(1001, np.uint8))
    largest = np.arange(1000, dtype=np.uint8)
    assert np.array_equal(spec.decode(spec.encode(largest), {"N": 1000}, "test"), largest)
    with pytest.raises(CorruptError, match="in a capacity of"):
        spec.decode_padded(b"", {"N": 5}, {"N": 1001}, "test")


# --- declarations


@pytest.mark.parametrize("name", ["", "A", "a.b", "a/b", "../a", "_a", "ä", "a b", "a\n", "a" * 49])
def test_names_that_webdataset_or_tar_would_change_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="field name"):
        FieldSpec(name, "npy", "float32", ("N",))


@pytest.mark.parametrize("ext", ["", "pkl", "pyd", "npz", "NPY", "npy.gz", "npy.", "npy.zstd.zstd", "json.zstd", "pt"])
def test_unknown_extensions_are_refused(ext: str) -> None:
    with pytest.raises(StoreError, match="extension"):
        FieldSpec("a", ext, "float32")


@pytest.mark.parametrize("dtype", ["", "object", "O", "U4", "complex64", "float128", "junk", ">f4", "int32 "])
def test_array_fields_hold_plain_numbers_only(dtype: str) -> None:
    with pytest.raises(StoreError, match="dtype"):
        FieldSpec("a", "npy", dtype, ("N",))


@pytest.mark.parametrize("size", ["", "-1", "n", "NN", "1.5", "N1", "1" * 10, " 1", "é", "٣"])
def test_sizes_are_whole_numbers_or_single_capital_letters(size: str) -> None:
    with pytest.raises(StoreError, match="expected whole numbers and single capital letters"):
        FieldSpec("a", "npy", "int8", ("5", size))


def test_a_spec_reads_back_from_its_dict() -> None:
    spec = FieldSpec("points", "npy.zstd", "float32", ("P", "5"), "m", "x, y, z, intensity, dt")
    assert FieldSpec.from_dict(spec.to_dict()) == spec and spec.member == "points.npy.zstd" and spec.codec == "zstd"
    assert (FIELD_A.codec, FieldSpec("a", "jpg").codec) == ("", "")
