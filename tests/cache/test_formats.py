"""The two formats read equal: any fields, dtypes and sizes, every encoding of a BEV feature, any root."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.bev import DTYPES, LAYOUTS, BevEncoding
from cache.codecs import CODECS
from cache.commit import begin, finish
from cache.errors import StoreError
from cache.fields import FieldSpec
from cache.plan import Format, FrameEntry, Scene, StorePlan
from cache.roots import open_root
from cache.shard_writer import open_shard
from cache.store import FrameStore, Store, TeacherStore
from tests.cache.stores import (
    FORMATS,
    GRID,
    TOKENS,
    WEBDATASET,
    ZARR,
    assert_equal,
    plan_of,
    teacher_plan,
    teacher_values,
    tree,
    values_of,
    write_store,
)

ARRAY_DTYPES = ["bool", "uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]
EXTENSIONS = [f"npy.{codec}".rstrip(".") for codec in CODECS]


@st.composite
def any_fields(draw: st.DrawFn) -> tuple[FieldSpec, ...]:
    count = draw(st.integers(1, 4))
    return tuple(
        FieldSpec(
            f"f{i}",
            draw(st.sampled_from(EXTENSIONS)),
            draw(st.sampled_from(ARRAY_DTYPES)),
            tuple(draw(st.lists(st.sampled_from(["A", "B", "1", "3"]), max_size=3))),
        )
        for i in range(count)
    )


@settings(max_examples=25)
@given(
    any_fields(), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5), st.integers(0, 999)
)
def test_any_fields_of_any_sizes_read_equal_in_both_formats(
    tmp_path_factory: pytest.TempPathFactory, fields: tuple[FieldSpec, ...], sizes: list[tuple[int, int]], seed: int
) -> None:
    """Any bits at all, NaNs with payload among them, and sizes of 0."""
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("formats")
    tokens = tuple(f"{i:032x}" for i in range(len(sizes)))
    entries = [FrameEntry(token, "a" * 32, i, i % 2, (i,), f"{i:016x}") for i, token in enumerate(tokens)]
    frames = []
    for a, b in sizes:
        values = {}
        for spec in fields:
            shape = spec.shape_under({"A": a, "B": b})
            count = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
            raw = rng.integers(0, 2 if spec.dtype == "bool" else 256, count, np.uint8)
            values[spec.name] = raw.view(spec.dtype).reshape(shape)
        frames.append(values)
    cut = int(rng.integers(0, len(tokens)))
    plans = [
        StorePlan(
            kind="teacher",
            identity={"classes": ["car"]},
            header={},
            fields=fields,
            scenes=(Scene("a" * 32, "s", "train"),),
            shards=(tokens[:cut], tokens[cut:]),
            format=layout,
        )
        for layout in (Format(), Format("zarr", len(tokens) + seed % 2, {"B": 4, "A": 4 + seed % 3}))
    ]
    stores = []
    for plan in plans:
        place = root / plan.format.name
        for shard in begin(place, plan):
            with open_shard(place, shard) as writer:
                for token in shard.tokens:
                    row = int(token, 16)
                    writer.write(entries[row], frames[row])
        finish(place, plan)
        stores.append(Store(place))
    for row, token in enumerate(tokens):
        for store in stores:
            assert store.token(row) == token and store.entry(row) == entries[row]
            for name, value in frames[row].items():
                found = store.read(row, name)
                assert_equal(found, value)
                assert not found.flags.writeable
        assert stores[0].index.sizes[row].tolist() == stores[1].index.sizes[row].tolist()


@pytest.mark.parametrize(("layout", "dtype"), list(itertools.product(LAYOUTS, DTYPES)))
def test_every_encoding_reads_equal_in_both_formats(tmp_path: Path, layout: str, dtype: str) -> None:
    encoding = BevEncoding(3, *GRID.shape, 2, layout, dtype)
    stores = []
    for store_format in FORMATS:
        write_store(tmp_path / store_format.name, teacher_plan(encoding, format=store_format))
        stores.append(TeacherStore(tmp_path / store_format.name))
    for row, token in enumerate(TOKENS):
        for name, value in teacher_values(token, encoding).items():
            for store in stores:
                assert_equal(store.read(row, name), value)
        one, other = (store.cells(row) for store in stores)
        assert_equal(one.index, other.index)
        assert_equal(one.values, other.values)
        assert_equal(one.weights, other.weights)
        assert_equal(stores[0].detections(row).boxes_lidar, stores[1].detections(row).boxes_lidar)
    assert stores[0].tokens == stores[1].tokens and stores[0].bev == stores[1].bev == encoding


def test_the_indices_of_both_formats_differ_in_the_bytes_places_only(teacher_root: Path, zarr_root: Path) -> None:
    one, other = tree(teacher_root), tree(zarr_root)
    same = {name for name in one if name.startswith("index/") and one[name] == other[name]}
    assert {name for name in one if name.startswith("index/")} - same == {
        "index/offset.npy",
        "index/length.npy",
        "index/crc32c.npy",
    }


# --- any root


def read_everything(place: Any, plan: StorePlan) -> None:
    store = Store(place)
    assert store.tokens == TOKENS
    for row, token in enumerate(TOKENS):
        for name, value in values_of(plan, token).items():
            assert_equal(store.read(row, name), value)
    store.close()


@pytest.mark.parametrize("where", ["memory", "s3"])
def test_a_store_on_a_remote_root_is_the_local_one(
    plan: StorePlan, whole: Path, where: str, request: pytest.FixtureRequest
) -> None:
    """Byte for byte, written and read through its URL; a rerun writes nothing, a lost object is written again."""
    url = request.getfixturevalue("s3_root") if where == "s3" else f"memory://{uuid.uuid4().hex}/store"
    manifest = write_store(url, plan)
    assert tree(url) == tree(whole)
    read_everything(url, plan)
    versions = {name: open_root(url).version(name) for name in open_root(url).sizes() if name.startswith("records/")}
    assert begin(url, plan) == []
    assert versions == {name: open_root(url).version(name) for name in versions}
    lost = manifest.shards[1].files[0].name
    open_root(url).remove(lost)
    assert [shard.number for shard in begin(url, plan)] == [1]
    assert write_store(url, plan).digest == manifest.digest and tree(url) == tree(whole)


def test_one_field_of_one_frame_is_one_ranged_read(
    plan: StorePlan, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(whole)
    calls: list[tuple[str, int, int]] = []
    read_range = store.root.read_range

    def counted(name: str, start: int, length: int) -> bytes:
        calls.append((name, start, length))
        return read_range(name, start, length)

    monkeypatch.setattr(store.root, "read_range", counted)
    monkeypatch.setattr(store.root, "read", None)
    monkeypatch.setattr(store.root, "size", None)
    for row, token in enumerate(TOKENS):
        for name in values_of(plan, token):
            calls.clear()
            store.read(row, name)
            assert len(calls) == 1 and calls[0][2] == len(store.read_bytes(row, name))


def test_a_frame_store_is_no_zarr_store(frames_root: Path) -> None:
    with pytest.raises(StoreError, match=r"zarr: fields \['frame', 'cam_front_left', .* write such a store as webdata"):
        dataclasses.replace(plan_of("frames"), format=ZARR)
    assert FrameStore(frames_root).manifest.format == WEBDATASET
