"""The names of a shard's files, which its number and the store's format fix. Numbers are all that merging changes."""

from __future__ import annotations

from cache.fields import FieldSpec
from cache.plan import ShardPlan

FOLDER = "data.zarr"


def side_fields(letters: tuple[str, ...]) -> tuple[FieldSpec, ...]:
    """Arrays beside the fields, a value a row: whether it is a frame, which one, when, and the letters' sizes."""
    return (
        FieldSpec("valid", "npy", "bool"),
        FieldSpec("token", "npy", "uint8", ("16",), about="the hex digits' bytes"),
        FieldSpec("timestamp_us", "npy", "int64"),
        *(FieldSpec(f"size_{letter.lower()}", "npy", "uint32") for letter in letters),
    )


def shard_files(shard: ShardPlan) -> list[str]:
    """Every file that this shard has once it is committed, its record aside."""
    if shard.format.name == "zarr":
        fields = (*shard.fields, *side_fields(tuple(shard.format.capacity)))
        return [f"{FOLDER}/{spec.name}/c/{shard.number}" + "/0" * len(spec.shape) for spec in fields]
    return [f"shards/{shard.number:05d}.tar"]


def metadata_files(fields: tuple[FieldSpec, ...], letters: tuple[str, ...]) -> list[str]:
    """Zarr's own files of a store with these fields, whose sizes vary by these letters."""
    names = [spec.name for spec in (*fields, *side_fields(letters))]
    return [f"{FOLDER}/zarr.json", *(f"{FOLDER}/{name}/zarr.json" for name in names)]
