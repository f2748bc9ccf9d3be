"""The Zarr format: stock zarr, dask and xarray read what our reader reads, and notice damage by their own codec."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr

from cache.commit import begin
from cache.errors import CorruptError
from cache.shard_files import side_fields
from cache.store import Store, TeacherStore
from tests.cache.stores import (
    SHARDS,
    TOKENS,
    ZARR,
    assert_equal,
    forge_manifest,
    shard_files,
    teacher_plan,
    teacher_values,
    tree,
    write_store,
)

PLAN = teacher_plan(format=ZARR)
SIDES = side_fields(tuple(ZARR.capacity))


@pytest.fixture
def copied_zarr(zarr_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(zarr_root, tmp_path / "zarr"))


def open_group(root: Path) -> zarr.Group:
    return zarr.open_group(root / "data.zarr", mode="r")


def padded(name: str, token: str) -> np.ndarray:
    """A field's value in an array of the capacity's size, by the slow and obvious way."""
    spec = next(spec for spec in PLAN.fields if spec.name == name)
    value = teacher_values(token)[name]
    out = np.zeros([ZARR.capacity[size] if size.isalpha() else int(size) for size in spec.shape], spec.dtype)
    for place in np.ndindex(value.shape):
        out[place] = value[place]
    return out


def rows_of_the_arrays() -> list[str | None]:
    """The frame in each row of the arrays: R rows a shard, unused ones at its end."""
    return [token for tokens in SHARDS for token in (*tokens, *([None] * (ZARR.rows - len(tokens))))]


def test_stock_zarr_reads_every_array_equal(zarr_root: Path) -> None:
    group, rows = open_group(zarr_root), rows_of_the_arrays()
    assert set(group.array_keys()) == {spec.name for spec in (*PLAN.fields, *SIDES)}
    assert group.attrs["bevcask"] == {"kind": "teacher", "rows_per_shard": 3}
    for spec in PLAN.fields:
        array = group[spec.name]
        assert array.shape[0] == len(rows) == 9 and array.dtype == np.dtype(spec.dtype)
        assert array.attrs["unit"] == spec.unit and array.attrs["about"] == spec.about
        for row, token in enumerate(rows):
            expected = np.zeros(array.shape[1:], spec.dtype) if token is None else padded(spec.name, token)
            assert_equal(array[row], expected)


def test_side_arrays_tell_which_rows_are_frames_and_how_much_of_them_is(zarr_root: Path) -> None:
    group, rows = open_group(zarr_root), rows_of_the_arrays()
    assert group["valid"][:].tolist() == [token is not None for token in rows]
    assert [bytes(value).hex() for value in group["token"][:]] == [token or "0" * 32 for token in rows]
    assert group["timestamp_us"][:].tolist() == [0 if token is None else TOKENS.index(token) for token in rows]
    for letter, field in (("k", "bev_index"), ("n", "labels")):
        expected = [0 if token is None else len(teacher_values(token)[field]) for token in rows]
        assert group[f"size_{letter}"][:].tolist() == expected


def test_the_lines_of_the_format_page_read_a_frame(zarr_root: Path) -> None:
    group = open_group(zarr_root)
    row = int(group["valid"][:].nonzero()[0][0])
    assert_equal(group["bev_values"][row][: group["size_k"][row]], teacher_values(TOKENS[0])["bev_values"])


def test_dask_reads_the_arrays_equal(zarr_root: Path) -> None:
    values = dask.array.from_zarr(str(zarr_root / "data.zarr"), component="boxes")
    valid = dask.array.from_zarr(str(zarr_root / "data.zarr"), component="valid").compute()
    expected = np.stack([padded("boxes", token) for token in TOKENS])
    assert_equal(values.compute(scheduler="synchronous")[valid], expected)


def test_xarray_opens_the_group_with_named_dimensions(zarr_root: Path) -> None:
    xarray = pytest.importorskip("xarray")
    data = xarray.open_zarr(zarr_root / "data.zarr", consolidated=False, mask_and_scale=False)
    assert data["bev_values"].dims == ("row", "K", "bev_values_1") and data["scores"].dims == ("row", "N")
    found = data["bev_values"].values[data["valid"].values]
    assert_equal(found, np.stack([padded("bev_values", token) for token in TOKENS]))


def test_dimensions_are_named_by_letters(zarr_root: Path) -> None:
    names = {name: array.metadata.dimension_names for name, array in open_group(zarr_root).arrays()}
    assert names["bev_values"] == ("row", "K", "bev_values_1") and names["bev_index"] == ("row", "K")
    assert names["valid"] == ("row",) and names["token"] == ("row", "token_0")


def test_one_shard_file_a_field_and_store_shard_and_no_other(zarr_root: Path) -> None:
    expected = {f"data.zarr/{spec.name}/zarr.json" for spec in (*PLAN.fields, *SIDES)} | {"data.zarr/zarr.json"}
    for spec in (*PLAN.fields, *SIDES):
        expected |= {f"data.zarr/{spec.name}/c/{shard}" + "/0" * len(spec.shape) for shard in range(3)}
    assert {name for name in tree(zarr_root) if name.startswith("data.zarr")} == expected
    for shard in range(3):
        names = [path.relative_to(zarr_root).parts[1] for path in shard_files(zarr_root, shard)]
        assert names == [spec.name for spec in (*PLAN.fields, *SIDES)]


def test_the_arrays_are_sharded_with_one_chunk_a_frame(zarr_root: Path) -> None:
    array = open_group(zarr_root)["bev_values"]
    assert array.shards == (3, 90, 3) and array.chunks == (1, 90, 3)
    about = json.loads((zarr_root / "data.zarr/bev_values/zarr.json").read_bytes())
    (sharding,) = about["codecs"]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert sharding["configuration"].get("index_location", "end") == "end"


def test_bytes_that_stock_zarr_writes_are_those_of_our_writer(zarr_root: Path, tmp_path: Path) -> None:
    """Uncompressed fields only: there is one way to write them."""
    ours = open_group(zarr_root)["boxes"]
    group = zarr.create_group(tmp_path / "theirs")
    theirs = group.create_array(
        "boxes",
        shape=ours.shape,
        dtype=ours.dtype,
        chunks=ours.chunks,
        shards=ours.shards,
        serializer=zarr.codecs.BytesCodec(endian="little"),
        compressors=[zarr.codecs.Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    theirs[:] = ours[:]
    for shard in range(3):
        name = f"boxes/c/{shard}/0/0"
        assert (tmp_path / "theirs" / name).read_bytes() == (zarr_root / "data.zarr" / name).read_bytes()


def test_a_flipped_byte_is_an_error_in_our_reader_and_in_stock_zarr(zarr_root: Path, copied_zarr: Path) -> None:
    """In the payload, in its checksum, and in the shard's own index."""
    store = TeacherStore(copied_zarr)
    for name in ("boxes", "bev_values"):
        path = copied_zarr / f"data.zarr/{name}/c/1/0/0"
        data = path.read_bytes()
        position = [spec.name for spec in PLAN.fields].index(name)
        payload = int(store.index.offset[2, position]) + int(store.index.length[2, position]) // 2
        checksum = int(store.index.offset[2, position]) + int(store.index.length[2, position])
        for place, ours_too in ((payload, True), (checksum, False), (len(data) - 1, False), (len(data) - 30, False)):
            broken = bytearray(data)
            broken[place] ^= 0x10
            path.write_bytes(broken)
            with pytest.raises(Exception, match=r"(?i)checksum|crc"):
                open_group(copied_zarr)[name][3:6]
            reader = TeacherStore(copied_zarr)
            if ours_too:
                with pytest.raises(CorruptError, match=rf"{name}/c/1/0/0: {TOKENS[2]}\.{name}.*: checksum differs"):
                    reader.read(2, name)
            else:  # our reader goes by the store's index and its crc
                assert_equal(reader.read(2, name), teacher_values(TOKENS[2])[name])
        path.write_bytes(data)
    assert tree(copied_zarr) == tree(zarr_root)


def test_a_deleted_shard_is_an_error_of_ours_where_zarr_gives_zeros(copied_zarr: Path) -> None:
    (copied_zarr / "data.zarr/boxes/c/1/0/0").unlink()
    assert not open_group(copied_zarr)["boxes"][3:6].any()  # why the format page asks for `valid` and presence checks
    with pytest.raises(CorruptError, match=r"boxes/c/1/0/0: missing; restore it or run the caching command again"):
        TeacherStore(copied_zarr).read(2, "boxes")
    assert begin(copied_zarr, PLAN)[0].number == 1


def test_our_reader_needs_none_of_zarrs_own_files(copied_zarr: Path, zarr_root: Path) -> None:
    for path in copied_zarr.rglob("zarr.json"):
        path.unlink()
    for path in shard_files(copied_zarr, 0)[-len(SIDES) :]:
        path.unlink()
    store = Store(copied_zarr)
    for row, token in enumerate(TOKENS):
        for name, value in teacher_values(token).items():
            assert_equal(store.read(row, name), value)
    write_store(copied_zarr, PLAN)
    assert tree(copied_zarr) == tree(zarr_root)  # and a rerun makes them again


def test_a_quarantined_frame_is_an_unused_row(tmp_path: Path) -> None:
    write_store(tmp_path, PLAN, quarantine={TOKENS[0]})
    group = open_group(tmp_path)
    assert group["valid"][:].tolist() == [True, False, False] + [True, True, False] * 2
    assert bytes(group["token"][0]).hex() == TOKENS[1]
    assert_equal(group["boxes"][0], padded("boxes", TOKENS[1]))
    assert not group["boxes"][1:3].any() and not group["bev_values"][1:3].any()


def test_capacities_are_the_arrays_sizes_and_do_not_show_in_what_is_read(tmp_path: Path, zarr_root: Path) -> None:
    room = dataclasses.replace(ZARR, rows=5, capacity={"K": 128, "N": 4})
    write_store(tmp_path, teacher_plan(format=room))
    assert open_group(tmp_path)["bev_values"].shape == (15, 128, 3)
    one, other = Store(tmp_path), Store(zarr_root)
    for row in range(6):
        for spec in PLAN.fields:
            assert_equal(one.read(row, spec.name), np.array(other.read(row, spec.name)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["layout"]["capacity"].update(K=91), "bytes, expected"),
        (lambda values: values["layout"]["capacity"].update(K=10), "in a capacity of|bytes, expected"),
        (lambda values: values["layout"]["capacity"].update(K=2**40), "in a capacity of|bytes, expected"),
        (lambda values: values["layout"]["capacity"].update(K=0), "in a capacity of|bytes, expected|claims"),
        (lambda values: values["layout"]["capacity"].update(K=-1), "is unknown"),
        (lambda values: values["layout"]["capacity"].pop("K"), "letter without a capacity"),
        (lambda values: values["layout"].update(name="hdf5"), "is unknown"),
        (lambda values: values["layout"].update(name="webdataset"), "more than one file"),
        (lambda values: values["shards"][0].update(files=values["shards"][0]["files"][:3]), "fewer files"),
    ],
)
def test_a_forged_layout_is_refused(
    copied_zarr: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    forge_manifest(copied_zarr, change)
    with pytest.raises(CorruptError, match=message):
        Store(copied_zarr).read(0, "bev_index")


def test_growth_extends_the_arrays_and_keeps_their_files(tmp_path: Path) -> None:
    small = dataclasses.replace(PLAN, shards=SHARDS[:2])
    write_store(tmp_path, small)
    before = tree(tmp_path)
    write_store(tmp_path, PLAN, grow=True)
    after = tree(tmp_path)
    assert open_group(tmp_path)["boxes"].shape[0] == 9
    for name, data in before.items():
        rewritten = name in ("manifest.json", "plan.json") or name.startswith("index/") or name.endswith("zarr.json")
        assert rewritten or after[name] == data
