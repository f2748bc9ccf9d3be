"""What the stream benchmark reads: a frame store of simulated 1600x900 pictures and teacher stores at nuScenes width.

A few scenes are simulated and their tables copied under new tokens until there are enough frames, all cached by the
product's own pass: genuine stores whose pictures repeat every few frames. The shipped teacher has a grid of 64 x 64, so
the teacher stores are fabricated at 256 x 128 x 128: the literal gaussian cells of the frames' own boxes, values drawn
like the shipped teacher's (half of them zero, the rest positive, channels correlated and of different spread). Cost:
two minutes on two cores the first time; what is there is used again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cache.bev import BevEncoding
from cache.classes import DETECTION_CLASSES
from cache.commit import begin, finish
from cache.coverage import Coverage
from cache.files import digest_of, write_json
from cache.grid import BevGrid
from cache.index import KIND_LABELLED
from cache.manifest import FORMAT_VERSION
from cache.plan import FrameEntry, Scene, StorePlan
from cache.shard_writer import open_shard
from cache.store import FrameStore
from models.gaussian import foreground_mask
from pipeline.frames import FrameOptions, cache_frames
from pipeline.simulator import simulate
from pipeline.teacher import detection_fields
from trainer.augment import BevAugment, move_boxes

VERSION = "v1.0-trainval"
GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 0.8)
CHANNELS = 256
SCENE = Scene("f" * 32, "fabricated", "train")
LATENTS = 24  # the shipped teacher's 96 channels have nine tenths of their energy in 32 directions
_COPIED = ("scene", "sample", "sample_data", "sample_annotation", "instance", "ego_pose")


@dataclass(frozen=True)
class World:
    """scenes x frames are simulated and stand `copies` times in the frame stores; `fields` frames are in the teacher
    store that is read alone; the second frame store's pictures are scaled by image_scale."""

    scenes: int = 8
    frames: int = 3
    copies: int = 10
    fields: int = 2048
    image_scale: float = 0.44
    seed: int = 3


@dataclass(frozen=True)
class Data:
    """Roots of the stores: pictures as recorded, pictures scaled at caching time, the teacher on those frames, and the
    teacher on `World.fields` frames."""

    frames: Path
    scaled: Path
    teacher: Path
    fields: Path


def prepare(work: Path, world: World, console: Console, workers: int | None = None) -> Data:
    """Makes what is not there yet under work/data-<digest of world and store format>."""
    root = work / f"data-{digest_of([asdict(replace(world, fields=0)), FORMAT_VERSION])[:8]}"
    data = Data(root / "full" / "frames", root / "scaled" / "frames", root / "teacher", root / f"fields-{world.fields}")
    if not (root / "simulated").is_dir():
        console.print(f"[dim]simulating {world.scenes} scenes x {world.frames} frames ...[/dim]")
        simulate(
            root / "simulated",
            version=VERSION,
            scenes={"train": world.scenes, "val": 0},
            frames=world.frames,
            sweeps=0,
            seed=world.seed,
            workers=workers,
        )
    if not (root / "copied" / VERSION).is_dir():
        copy_scenes(root / "simulated", root / "copied", world.copies)
    for store, scale in ((data.frames, 1.0), (data.scaled, world.image_scale)):
        if not (store / "manifest.json").is_file():
            console.print(
                f"[dim]caching {world.scenes * world.frames * world.copies} frames at scale {scale} ...[/dim]"
            )
            options = FrameOptions(image_scale=scale)
            cache_frames(root / "copied", VERSION, store.parent, options=options, workers=workers)
    frames = FrameStore(data.frames)
    boxes = [frames.boxes_lidar(row) for row in range(len(frames))]
    if not (data.teacher / "manifest.json").is_file():
        console.print("[dim]fabricating the teacher's fields ...[/dim]")
        entries = [frames.entry(row) for row in range(len(frames))]
        shards = [entries[start : start + 32] for start in range(0, len(entries), 32)]
        write_teacher(data.teacher, frames.manifest.identity, frames.manifest.scenes, shards, boxes, turn=False)
    if not (data.fields / "manifest.json").is_file():
        entries = [_made_up(number) for number in range(world.fields)]
        shards = [entries[start : start + 128] for start in range(0, len(entries), 128)]
        many = [boxes[number % len(boxes)] for number in range(world.fields)]
        write_teacher(data.fields, frames.manifest.identity, (SCENE,), shards, many, turn=True)
    frames.close()
    return data


def _made_up(number: int) -> FrameEntry:
    """A frame that no frame store holds."""
    digest = hashlib.md5(f"fields {number}".encode()).hexdigest()
    return FrameEntry(digest, SCENE.token, number, KIND_LABELLED, (0,) * len(DETECTION_CLASSES), digest[:16])


def copy_scenes(source: Path, target: Path, copies: int) -> None:
    """A nuScenes folder at `target` whose tables hold every scene of `source` `copies` times, under new tokens and the
    split's further names; the files are those of `source`, by links."""
    from nuscenes.utils.splits import create_splits_scenes

    tables = {path.stem: json.loads(path.read_bytes()) for path in sorted((source / VERSION).glob("*.json"))}
    names = create_splits_scenes()["train"]
    ours = {row["token"] for name in _COPIED for row in tables[name]}
    out: dict[str, list[Any]] = {name: rows if name not in _COPIED else [] for name, rows in tables.items()}
    for copy in range(copies):
        new = {token: hashlib.md5(f"{token} {copy}".encode()).hexdigest() for token in ours}
        for name in _COPIED:
            rows = _renamed(tables[name], new)
            if name == "scene":
                for i, row in enumerate(rows):
                    row["name"] = names[copy * len(rows) + i]
            out[name] += rows
    target.mkdir(parents=True, exist_ok=True)
    for folder in ("samples", "sweeps", "maps"):
        if not (target / folder).exists():
            os.symlink(os.path.relpath(source / folder, target), target / folder)
    for name, rows in out.items():
        write_json(target / f"{VERSION}.new" / f"{name}.json", rows)
    (target / f"{VERSION}.new").rename(target / VERSION)


def _renamed(value: Any, new: dict[str, str]) -> Any:
    """A deep copy of a table's rows with every token that is in `new` replaced."""
    if isinstance(value, dict):
        return {key: _renamed(inner, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, new) for inner in value]
    return new.get(value, value) if isinstance(value, str) else value


def write_teacher(
    root: Path,
    identity: dict[str, Any],
    scenes: Sequence[Scene],
    shards: Sequence[Sequence[FrameEntry]],
    boxes: Sequence[np.ndarray],
    *,
    turn: bool,
    dtype: str = "float16",
) -> None:
    """A teacher store of fabricated fields over `shards` of frames; boxes (N, 9) a frame, in the same order. turn:
    boxes are rotated by a random angle a frame, so that frames with equal boxes hold different cells."""
    coverage = Coverage.parse("gaussian(dilate=0)", GRID)
    encoding = BevEncoding(CHANNELS, *GRID.shape, len(coverage.names), "cells", dtype)
    plan = StorePlan(
        kind="teacher",
        identity=identity,
        header={
            "teacher": "fabricated for the stream benchmark",
            "grid": GRID.to_dict(),
            "coverage": coverage.header(),
            "bev": encoding.to_dict(),
        },
        fields=(*encoding.fields(), *detection_fields()),
        scenes=tuple(scenes),
        shards=tuple(tuple(entry.token for entry in shard) for shard in shards),
    )
    for shard in begin(root, plan):
        first = sum(len(tokens) for tokens in plan.shards[: shard.number])
        with open_shard(root, shard) as writer:
            for number, entry in enumerate(shards[shard.number], start=first):
                values = fabricated(boxes[number], np.random.default_rng(number), turn)
                cells = [values.pop(name) for name in ("values", "index", "weights")]
                writer.write(entry, {**encoding.encode_values(*cells), **values})
    finish(root, plan)


def fabricated(boxes: np.ndarray, rng: np.random.Generator, turn: bool) -> dict[str, np.ndarray]:
    """A frame: index, values and weights of its boxes' cells, and detections: the boxes and twice as many doubtful ones
    beside them."""
    if turn:
        boxes = move_boxes(boxes, BevAugment(rotation_rad=rng.uniform(-np.pi, np.pi)).matrix())
    mask = foreground_mask(boxes, GRID, min_radius=1)
    index = np.flatnonzero(mask).astype(np.int32)
    found = np.concatenate([boxes, boxes, boxes])
    found = (found + rng.normal(0, 0.2, found.shape)).astype(np.float32)
    return {
        "index": index,
        "values": teacher_values(len(index), rng),
        "weights": np.ascontiguousarray(mask.reshape(-1)[index, None], np.float32),
        "boxes": found,
        "scores": np.sort(rng.uniform(0.1, 1, len(found)).astype(np.float32))[::-1].copy(),
        "labels": rng.integers(0, len(DETECTION_CLASSES), len(found)).astype(np.int32),
    }


def teacher_values(cells: int, rng: np.random.Generator) -> np.ndarray:
    """(cells, CHANNELS) float16 like the shipped teacher's: a rectified mix of few latents; 53 % zeros, and channels
    whose spread and share of zeros differ."""
    fixed = np.random.default_rng(0)  # the mix belongs to the teacher, not to the frame
    mix = fixed.normal(size=(LATENTS, CHANNELS)) / np.sqrt(LATENTS)
    spread, offset = fixed.lognormal(0, 0.6, CHANNELS), fixed.normal(-0.08, 0.5, CHANNELS)
    values = rng.normal(size=(cells, LATENTS)) @ mix + 0.3 * rng.normal(size=(cells, CHANNELS)) + offset
    return np.maximum(values * spread, 0).astype(np.float16)
