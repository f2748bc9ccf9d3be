"""WebDataset shards: plain tars that other tools read, whose member positions are what the index says."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import tar_writer
from cache.commit import begin, finish
from cache.errors import StoreError
from cache.fields import FieldSpec
from cache.plan import FrameEntry
from cache.shard_writer import open_shard
from cache.store import Store
from tests.cache.stores import (
    FRAME_FIELDS,
    SHARDS,
    TOKENS,
    UNLABELLED,
    assert_equal,
    entry_of,
    frame_plan,
    frame_values,
    plan_of,
    tar_path,
    values_of,
    write_shard,
    write_store,
)

MEMBERS = {spec.name: spec.member for spec in FRAME_FIELDS}


def test_the_index_names_the_places_that_tarfile_finds(frames_root: Path) -> None:
    store = Store(frames_root)
    for shard, tokens in enumerate(SHARDS):
        with tarfile.open(tar_path(frames_root, shard)) as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
        assert len(members) == sum(len(frame_values(token)) for token in tokens)
        for token in tokens:
            row = store.row_of(token)
            for position, spec in enumerate(store.manifest.fields):
                if store.has(row, spec.name):
                    place = int(store.index.offset[row, position]), int(store.index.length[row, position])
                    assert place == members[f"{token}.{spec.member}"]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(1, 48))
def test_every_size_and_the_longest_names_read_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int
) -> None:
    root = tmp_path_factory.mktemp("sizes")
    fields = tuple(FieldSpec(name, "jpg") for name in ("a" * length, "b" * 48))
    tokens = tuple(f"{i:032x}" for i in range(len(sizes)))
    values = {token: {spec.name: bytes([i]) * sizes[i] for spec in fields} for i, token in enumerate(tokens)}
    plan = frame_plan(fields=fields, shards=(tokens,))
    begin(root, plan)
    with open_shard(root, plan.shard_plans()[0]) as writer:
        for token in tokens:
            writer.write(FrameEntry(token, "a" * 32, 0, 0, (0,) * 10, "0" * 16), values[token])
    finish(root, plan)
    store = Store(root)
    assert all(store.read(row, name) == data for row, t in enumerate(tokens) for name, data in values[t].items())


def test_members_of_a_frame_are_adjacent_sorted_and_frames_keep_their_order(tmp_path: Path) -> None:
    tokens = tuple(TOKENS[::-1])
    write_shard(tmp_path, frame_plan(shards=(tokens,)), 0)
    with tarfile.open(tar_path(tmp_path, 0)) as tar:
        names = tar.getnames()
    expected = [f"{token}.{member}" for token in tokens for member in sorted(MEMBERS[n] for n in frame_values(token))]
    assert names == expected


def test_headers_tell_nothing_of_the_writers_machine(frames_root: Path) -> None:
    with tarfile.open(tar_path(frames_root, 0)) as tar:
        told = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type, bool(m.pax_headers)) for m in tar}
    assert told == {(0, 0, 0, "bevcask", "bevcask", 0o444, tarfile.REGTYPE, False)}


def test_the_tar_command_lists_it(frames_root: Path) -> None:
    listed = subprocess.run(["tar", "tf", str(tar_path(frames_root, 0))], capture_output=True, text=True, check=True)
    tokens = SHARDS[0]
    assert listed.stdout.split() == [
        f"{token}.{member}" for token in tokens for member in sorted(MEMBERS[n] for n in frame_values(token))
    ]
    assert listed.stderr == ""


def decode_zstd(key: str, data: bytes) -> Any:
    """As docs/format.md tells readers of stock webdataset to."""
    if key.endswith(".npy.zstd"):
        return np.load(io.BytesIO(numcodecs.Zstd().decode(data)), allow_pickle=False)
    return None


@pytest.mark.parametrize("kind", ["frames", "teacher"])
def test_stock_webdataset_iterates_and_decodes(kind: str, frames_root: Path, teacher_root: Path) -> None:
    root = frames_root if kind == "frames" else teacher_root
    urls = [str(tar_path(root, shard)) for shard in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode(decode_zstd))
    assert [sample["__key__"] for sample in samples] == TOKENS
    members = {spec.name: spec.member for spec in Store(root).manifest.fields}
    for token, sample in zip(TOKENS, samples, strict=True):
        values = values_of(plan_of(kind), token)
        assert {key for key in sample if not key.startswith("__")} == {members[name] for name in values}
        for name, value in values.items():
            assert_equal(sample[members[name]], value)
    if kind == "frames":
        assert "gt_boxes.npy" not in samples[TOKENS.index(UNLABELLED)]


def test_stock_webdataset_decodes_a_real_jpeg(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image.new("RGB", (16, 8), (200, 30, 30)).save(buffer, "JPEG")
    with open_shard(tmp_path, frame_plan(shards=((TOKENS[0],),)).shard_plans()[0]) as writer:
        writer.write(entry_of(TOKENS[0]), {"cam_front": buffer.getvalue()})
    (sample,) = webdataset.WebDataset(str(tar_path(tmp_path, 0)), shardshuffle=False).decode("rgb8")
    assert sample["cam_front.jpg"].shape == (8, 16, 3)


def test_another_tar_layout_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_writer, "BLOCK", 1024)
    with pytest.raises(StoreError, match="members do not lie where expected"):
        write_store(tmp_path, frame_plan())
    assert not list((tmp_path / "shards").iterdir())
