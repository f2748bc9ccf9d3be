"""Whatever bytes a store's parsers are given: they return or raise a BevcaskError, soon and within bounds."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tarfile
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.codecs import compress, decompress
from cache.errors import BevcaskError, CorruptError
from cache.npy import decode_npy, encode_npy
from cache.verify_tar import read_header
from studies.benches.fault_documents import change_node
from studies.benches.fault_parsers import LIMIT, PARSERS, examples, parse_tar, parse_zarr_shard

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
JSON_PARSERS = ["manifest", "sealed-manifest", "plan", "record", "zarr-json", "headers"]
BINARY_PARSERS = sorted(set(PARSERS) - set(JSON_PARSERS))
_examples: dict[str, list[bytes]] = {}

words = st.sampled_from(
    [
        "digest",
        "format",
        "version",
        "kind",
        "files",
        "frames",
        "selectors",
        "options",
        "layout",
        "rows",
        "bevcask",
        "zarr",
    ]
)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def seeds(name: str) -> list[bytes]:
    if name not in _examples:
        _examples[name] = examples(name)
    return _examples[name]


def parse(name: str, data: bytes) -> None:
    with contextlib.suppress(BevcaskError):
        PARSERS[name](data)


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_the_examples_are_taken(name: str) -> None:
    for data in seeds(name):
        PARSERS[name](data)


@pytest.mark.parametrize("name", sorted(PARSERS))
@QUICK
@given(data=st.binary(max_size=700))
def test_any_bytes(name: str, data: bytes) -> None:
    parse(name, data)


@pytest.mark.parametrize("name", JSON_PARSERS)
@QUICK
@given(value=any_json)
def test_any_json(name: str, value: Any) -> None:
    parse(name, json.dumps(value).encode())


@pytest.mark.parametrize("name", JSON_PARSERS)
@QUICK
@given(seed=st.integers(0, 2**32), which=st.integers(0, 50), changes=st.integers(1, 3))
def test_true_json_with_other_values(name: str, seed: int, which: int, changes: int) -> None:
    rng = np.random.default_rng(seed)
    value = json.loads(seeds(name)[which % len(seeds(name))])
    for _ in range(changes):
        if not isinstance(value, dict) or not value:
            break
        change_node(rng, value)
    parse(name, json.dumps(value).encode())


@pytest.mark.parametrize("name", BINARY_PARSERS)
@QUICK
@given(
    which=st.integers(0, 50),
    edits=st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=12)), max_size=5),
    keep=st.integers(0, 2**20),
)
def test_true_bytes_with_others_over_them(name: str, which: int, edits: list[tuple[int, bytes]], keep: int) -> None:
    data = bytearray(seeds(name)[which % len(seeds(name))])
    for at, patch in edits:
        at %= len(data)
        data[at : at + len(patch)] = patch
    parse(name, bytes(data[: len(data) - keep % 64]))


# --- headers that are well formed and lie


@QUICK
@given(
    shape=st.lists(st.integers(-2, 2**70) | st.integers(0, 3), max_size=5),
    descr=st.sampled_from(["<f4", "|u1", "<u8", "|b1", "|O", "<U9", "<M8[s]", "|V8", ">f4", "<f2", "<c8", "|S5", "x"]),
    fortran=st.booleans(),
    payload=st.binary(max_size=64),
)
def test_npy_headers_that_lie(shape: list[int], descr: str, fortran: bool, payload: bytes) -> None:
    """An array comes out only where the header's claim is exactly what follows it."""
    text = repr({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)}).encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + payload
    try:
        array = decode_npy(data, "x")
    except CorruptError:
        return
    assert array.nbytes == len(payload) and array.shape == tuple(shape) and array.dtype == np.dtype(descr)


@QUICK
@given(array_shape=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 99))
def test_npy_round_trip(array_shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=array_shape)
    assert np.array_equal(decode_npy(encode_npy(array), "x"), array)


@QUICK
@given(size=st.integers(0, 2**64 - 1), descriptor=st.integers(0, 255), rest=st.binary(max_size=40))
def test_zstd_headers_that_lie(size: int, descriptor: int, rest: bytes) -> None:
    for body in (
        b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + struct.pack("<Q", size) + rest,
        compress("zstd", rest)[:-1],
    ):
        try:
            assert len(decompress("zstd", body, LIMIT, "x")) <= LIMIT
        except CorruptError:
            continue


@QUICK
@given(data=st.binary(min_size=1, max_size=2000), limit=st.integers(0, 2000))
def test_zstd_gives_what_was_compressed_or_refuses_it_over_the_limit(data: bytes, limit: int) -> None:
    if len(data) <= limit:
        assert bytes(decompress("zstd", compress("zstd", data), limit, "x")) == data
    else:
        with pytest.raises(CorruptError, match="expected 1"):
            decompress("zstd", compress("zstd", data), limit, "x")


@QUICK
@given(
    name=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=99),
    size=st.integers(0, 8**11 - 1),
)
def test_tar_headers_are_read_as_tarfile_writes_them(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert read_header(info.tobuf(tarfile.USTAR_FORMAT)) == (info.get_info()["name"], size)


@QUICK
@given(
    members=st.lists(
        st.tuples(
            st.sampled_from(["0" * 32 + ".scores.npy.zstd", "../x", "a/b", "x" * 90, "é"]),
            st.binary(max_size=600),
            st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE]),
        ),
        min_size=1,
        max_size=4,
    ),
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_any_tar_that_is_not_the_shard_is_told(members: list[tuple[str, bytes, bytes]], kind: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data, member in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = member, len(data) if member == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    assert parse_tar(file.getvalue())


@QUICK
@given(
    entries=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 60), min_size=4, max_size=4),
    body=st.binary(max_size=60),
)
def test_zarr_indices_that_lie_are_told(entries: list[int], body: bytes) -> None:
    from cache.zarr_writer import checksum

    index = struct.pack("<4Q", *entries)
    assert parse_zarr_shard(body + index + checksum(index))
