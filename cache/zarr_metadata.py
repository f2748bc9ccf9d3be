"""The zarr.json files of a store in the Zarr format, made by zarr itself. Imported by writers only."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from cache.fields import FieldSpec
from cache.plan import StorePlan
from cache.shard_files import FOLDER, side_fields

_COMPRESSORS: dict[str, Any] = {"": [], "zstd": [ZstdCodec(level=1)]}


def zarr_metadata(plan: StorePlan) -> dict[str, bytes]:
    """{name in the store: content} of the group's and every array's zarr.json."""
    store = MemoryStore()
    group = zarr.create_group(store, attributes={"bevcask": {"kind": plan.kind, "rows_per_shard": plan.format.rows}})
    rows = plan.format.rows * len(plan.shards)
    for spec in plan.fields:
        shape = spec.shape_under(plan.format.capacity)
        _create(group, spec, rows, shape, chunks=(1, *shape), shards=(plan.format.rows, *shape))
    for spec in side_fields(tuple(plan.format.capacity)):
        shape = spec.shape_under({})
        _create(group, spec, rows, shape, chunks=(plan.format.rows, *shape), shards=None)
    return {f"{FOLDER}/{name}": value.to_bytes() for name, value in sorted(store._store_dict.items())}


def _create(
    group: zarr.Group,
    spec: FieldSpec,
    rows: int,
    shape: tuple[int, ...],
    *,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
) -> None:
    group.create_array(
        spec.name,
        shape=(rows, *shape),
        dtype=spec.dtype,
        chunks=chunks,
        shards=shards,
        serializer=BytesCodec(endian="little"),
        compressors=[*_COMPRESSORS[spec.codec], Crc32cCodec()],
        fill_value=0,
        dimension_names=["row", *(_dimension(spec, axis) for axis in range(len(shape)))],
        attributes={"unit": spec.unit, "about": spec.about},
    )


def _dimension(spec: FieldSpec, axis: int) -> str:
    """Letters name their dimension; a fixed size is the field's own."""
    size = spec.shape[axis]
    return f"{spec.name}_{axis}" if size.isdecimal() else size
