"""Damage to a store's index and shards, with digests made to agree: what is left to notice is structure and content."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache.manifest import MANIFEST
from cache.zarr_writer import checksum
from studies.benches.fault_accidents import Rng, files_of, pick
from studies.benches.fault_forging import forge_all, forge_manifest

BLOCK = 512


def _column(rng: Rng, folder: Path) -> tuple[Path, np.ndarray]:
    path = pick(rng, folder, "index/*.npy")
    return path, np.load(path, allow_pickle=False)


def index_value(rng: Rng, folder: Path) -> str | None:
    """A value of an index column."""
    path, column = _column(rng, folder)
    flat = column.reshape(-1)
    flat[rng.integers(len(flat))] += np.array(1, column.dtype)
    np.save(path, column)
    return f"{path.relative_to(folder)}"


def forged_index_value(rng: Rng, folder: Path) -> str | None:
    """A column's value, sometimes the largest there is, and the manifest's digest of it made to agree."""
    path, column = _column(rng, folder)
    flat = column.reshape(-1)
    at = rng.integers(len(flat))
    before = flat[at].copy()
    flat[at] = (np.iinfo(column.dtype).max, 0, flat[at] + np.array(1, column.dtype))[rng.integers(3)]
    np.save(path, column)
    forge_manifest(folder)
    return None if flat[at] == before else f"{path.relative_to(folder)}"


def forged_index_header(rng: Rng, folder: Path) -> str | None:
    """A column's .npy header that claims another shape or dtype, and the manifest's digest made to agree."""
    path, column = _column(rng, folder)
    shape: Any = ((2**40,), (2**62, 2), (-1,), (), (1,) * 60, column.shape)[rng.integers(6)]
    descr = str(rng.choice(["|O", "<f8", "|V9", "<U4", ">u4", "<M8[s]", "|u1", "[('a','<u4')]"]))
    header = {
        "descr": column.dtype.str if rng.integers(2) else descr,
        "fortran_order": bool(rng.integers(2)),
        "shape": shape,
    }
    text = repr(header).encode() if rng.integers(4) else b"(" * 1000
    body = b"\x93NUMPY" + bytes([rng.integers(1, 4), 0]) + struct.pack("<H", len(text)) + text + column.tobytes()
    path.write_bytes(body)
    forge_manifest(folder)
    return f"{path.relative_to(folder)}"


# --- shards, every digest made to agree: what is left is the shard's own structure


def _tar(rng: Rng, folder: Path) -> tuple[Path, list[int]] | None:
    """A tar shard and where its members' headers are."""
    if not (folder / "shards").is_dir():
        return None
    path = pick(rng, folder, "shards/*.tar")
    data, at, headers = path.read_bytes(), 0, []
    while data[at]:
        headers.append(at)
        at += BLOCK + -(-int(data[at + 124 : at + 135], 8) // BLOCK) * BLOCK
    return path, headers


def _tar_header(rng: Rng, folder: Path, change: Callable[[bytearray], None]) -> str | None:
    """Changes a member's header, makes its checksum agree, and every digest."""
    found = _tar(rng, folder)
    if found is None:
        return None
    path, headers = found
    data, at = bytearray(path.read_bytes()), headers[rng.integers(len(headers))]
    header = data[at : at + BLOCK]
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at : at + BLOCK] = header
    path.write_bytes(data)
    forge_all(folder)
    return f"{path.relative_to(folder)}"


def tar_name(rng: Rng, folder: Path) -> str | None:
    """A member of another name, or of one that leads elsewhere."""

    def change(header: bytearray) -> None:
        name = (b"../../etc/cron.d/x", b"/tmp/x", b"..", b"", b"\xff\xfe", header[:32] + b".other.npy")[rng.integers(6)]
        header[:100] = bytes(name).ljust(100, b"\0")

    return _tar_header(rng, folder, change)


def tar_type(rng: Rng, folder: Path) -> str | None:
    """A member that is a link, a device, a folder or an extension header."""

    def change(header: bytearray) -> None:
        header[156:157] = (b"1", b"2", b"3", b"5", b"6", b"x", b"g", b"L", b"K", b"S", b"7")[rng.integers(11)]
        header[157:257] = b"/etc/passwd".ljust(100, b"\0") if rng.integers(2) else bytes(100)

    return _tar_header(rng, folder, change)


def tar_size(rng: Rng, folder: Path) -> str | None:
    """A member of another size, or of one that is no number."""

    def change(header: bytearray) -> None:
        header[124:136] = (
            b"77777777777\0", b"00000000000\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"            ",
            b"00000001000\0",
        )[rng.integers(6)]  # fmt: skip

    return _tar_header(rng, folder, change)


def tar_twice(rng: Rng, folder: Path) -> str | None:
    """A member once more at the end, with other content: stock readers would take the second."""
    found = _tar(rng, folder)
    if found is None:
        return None
    path, headers = found
    data = path.read_bytes()
    at = headers[rng.integers(len(headers))]
    size = int(data[at + 124 : at + 135], 8)
    member = data[at : at + BLOCK] + rng.bytes(size).ljust(-(-size // BLOCK) * BLOCK, b"\0")
    path.write_bytes(
        data.rstrip(b"\0").ljust(-(-len(data.rstrip(b"\0")) // BLOCK) * BLOCK, b"\0") + member + bytes(1024)
    )
    forge_all(folder)
    return f"{path.relative_to(folder)}"


def member_header(rng: Rng, folder: Path) -> str | None:
    """The .npy or zstd header of a value claims more than there is."""
    for _ in range(20):
        path = pick(rng, folder, "shards/*.tar" if (folder / "shards").is_dir() else "data.zarr/*/c/*")
        data = bytearray(path.read_bytes())
        marks = [mark for mark in (b"'shape': (", b"\x28\xb5\x2f\xfd") if mark in data]
        if marks:
            break
    else:
        return None
    mark = marks[rng.integers(len(marks))]
    at = [i for i in range(len(data)) if data.startswith(mark, i)]
    where = at[rng.integers(len(at))]
    if mark.startswith(b"'"):
        data[where + 10 : where + 11] = b"9"
        data[where + 11 : where + 12] = b"9"
    else:
        data[where + 4 : where + 13] = bytes([0xE0]) + struct.pack("<Q", (2**63, 2**40, 2**31, 0)[rng.integers(4)])
    path.write_bytes(data)
    _zarr_checksums(path, data, folder)
    forge_all(folder)
    return f"{path.relative_to(folder)}"


def _zarr_shard(rng: Rng, folder: Path, field: str = "*") -> Path | None:
    if not (folder / "data.zarr").is_dir():
        return None
    sides = ("valid", "token", "timestamp_us", "size_")
    files = [
        path
        for path in files_of(folder)
        if "c" in path.parts and (field != "*" or not path.relative_to(folder / "data.zarr").parts[0].startswith(sides))
    ]
    files = [path for path in files if field == "*" or path.relative_to(folder / "data.zarr").parts[0] == field]
    return files[rng.integers(len(files))]


def _zarr_checksums(path: Path, data: bytearray, folder: Path) -> None:
    """Each chunk's checksum anew, where `path` is a field's shard."""
    if "data.zarr" not in path.parts:
        return
    rows = json.loads((folder / MANIFEST).read_bytes())["layout"]["rows"]
    for offset, length in struct.iter_unpack("<QQ", bytes(data[-(16 * rows + 4) : -4])):
        data[offset + length - 4 : offset + length] = checksum(bytes(data[offset : offset + length - 4]))
    path.write_bytes(data)


def zarr_index(rng: Rng, folder: Path) -> str | None:
    """A Zarr shard's own index points elsewhere, checksum and digests made to agree: stock zarr reads other values."""
    path = _zarr_shard(rng, folder)
    if path is None:
        return None
    data = bytearray(path.read_bytes())
    before = bytes(data)
    rows = json.loads((folder / MANIFEST).read_bytes())["layout"]["rows"]
    start = len(data) - 16 * rows - 4
    at = start + 8 * int(rng.integers(2 * rows))
    data[at : at + 8] = struct.pack("<Q", (0, 2**64 - 1, 2**40, int(rng.integers(start)))[rng.integers(4)])
    data[-4:] = checksum(bytes(data[start:-4]))
    path.write_bytes(data)
    forge_all(folder)
    return None if data == before else f"{path.relative_to(folder)}"


def zarr_side(rng: Rng, folder: Path) -> str | None:
    """One of the arrays beside the fields, checksum and digests made to agree."""
    path = _zarr_shard(rng, folder, ("valid", "token", "timestamp_us", "size_k", "size_n")[rng.integers(5)])
    if path is None:
        return None
    data = bytearray(path.read_bytes()[:-4])
    data[rng.integers(len(data))] ^= 1
    path.write_bytes(bytes(data) + checksum(bytes(data)))
    forge_all(folder)
    return f"{path.relative_to(folder)}"


def zarr_json(rng: Rng, folder: Path) -> str | None:
    """A zarr.json by which stock zarr reads other values, digests made to agree."""
    if not (folder / "data.zarr").is_dir():
        return None
    arrays = sorted(folder.glob("data.zarr/*/zarr.json"))
    path = arrays[rng.integers(len(arrays))]
    values = json.loads(path.read_bytes())
    change = rng.integers(4)
    if change == 0:
        values["shape"][0] += 1
    elif change == 1:
        values["data_type"] = "uint8" if values["data_type"] != "uint8" else "int8"
    elif change == 2:
        values["codecs"] = [*values["codecs"][::-1], {"name": "gzip", "configuration": {"level": 1}}]
    else:
        values["chunk_grid"]["configuration"]["chunk_shape"][0] += 1
    path.write_text(json.dumps(values, indent=2))
    forge_all(folder)
    return f"{path.relative_to(folder)}"
