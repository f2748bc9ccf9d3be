"""`cache.verify`: what it says of one damage at a time, over any root, with bounded memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cache.commit import begin, finish
from cache.errors import StoreError
from cache.file_stream import PIECE, FileStream
from cache.files import canonical_json
from cache.findings import PER_FILE, Finding
from cache.plan import FrameEntry
from cache.roots import LocalRoot, open_root
from cache.shard_writer import open_shard
from cache.verify import verify
from cache.verify_tar import read_header
from studies.benches.fault_forging import forge_all, reseal
from studies.benches.fault_stores import SHARDS, SmallStore, small_stores, tree

STORES = small_stores()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    for name, store in STORES.items():
        store.write(root / name)
    return root


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest) -> SmallStore:
    return STORES[request.param]


@pytest.fixture
def folder(written: Path, store: SmallStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / store.name, tmp_path / "store"))


@pytest.fixture
def tar_folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "frames", tmp_path / "tar"))


@pytest.fixture
def zarr_folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "teacher-zarr", tmp_path / "zarr"))


def files_of(findings: list[Finding]) -> list[str]:
    return sorted({finding.file for finding in findings})


def first_shard_file(folder: Path) -> str:
    files: list[list[Any]] = json.loads((folder / "manifest.json").read_bytes())["shards"][0]["files"]
    return str(files[0][0])


def test_a_true_store_has_no_finding_and_every_byte_is_counted(store: SmallStore, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(folder, progress=lambda done, total: seen.append((done, total))) == []
    total = sum(len(data) for name, data in tree(folder).items() if not name.startswith(("records", "manifest")))
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_over_a_remote_root_it_says_the_same(store: SmallStore, folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    url = f"memory://verify-{store.name}"
    memory.put(str(folder), f"/verify-{store.name}", recursive=True)
    assert verify(url) == []
    with open_root(url).write("index/token.npy") as file:
        file.write(b"x" * 208)
    memory.pipe_file(f"/verify-{store.name}/stranger", b"x")
    assert files_of(verify(url)) == ["index/token.npy", "stranger"]
    memory.rm(f"/verify-{store.name}", recursive=True)


def test_with_the_kept_digest_it_passes_and_with_another_it_names_both(store: SmallStore, folder: Path) -> None:
    digest = store.write(folder).digest
    assert verify(folder, digest=digest.upper()) == []
    (finding,) = verify(folder, digest="0" * 64)
    assert finding.file == "manifest.json" and digest in finding.found and "0" * 64 in finding.expected
    assert "restore" in str(finding)


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing lies there"):
        verify(tmp_path)


def test_an_unfinished_store_is_a_finding(store: SmallStore, tmp_path: Path) -> None:
    begin(tmp_path, store.plan)
    findings = verify(tmp_path)
    assert files_of(findings) == ["manifest.json", *[f"records/{n:05d}.json" for n in range(3)]]
    assert "unfinished" in findings[0].found


def test_a_store_with_quarantined_frames_has_no_finding(store: SmallStore, tmp_path: Path) -> None:
    lost = SHARDS[0][0], SHARDS[2][0]  # one of two, and all there is
    for shard in begin(tmp_path, store.plan):
        with open_shard(tmp_path, shard) as writer:
            for token in shard.tokens:
                if token in lost:
                    writer.quarantine(token, "a.bin: truncated")
                else:
                    writer.write(_entry(store, token), store.values(token))
    finish(tmp_path, store.plan)
    assert verify(tmp_path) == []
    reseal(tmp_path / "manifest.json", lambda values: values["quarantined"].pop())
    assert files_of(verify(tmp_path)) == ["manifest.json"]


def _entry(store: SmallStore, token: str) -> FrameEntry:
    from studies.benches.fault_stores import entry_of

    return entry_of(token)


def test_a_damaged_shard_names_file_frames_and_the_record_to_delete(store: SmallStore, folder: Path) -> None:
    name = first_shard_file(folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    data[600 if name.endswith("tar") else 10] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    findings = verify(folder)
    assert files_of(findings) == [name] and any("sha256" in finding.found for finding in findings)
    assert any(SHARDS[0][0] in finding.found for finding in findings)
    assert {finding.delete for finding in findings} == {("records/00000.json",)}
    assert all("delete records/00000.json, then run the same caching command again" in str(f) for f in findings)


def test_it_never_stops_at_the_first(store: SmallStore, folder: Path) -> None:
    damaged = ["index/token.npy", "records/00001.json", first_shard_file(folder), "plan.json"]
    for name in damaged:
        (folder / name).write_bytes(b"not this")
    (folder / "extra").touch()
    assert files_of(verify(folder)) == sorted([*damaged, "extra"])


@pytest.mark.parametrize("gone", ["manifest.json", "plan.json"])
def test_without_manifest_or_plan_the_rest_is_still_checked(store: SmallStore, folder: Path, gone: str) -> None:
    (folder / gone).unlink()
    assert files_of(verify(folder)) == [gone]
    name = first_shard_file(folder) if gone == "plan.json" else "records/00002.json"
    (folder / name).write_bytes(b"not this")
    assert set(files_of(verify(folder))) == {gone, name}


def test_without_both_nothing_else_can_be_said(store: SmallStore, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "plan.json").write_bytes(b"{}")
    assert files_of(verify(folder)) == ["manifest.json", "plan.json"]


def test_a_forged_record_is_found_by_the_index_it_no_longer_gives(store: SmallStore, folder: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["frames"][0]["class_counts"][0] += 1

    reseal(folder / "records" / "00000.json", change)
    (finding,) = verify(folder)
    assert finding.file == "index/class_counts.npy" and "of the records" in finding.expected


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(host="node7"),
        lambda values: values["frames"][0].update(note="x"),
        lambda values: values["frames"][0]["members"].update(other=[0, 1, 2]),
        lambda values: values["frames"][0].update(timestamp_us=0.0),
        lambda values: values["frames"].reverse(),
        lambda values: values.update(shard=1),
        lambda values: values.update(frames={}),
        lambda values: values["files"].append(["shards/00009.tar", 1, "0" * 64]),
    ],
)
def test_a_record_that_no_writer_makes_is_a_finding(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    reseal(folder / "records" / "00000.json", change)
    assert "records/00000.json" in files_of(verify(folder))


def test_json_of_another_layout_is_a_finding(store: SmallStore, folder: Path) -> None:
    for name in ("manifest.json", "records/00001.json", "plan.json"):
        path = folder / name
        path.write_bytes(json.dumps(json.loads(path.read_bytes())).encode())
    assert files_of(verify(folder)) == ["manifest.json", "plan.json", "records/00001.json"]


def test_strangers_are_found_and_printed_on_one_line(folder: Path) -> None:
    (folder / "shards").mkdir(exist_ok=True)
    (folder / "shards" / "00000.tar.7-0badcafe.partial").touch()
    (folder / "a\n\x1b[31mb").touch()
    (folder / "loop").symlink_to("loop")
    (folder / "elsewhere").symlink_to("/etc")
    findings = verify(folder)
    assert len(findings) == 4
    assert all("\n" not in str(finding) and "\x1b" not in str(finding) for finding in findings)
    assert sorted("link" in finding.found for finding in findings) == [False, False, True, True]
    assert any("partial" in finding.found for finding in findings)


def test_a_link_to_the_same_content_is_a_finding_too(folder: Path, tmp_path: Path) -> None:
    name = first_shard_file(folder)
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    assert files_of(verify(folder)) == [name]


def test_one_file_does_not_fill_the_screen(tar_folder: Path) -> None:
    path = tar_folder / "shards" / "00000.tar"
    data = bytearray(path.read_bytes())
    at = 0
    while data[at]:  # every member's content
        size = int(data[at + 124 : at + 135], 8)
        data[at + 512] ^= 1
        at += 512 + -(-size // 512) * 512
    path.chmod(0o644)
    path.write_bytes(data)
    findings = verify(tar_folder)
    assert len(findings) == PER_FILE + 1 and "more of these" in findings[-1].found


# --- structure: every digest agrees, only the shard itself is wrong


@pytest.mark.parametrize("name", ["../../etc/x", "x", "c4ca4238a0b923820dcc509a6f75849b.other.npy"])
def test_a_tar_member_of_another_name_is_found(tar_folder: Path, name: str) -> None:
    _change_header(tar_folder, lambda header: header.__setitem__(slice(0, 100), name.encode().ljust(100, b"\0")))
    findings = verify(tar_folder)
    assert files_of(findings) == ["shards/00000.tar"] and repr(name) in findings[0].found
    assert any("not in it" in finding.found for finding in findings)


@pytest.mark.parametrize("kind", [b"1", b"2", b"5", b"x", b"L", b"\0"])
def test_a_tar_member_that_is_no_plain_file_is_found(tar_folder: Path, kind: bytes) -> None:
    _change_header(tar_folder, lambda header: header.__setitem__(slice(156, 157), kind))
    assert files_of(verify(tar_folder)) == ["shards/00000.tar"]


def _change_header(folder: Path, change: Callable[[bytearray], None]) -> None:
    path = folder / "shards" / "00000.tar"
    data = bytearray(path.read_bytes())
    header = data[:512]
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.chmod(0o644)
    path.write_bytes(header + data[512:])
    forge_all(folder)


def test_a_second_member_of_a_name_and_bytes_behind_the_end_are_found(tar_folder: Path) -> None:
    path = tar_folder / "shards" / "00000.tar"
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) + 511 & ~511
    size = int(data[124:135], 8)
    first = data[: 512 + (size + 511 & ~511)]
    path.chmod(0o644)
    for content, found in ((data[:end] + first + bytes(1024), "second time"), (data + b"x" * 512, "behind the end")):
        path.write_bytes(content)
        forge_all(tar_folder)
        assert any(found in finding.found for finding in verify(tar_folder)), found


def test_headers_are_read_as_tarfile_reads_them(tar_folder: Path) -> None:
    import tarfile

    path = tar_folder / "shards" / "00000.tar"
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        for info in tar:
            assert read_header(data[info.offset : info.offset + 512]) == (info.name, info.size)


def test_zarr_metadata_that_stock_readers_would_be_misled_by_is_found(zarr_folder: Path) -> None:
    for key, value in (("data_type", "int8"), ("shape", [6, 61, 3]), ("fill_value", 1), ("node_type", "group")):
        path = zarr_folder / "data.zarr" / "bev_values" / "zarr.json"
        before = path.read_bytes()
        path.write_bytes(json.dumps({**json.loads(before), key: value}).encode())
        forge_all(zarr_folder)
        assert files_of(verify(zarr_folder)) == ["data.zarr/bev_values/zarr.json"], key
        path.write_bytes(before)
    path.unlink()
    assert files_of(verify(zarr_folder)) == ["data.zarr/bev_values/zarr.json"]


def test_values_in_rows_that_no_frame_uses_are_found(zarr_folder: Path) -> None:
    from cache.zarr_writer import checksum

    path = zarr_folder / "data.zarr" / "scores" / "c" / "2" / "0"
    data = bytearray(path.read_bytes())
    offset, length = np.frombuffer(bytes(data[-36:-4]), "<u8").reshape(2, 2)[1].tolist()
    data[offset] = 1
    data[offset + length - 4 : offset + length] = checksum(bytes(data[offset : offset + length - 4]))
    path.write_bytes(data)
    forge_all(zarr_folder)
    (finding,) = verify(zarr_folder)
    assert finding.file == "data.zarr/scores/c/2/0" and "row 1" in finding.found


# --- cost


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    size = 10 * PIECE + 7
    with open(tmp_path / "large", "wb") as file:
        file.truncate(size)
    read: list[int] = []
    stream = FileStream(LocalRoot(tmp_path), "large", size, read.append)
    tracemalloc.start()
    stream.take(100)
    assert (stream.position, stream.left) == (100, size - 100) and stream.last(3) == bytes(3)
    assert stream.rest_is_zero()
    stream.hexdigest()
    assert tracemalloc.get_traced_memory()[1] < 4 * PIECE
    tracemalloc.stop()
    assert sum(read) == size


@pytest.fixture(autouse=True)
def _no_tracing_left() -> Iterator[None]:
    yield
    tracemalloc.stop()


def test_what_lies_beyond_the_vouched_size_is_not_read(folder: Path) -> None:
    with open(folder / first_shard_file(folder), "r+b") as file:
        file.truncate(1 << 40)
    seen: list[int] = []
    assert any(
        "1099511627776 bytes" in finding.found
        for finding in verify(folder, progress=lambda done, total: seen.append(done))
    )
    assert seen[-1] < 1 << 20


def test_findings_are_plain_values() -> None:
    finding = Finding("a", "b", "c", "d")
    assert json.loads(canonical_json(dataclasses.asdict(finding)))["file"] == "a"
