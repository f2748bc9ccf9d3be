"""Shards: plain tars that other tools read, whose member positions are what the writer says."""

from __future__ import annotations

import gc
import io
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import tar_writer
from cache.errors import OutOfSpaceError, StoreError
from cache.fields import FieldSpec
from cache.files import file_sha256
from cache.tar_writer import MemberLocation, ShardWriter
from tests.cache.stores import (
    FRAME_FIELDS,
    TOKENS,
    UNLABELLED,
    assert_equal,
    frame_plan,
    frame_values,
    write_shard,
)

FIELDS = {spec.name: spec for spec in FRAME_FIELDS}
Locations = dict[str, dict[str, MemberLocation]]


def write(path: Path, tokens: list[str] = TOKENS) -> tuple[ShardWriter, Locations]:
    with ShardWriter(path, FIELDS) as writer:
        locations = {token: writer.write(token, frame_values(token)) for token in tokens}
    return writer, locations


def test_locations_are_those_tarfile_finds_and_hold_the_encoded_bytes(tmp_path: Path) -> None:
    _, locations = write(tmp_path / "0.tar")
    data = (tmp_path / "0.tar").read_bytes()
    with tarfile.open(tmp_path / "0.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert len(members) == sum(len(frame) for frame in locations.values())
    for token, frame in locations.items():
        assert set(frame) == set(frame_values(token))
        for name, location in frame.items():
            member = members[f"{token}.{FIELDS[name].member}"]
            assert (location.offset, location.length) == (member.offset_data, member.size)
            payload = data[location.offset : location.offset + location.length]
            assert payload == FIELDS[name].encode(frame_values(token)[name])
            assert location.to_list() == [location.offset, location.length, google_crc32c.value(payload)]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(1, 48))
def test_locations_hold_for_every_size_and_the_longest_names(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int
) -> None:
    specs = {name: FieldSpec(name, "jpg") for name in ("a" * length, "b" * 48)}
    path = tmp_path_factory.mktemp("sizes") / "0.tar"
    with ShardWriter(path, specs) as writer:
        found = [writer.write(f"{i:032x}", {name: bytes(size) for name in specs}) for i, size in enumerate(sizes)]
    with tarfile.open(path) as tar:
        expected = [(member.offset_data, member.size) for member in tar]
    assert [(row[name].offset, row[name].length) for row in found for name in sorted(specs)] == expected


def test_members_of_a_frame_are_adjacent_and_frames_keep_their_order(tmp_path: Path) -> None:
    tokens = TOKENS[::-1]
    write(tmp_path / "0.tar", tokens)
    with tarfile.open(tmp_path / "0.tar") as tar:
        order = [name.partition(".")[0] for name in tar.getnames()]
    assert list(dict.fromkeys(order)) == tokens
    assert order == sorted(order, key=tokens.index)


def test_size_and_digest_are_the_files(tmp_path: Path) -> None:
    writer, _ = write(tmp_path / "0.tar")
    assert writer.size == (tmp_path / "0.tar").stat().st_size
    assert writer.sha256 == file_sha256(tmp_path / "0.tar")


def test_a_second_write_gives_the_same_bytes_whatever_the_order_of_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "0.tar")
    monkeypatch.setattr("time.time", lambda: 2e9)
    with ShardWriter(tmp_path / "1.tar", FIELDS) as writer:
        for token in TOKENS:
            writer.write(token, dict(reversed(frame_values(token).items())))
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


def test_headers_tell_nothing_of_the_writers_machine(tmp_path: Path) -> None:
    write(tmp_path / "0.tar")
    with tarfile.open(tmp_path / "0.tar") as tar:
        told = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type, bool(m.pax_headers)) for m in tar}
    assert told == {(0, 0, 0, "bevcask", "bevcask", 0o444, tarfile.REGTYPE, False)}


def test_the_tar_command_lists_it(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", TOKENS[:1])
    listed = subprocess.run(["tar", "tf", str(tmp_path / "0.tar")], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == sorted(f"{TOKENS[0]}.{FIELDS[name].member}" for name in frame_values(TOKENS[0]))
    assert listed.stderr == ""


def test_stock_webdataset_iterates_and_decodes(tmp_path: Path) -> None:
    write(tmp_path / "0.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == TOKENS
    for token, sample in zip(TOKENS, samples, strict=True):
        values = frame_values(token)
        assert {key for key in sample if not key.startswith("__")} == {FIELDS[name].member for name in values}
        for name, value in values.items():
            found = sample[FIELDS[name].member]
            if FIELDS[name].ext == "npy.zstd":  # a codec webdataset does not know: our own lines decode it
                found = FIELDS[name].decode(found, "test")
            assert_equal(found, value)
    assert "gt_boxes.npy" not in samples[TOKENS.index(UNLABELLED)]


def test_stock_webdataset_decodes_a_real_jpeg(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image.new("RGB", (16, 8), (200, 30, 30)).save(buffer, "JPEG")
    with ShardWriter(tmp_path / "0.tar", FIELDS) as writer:
        writer.write(TOKENS[0], {"cam_front": buffer.getvalue()})
    (sample,) = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False).decode("rgb8")
    assert sample["cam_front.jpg"].shape == (8, 16, 3)


def fail_in_block(path: Path) -> None:
    with ShardWriter(path, FIELDS) as writer:
        writer.write(TOKENS[0], frame_values(TOKENS[0]))
        raise RuntimeError("the teacher fell over")


def fail_in_encode(path: Path) -> None:
    with ShardWriter(path, FIELDS) as writer:
        writer.write(TOKENS[0], frame_values(TOKENS[0]))
        writer.write(TOKENS[1], {"depth": np.zeros((2, 3), np.uint16)})


def fail_on_a_full_disk(path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, old[1]))
    try:
        write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def fail_on_a_disk_full_at_the_end(path: Path) -> None:
    """The last block is written by close(), beyond the limit that all before it kept."""
    values = frame_values(TOKENS[0])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ShardWriter(path, FIELDS) as writer:
        writer.write(TOKENS[0], {"points": values["points"]})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, old[1]))
        path.parent.joinpath("reset").touch()
    raise AssertionError("closing succeeded")


@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [
        (fail_in_block, RuntimeError, "the teacher fell over"),
        (fail_in_encode, StoreError, "field depth: found shape"),
        (fail_on_a_full_disk, OutOfSpaceError, "File too large"),
        (fail_on_a_disk_full_at_the_end, OutOfSpaceError, "File too large"),
    ],
)
@pytest.mark.parametrize("before", [None, b"an older shard"])
def test_an_error_leaves_no_new_file_and_prints_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fail: Callable[[Path], None],
    kind: type[Exception],
    message: str,
    before: bytes | None,
) -> None:
    path = tmp_path / "shards" / "0.tar"
    path.parent.mkdir()
    if before:
        path.write_bytes(before)
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(kind, match=message) as raised:
            fail(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    raised.value.__traceback__ = None
    del raised
    gc.collect()
    (path.parent / "reset").unlink(missing_ok=True)
    assert [p.name for p in path.parent.iterdir()] == (["0.tar"] if before else [])
    assert not before or path.read_bytes() == before
    assert unraisable == [] and capfd.readouterr() == ("", "")


def test_nothing_is_visible_before_the_block_ends(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "0.tar", FIELDS) as writer:
        writer.write(TOKENS[0], frame_values(TOKENS[0]))
        assert not (tmp_path / "0.tar").exists()
    assert (tmp_path / "0.tar").exists()


@pytest.mark.parametrize("token", ["", "abc", "F" * 32, "f" * 33, "../" + "f" * 29, "f" * 31 + "\n", "f" * 32 + "\n"])
def test_a_token_that_is_no_token_is_refused(tmp_path: Path, token: str) -> None:
    with ShardWriter(tmp_path / "0.tar", FIELDS) as writer, pytest.raises(StoreError, match="not 32 lower-case hex"):
        writer.write(token, {"cam_front": b"x"})


def test_a_refused_frame_leaves_the_shard_as_it_was(tmp_path: Path) -> None:
    """Each is refused before a byte is written, so that the writer may go on."""
    with ShardWriter(tmp_path / "0.tar", FIELDS) as writer:
        writer.write(TOKENS[0], frame_values(TOKENS[0]))
        with pytest.raises(StoreError, match=r"fields \['lidar'\] are not declared"):
            writer.write(TOKENS[1], {"cam_front": b"x", "lidar": b"y"})
        with pytest.raises(StoreError, match="written twice"):
            writer.write(TOKENS[0], frame_values(TOKENS[0]))
        with pytest.raises(StoreError, match=r"'cam_front\.jpg'\] would hold no bytes"):
            writer.write(TOKENS[1], {"cam_front": b"", "cam_back": b"x"})
        with pytest.raises(StoreError, match="field gt_boxes"):
            writer.write(TOKENS[1], {"cam_back": b"x", "gt_boxes": np.zeros((1, 12), np.float32)})
        writer.write(TOKENS[1], frame_values(TOKENS[1]))
    write(tmp_path / "1.tar", TOKENS[:2])
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


def test_another_tar_layout_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_writer, "BLOCK", 1024)
    with pytest.raises(StoreError, match="members do not lie where expected"):
        write_shard(tmp_path, frame_plan(), 0)
    assert not list((tmp_path / "shards").iterdir())
