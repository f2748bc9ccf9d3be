"""Whether a Zarr shard is what its index says: its own chunk index, every chunk's checksum, the arrays beside the
fields, and the zarr.json that stock readers go by.

Our reader goes by the index, stock zarr by the shard's own; both must tell the same. Needs the memory of one frame's
chunk and of the shard's index, and no zarr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from cache.errors import CorruptError, StoreError
from cache.fields import MAX_ARRAY_BYTES, FieldSpec
from cache.file_stream import FileStream
from cache.files import parse_json
from cache.plan import Format
from cache.shard_files import FOLDER, side_fields
from cache.verify_tar import Tell
from cache.zarr_writer import checksum, side_chunk

MAX_CHUNK = MAX_ARRAY_BYTES + (1 << 20)


def check_zarr_shard(
    stream: FileStream, spec: FieldSpec, frames: Sequence[Mapping[str, Any]], layout: Format, tell: Tell
) -> None:
    """One field's shard file. frames: as in the shard's record, in order."""
    index_bytes = 16 * layout.rows + 4
    data_bytes = stream.size - index_bytes
    if data_bytes < 0:
        tell(f"{stream.size} bytes", f"at least the {index_bytes} of its own index of {layout.rows} rows")
        return
    index = stream.last(index_bytes)
    if checksum(index[:-4]) != index[-4:]:
        tell("its own index does not match its checksum", "a whole index at the end")
        return
    for row, (offset, length) in enumerate(np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist()):
        if offset != stream.position or not 4 < length <= min(data_bytes - offset, MAX_CHUNK):
            tell(f"row {row} at byte {offset}, {length} bytes", f"the chunk that begins at byte {stream.position}")
            return
        data, crc = stream.take(length - 4), stream.take(4)
        if checksum(data) != crc:
            whose = f"{frames[row]['token']}.{spec.name}" if row < len(frames) else "no frame's"
            tell(f"row {row}, {whose}: {checksum(data).hex()} is the checksum of its bytes", crc.hex())
            continue
        _check_chunk(row, offset, data, spec, frames[row] if row < len(frames) else None, layout, tell)
    if stream.position != data_bytes:
        tell(f"{data_bytes - stream.position} bytes behind the last chunk", "its own index")


def _check_chunk(
    row: int,
    offset: int,
    data: bytes,
    spec: FieldSpec,
    frame: Mapping[str, Any] | None,
    layout: Format,
    tell: Tell,
) -> None:
    where = f"row {row}" if frame is None else f"{frame['token']}.{spec.name}"
    if frame is not None:
        indexed, found = tuple(frame["members"][spec.name]), (offset, len(data), google_crc32c.value(data))
        if indexed != found:
            tell(f"{where} (offset, bytes, crc32c) {found}", f"{indexed}, as indexed")
    try:
        full = spec.decode_padded(data, layout.capacity, layout.capacity, where)
        if frame is None:
            if full.tobytes().count(0) != full.nbytes:
                tell(f"{where} holds values", "zeros: no frame uses it")
        else:
            spec.decode_padded(data, frame["sizes"], layout.capacity, where)
    except CorruptError as error:
        tell(str(error), f"{spec.dtype} of shape {list(spec.shape)}")


def check_side_array(
    stream: FileStream, position: int, frames: Sequence[Mapping[str, Any]], layout: Format, tell: Tell
) -> None:
    """One of the arrays beside the fields, by its position among them: valid, token, timestamp_us, sizes."""
    spec = side_fields(tuple(layout.capacity))[position]
    if stream.size > 16 * layout.rows + 4 or stream.take(stream.size) != side_chunk(spec, frames, layout.rows):
        tell(f"{spec.name} of {len(frames)} frames with other values", "the index's values and a checksum")


def check_zarr_json(
    documents: Mapping[str, bytes], fields: Sequence[FieldSpec], layout: Format, shards: int
) -> list[tuple[str, str, str]]:
    """(file, found, expected) of every zarr.json that does not describe the stored arrays. documents: content by name.

    Compared are the parts that stock readers decode by, so that a later zarr may add others.
    """
    rows = layout.rows
    expected: dict[str, dict[str, Any]] = {f"{FOLDER}/zarr.json": {"zarr_format": 3, "node_type": "group"}}
    for spec in fields:
        shape = list(spec.shape_under(layout.capacity))
        inner = [*_chain(spec), "crc32c"]
        expected[f"{FOLDER}/{spec.name}/zarr.json"] = _array(spec, rows * shards, rows, shape) | {
            "codecs": [{"name": "sharding_indexed", "chunk_shape": [1, *shape], "codecs": inner, "location": "end"}]
        }
    for spec in side_fields(tuple(layout.capacity)):
        expected[f"{FOLDER}/{spec.name}/zarr.json"] = _array(spec, rows * shards, rows, list(spec.shape_under({}))) | {
            "codecs": ["bytes", "crc32c"]
        }
    out = [(name, "missing", "the metadata of an array") for name in expected if name not in documents]
    for name, data in documents.items():
        wanted = expected.get(name)
        found = _described(data, name)
        if wanted is None:
            out.append((name, "metadata of no array of this store", "none"))
        elif found is None:
            out.append((name, "no Zarr metadata", "the metadata of an array"))
        else:
            out.extend(
                (name, f"{key} = {found.get(key)}"[:200], f"{value}")
                for key, value in wanted.items()
                if found.get(key) != value
            )
    return out


def _chain(spec: FieldSpec) -> list[str]:
    return ["bytes", *([spec.codec] if spec.codec else [])]


def _array(spec: FieldSpec, total: int, rows: int, shape: list[int]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": spec.dtype,
        "shape": [total, *shape],
        "chunk_shape": [rows, *shape],
        "fill_value": 0,
    }


def _described(data: bytes, name: str) -> dict[str, Any] | None:
    """The parts of a zarr.json that are compared, None where it is none."""
    try:
        values = parse_json(data, name, "Zarr metadata")
        out = {key: values[key] for key in ("zarr_format", "node_type")}
        if values["node_type"] == "group":
            return out
        codecs = values["codecs"]
        return out | {
            "data_type": values["data_type"],
            "shape": values["shape"],
            "chunk_shape": values["chunk_grid"]["configuration"]["chunk_shape"],
            "fill_value": values["fill_value"],
            "codecs": [_codec(codec) for codec in codecs],
        }
    except (StoreError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _codec(codec: Any) -> Any:
    if codec["name"] != "sharding_indexed":
        big = codec.get("configuration", {}).get("endian") == "big"
        return f"{codec['name']} big-endian" if big else codec["name"]
    inner = codec["configuration"]
    return {
        "name": "sharding_indexed",
        "chunk_shape": inner["chunk_shape"],
        "codecs": [part["name"] for part in inner["codecs"]],
        "location": inner["index_location"],
    }
