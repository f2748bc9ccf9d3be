"""How many bytes a teacher's feature takes, as raw fp16, dense, and as cells, and how exact the loss from it is.

A teacher with a 256 x 128 x 128 feature is trained for minutes on simulated scenes; its stores are written by the real
caching pass and weighed on disk, every file counted. Needs no network and no data; everything lands in the work folder
and is found again. From nothing about 40 minutes on two cores, afterwards two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cache.grid import BevGrid
from cache.layout import frames_place, teacher_place
from cache.store import FrameStore, TeacherStore
from models.gaussian import foreground_mask
from pipeline.engine import default_workers
from pipeline.teacher import TeacherOptions, cache_teacher
from studies.benches.codecs import codec_table
from studies.benches.full_width import evidence, objects_on_grid, prepare
from studies.benches.residuals import residual_curve
from studies.benches.size_report import report
from studies.benches.stages import LiveBatch, compare_stages, live_batches
from studies.demo import DemoWorld
from trainer.recipe import load_recipe

ABOUT = "bytes of a full-width teacher's stores against raw fp16, the codec table, and how exact the loss from them is"
TRAINVAL_FRAMES = 34_149
MASKS = {"literal": 0, "dilated": 1}  # cells by which the gaussian's radius grows
STORES = {
    f"{mask}-{dtype}": TeacherOptions(coverage=f"gaussian(dilate={dilate})", dtype=dtype)
    for mask, dilate in MASKS.items()
    for dtype in ("float16", "u8")
} | {"dense-float16": TeacherOptions(coverage="gaussian(dilate=0)", encoding="dense")}
LEARNT_FROM = "dilated-float16"  # what the student of the exactness stages is trained on
EXACT_SHARDS = 4
CODEC_DENSE_FRAMES = 2


@dataclass(frozen=True)
class StoreSize:
    """Bytes a frame of a committed store on disk, all its files over its frames; parts: by field, and what is not a
    field: the shards' own framing, the frame index, and manifest, plan and records."""

    frames: int
    cells: float
    total: float
    parts: dict[str, float]


def run(
    work: Path,
    console: Console,
    *,
    train_scenes: int = DemoWorld.train_scenes,
    val_scenes: int = DemoWorld.val_scenes,
    teacher_steps: int | None = None,
    student_steps: int = 400,
) -> dict[str, Any]:
    """Makes what is missing under `work`, measures, prints the tables and writes them to <work>/size.md.

    Returns the keys of the contract (bytes are per frame; _dilated: the mask grown by one cell), and `details`.
    """
    torch.set_num_threads(default_workers())
    weights = prepare(work, console, DemoWorld(train_scenes, val_scenes), teacher_steps)
    cache, busy = work / "cache", work / "busy"
    console.print("writing the stores")
    cache_teacher(cache, LEARNT_FROM, teacher="full-width", checkpoint=weights, options=STORES[LEARNT_FROM])
    for name, options in STORES.items():
        cache_teacher(busy, name, teacher="full-width", checkpoint=weights, options=options)
    frames = FrameStore(frames_place(busy))
    sizes = {name: store_size(busy, name) for name in STORES}
    live = live_batches(frames, weights, EXACT_SHARDS)
    console.print("measuring exactness; trains a student where none is there yet")
    recipe = load_recipe(
        "demo-distilled",
        {
            "model": {"bev": {"cell_m": 0.8}},
            "data": {"teacher": LEARNT_FROM},
            "train": {"steps": student_steps, "checkpoint_every": max(1, student_steps // 2)},
        },
    )
    masks = {name: MASKS[name.split("-")[0]] for name in STORES if not name.startswith("dense")}
    steps = (0, student_steps // 2 or 1, student_steps)
    stages = compare_stages(recipe, cache, work / "student", busy, masks, live, steps)
    console.print("measuring codecs")
    details: dict[str, Any] = {
        "teacher": evidence(work),
        "frames": len(frames),
        "objects_per_frame": float(np.mean([objects_on_grid(frames, row) for row in range(len(frames))])),
        "stores": {name: asdict(size) for name, size in sizes.items()},
        "stages": [stage.to_dict() for stage in stages],
        "residual_curve": residual_curve(busy, masks, live),
        "codecs": codecs_of(live, TeacherStore(teacher_place(busy, LEARNT_FROM)).grid),
    }
    figures = {**size_figures(sizes, raw_bytes(busy)), **exactness_figures(details["stages"][0])}
    text = report(figures, details)
    (work / "size.md").write_text(text)
    console.print(text, markup=False, highlight=False)
    return {**figures, "details": details}


def raw_bytes(cache: Path) -> int:
    """Bytes of one raw dense fp16 map."""
    bev = TeacherStore(teacher_place(cache, "dense-float16")).bev
    return 2 * bev.channels * bev.height * bev.width


def store_size(cache: Path, name: str) -> StoreSize:
    """A teacher store weighed on disk."""
    place = Path(teacher_place(cache, name))
    store = TeacherStore(place)
    frames = len(store)
    on_disk = {path.relative_to(place).as_posix(): path.stat().st_size for path in place.rglob("*") if path.is_file()}
    shards = sum(file.size for shard in store.manifest.shards for file in shard.files)
    index = sum(size for path, size in on_disk.items() if path.startswith("index"))
    by_field = np.asarray(store.index.length).sum(axis=0)
    parts = {spec.name: float(size) / frames for spec, size in zip(store.manifest.fields, by_field, strict=True)}
    parts["shard framing"] = (shards - int(by_field.sum())) / frames
    parts["frame index"] = index / frames
    total = sum(on_disk.values())
    parts["manifest, plan, records"] = (total - shards - index) / frames
    cells = float(np.mean([len(store.read(row, "bev_index")) for row in range(frames)]))
    return StoreSize(frames, cells, total / frames, parts)


def size_figures(sizes: Mapping[str, StoreSize], raw: int) -> dict[str, float]:
    """The contract's keys about bytes, of the literal mask, and with the suffix _dilated."""
    out: dict[str, float] = {"dense_fp16_bytes": float(raw)}
    for mask, suffix in (("literal", ""), ("dilated", "_dilated")):
        fp16, u8 = sizes[f"{mask}-float16"].total, sizes[f"{mask}-u8"].total
        out |= {
            f"cells_fp16_bytes{suffix}": fp16,
            f"cells_u8_bytes{suffix}": u8,
            f"ratio_fp16{suffix}": raw / fp16,
            f"ratio_u8{suffix}": raw / u8,
            f"ratio_same_codec{suffix}": sizes["dense-float16"].total / fp16,
            f"trainval_gb_fp16{suffix}": fp16 * TRAINVAL_FRAMES / 1e9,
            f"trainval_gb_u8{suffix}": u8 * TRAINVAL_FRAMES / 1e9,
        }
    return out


def exactness_figures(first: Mapping[str, Any]) -> dict[str, float]:
    """loss_rel_err and grad_rel_err: fp16 store against the fp32 teacher at initialisation; u8 with its own suffix."""
    out = {}
    for store, suffix in (("literal-float16", ""), ("dilated-float16", "_dilated"), ("literal-u8", "_u8")):
        out[f"loss_rel_err{suffix}"] = first["stored"][store]["loss"]
        out[f"grad_rel_err{suffix}"] = first["stored"][store]["gradient"]
    return out


def codecs_of(live: Sequence[LiveBatch], grid: BevGrid) -> dict[str, list[dict[str, Any]]]:
    """The codec table of the literal cells, the dilated cells and the whole map, as the teacher gave them."""
    maps = [_by_cell(bev) for batch in live for bev in batch.maps]  # (H * W, C) each
    raw = 2 * maps[0].size
    out = {}
    for mask, dilate in MASKS.items():
        weights = [
            foreground_mask(boxes, grid, min_radius=1, dilate=dilate).ravel() for batch in live for boxes in batch.boxes
        ]
        gathered = [values[weight > 0] for values, weight in zip(maps, weights, strict=True)]
        out[mask] = [row.to_dict() for row in codec_table(gathered, raw)]
    out["dense"] = [row.to_dict() for row in codec_table(maps[:CODEC_DENSE_FRAMES], raw, repeats=2)]
    return out


def _by_cell(bev: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(bev.flatten(1).T.numpy())
