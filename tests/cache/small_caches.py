"""Whole caches of two fields a store, written by the core itself: a frame store and teacher stores in either format."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.commit import begin, finish
from cache.fields import FieldSpec
from cache.layout import frames_place, teacher_place
from cache.manifest import Manifest
from cache.plan import Format, FrameEntry, Scene, StorePlan
from cache.shard_writer import open_shard
from cache.store import Store

IDENTITY = {"dataset_version": "v1.0-test", "classes": ["car", "bus"], "box_convention": "any"}
FRAME_FIELDS = (FieldSpec("frame", "json"), FieldSpec("points", "npy.zstd", "float32", ("P", "5")))
TEACHER_FIELDS = (
    FieldSpec("values", "npy.zstd", "float16", ("K", "3")),
    FieldSpec("scores", "npy", "float32", ("N",)),
)
ZARR = Format("zarr", 3, {"K": 9, "N": 9})


def token_of(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def scene(name: str, split: str = "train") -> Scene:
    return Scene(token_of(name), name, split)


def plan_of(kind: str, scenes: Sequence[str], frames: int = 2, **changes: Any) -> StorePlan:
    """One shard a scene, `frames` frames each."""
    values: dict[str, Any] = {
        "kind": kind,
        "identity": IDENTITY,
        "header": {"sweeps": 1},
        "fields": FRAME_FIELDS if kind == "frames" else TEACHER_FIELDS,
        "scenes": tuple(scene(name) for name in scenes),
        "shards": tuple(tuple(token_of(f"{name}/{i}") for i in range(frames)) for name in scenes),
    }
    return StorePlan(**(values | changes))


def values_of(kind: str, token: str) -> dict[str, Any]:
    rng = np.random.default_rng(int(token[:8], 16))
    count = int(rng.integers(1, 9))
    if kind == "frames":
        return {"frame": {"token": token}, "points": rng.normal(size=(count, 5)).astype(np.float32)}
    return {
        "values": rng.normal(size=(count, 3)).astype(np.float16),
        "scores": rng.uniform(size=9 - count).astype(np.float32),
    }


def write_store(place: Any, plan: StorePlan, lost: Sequence[str] = ()) -> Manifest:
    """The store, or the rest of it; frames `lost` are quarantined."""
    for shard in begin(place, plan, grow=True):
        with open_shard(place, shard) as writer:
            for token in shard.tokens:
                if token in lost:
                    writer.quarantine(token, "a.bin: truncated")
                    continue
                owner = plan.scenes[shard.number].token
                entry = FrameEntry(token, owner, int(token[:8], 16), 0, (1, 2), token[:16])
                values = values_of(plan.kind, token)
                writer.write(entry, {spec.name: values[spec.name] for spec in plan.fields})
    return finish(place, plan)


def write_cache(
    cache: Any, scenes: Sequence[str], teachers: Sequence[str] = ("t",), layout: Format | None = None, **changes: Any
) -> Any:
    """A cache with a frame store and teacher stores over all of it."""
    write_store(frames_place(cache), plan_of("frames", scenes))
    for name in teachers:
        write_store(teacher_place(cache, name), plan_of("teacher", scenes, format=layout or Format(), **changes))
    return cache


def reads(place: Any) -> dict[tuple[str, str], Any]:
    """Every value of a store by token and field, with the frame's index entry."""
    store = Store(place)
    out: dict[tuple[str, str], Any] = {}
    for row in range(len(store)):
        out[store.token(row), "entry"] = store.entry(row)
        for spec in store.manifest.fields:
            value = store.read(row, spec.name)
            out[store.token(row), spec.name] = value.tolist() if spec.is_array else value
    store.close()
    return out


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` and its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
