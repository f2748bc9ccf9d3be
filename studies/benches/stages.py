"""Exactness over a training: the dense loss from stores against the live teacher, from initialisation to the end.

The error of a store is fixed, what the student still lacks shrinks, so the relative error of loss and gradient grows as
training goes on: every figure stands beside that residual. Trains the demo's student on the teacher's grid, then
compares on frames of the busy cache, a shard's first frames at a time, because the live teacher must see the batches
that the store was made from. Some minutes on one core for every 100 steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cache.frame import CAMERA_CHANNELS
from cache.layout import frames_place, teacher_place
from cache.same_frames import require_same_frames
from cache.store import FrameStore, TeacherStore
from models.build import load_weights
from models.detector import Batch, Detector
from models.gaussian import foreground_mask
from pipeline.teacher_shard import BATCH
from studies.benches.exactness import Agreement, compare
from trainer.augment import BevAugment, FrameAugment, no_augment
from trainer.batches import BatchBuilder, Needs
from trainer.checkpoint import Training, restore
from trainer.checkpoints import checkpoint_path
from trainer.loop import train
from trainer.observer import StepReport
from trainer.plan import make_plan, training_needs
from trainer.recipe import Recipe
from trainer.said import TeacherCells
from trainer.said_reader import SaidReader, Wanted
from trainer.setup import make_training
from trainer.teachers import TeachersReader, rows_by_frame

AUGMENTED = BevAugment(rotation_rad=0.3, scale=1.03, flip_x=True)


@dataclass(frozen=True)
class Stage:
    """What one state of the student gave. stored: each store against the live teacher in fp32, by name; rounded: the
    fp16 stores against the live teacher rounded to fp16; augmented: the same under a BEV augmentation. Every value is
    the worst over the batches, but the residual, which is the smallest."""

    name: str
    step: int
    stored: dict[str, Agreement]
    rounded: dict[str, Agreement]
    augmented: dict[str, Agreement]

    def to_dict(self) -> dict[str, Any]:
        parts = {part: getattr(self, part) for part in ("stored", "rounded", "augmented")}
        return {
            "stage": self.name,
            "step": self.step,
            **{part: {name: found.to_dict() for name, found in by_name.items()} for part, by_name in parts.items()},
        }


@dataclass(frozen=True)
class LiveBatch:
    """Frames that the teacher has just seen: their rows of the frame store, its maps (B, C, H, W) fp32, the boxes."""

    rows: list[int]
    maps: Tensor
    boxes: list[np.ndarray]

    def mask(self, detector: Detector, dilate: int) -> Tensor:
        """(B, H, W): the gaussian selector's weights, drawn from the boxes and not read from any store."""
        masks = [foreground_mask(boxes, detector.grid, min_radius=1, dilate=dilate) for boxes in self.boxes]
        return torch.from_numpy(np.stack(masks))


def live_batches(frames: FrameStore, weights: Path, count: int) -> list[LiveBatch]:
    """The teacher over the first batch of up to `count` shards, on one thread, as a caching task runs it."""
    teacher = load_weights(weights).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = []
    for shard in np.unique(np.asarray(frames.index.shard))[:count]:
        rows = np.flatnonzero(np.asarray(frames.index.shard) == shard)[:BATCH].tolist()
        clouds = [torch.from_numpy(np.array(frames.points(row))) for row in rows]
        with torch.inference_mode():
            maps = teacher(Batch(points=clouds, tokens=[str(row) for row in rows])).bev.float()
        out.append(LiveBatch(rows, maps.clone(), [frames.boxes_lidar(row) for row in rows]))
    torch.set_num_threads(threads)
    return out


def train_with_snapshots(recipe: Recipe, cache: Path, run: Path, steps: Sequence[int]) -> dict[int, Path]:
    """Trains and keeps the checkpoints of these steps (multiples of checkpoint_every, or the last). Found ones stay."""
    kept = {step: run / f"step-{step}.safetensors" for step in steps}
    if not all(path.is_file() for path in kept.values()):

        def keep(report: StepReport) -> None:
            if report.done in kept:
                shutil.copyfile(checkpoint_path(run, report.done), kept[report.done])

        shutil.rmtree(run, ignore_errors=True)
        train(recipe, cache, run, progress=keep)
    return kept


def compare_stages(
    recipe: Recipe,
    cache: Path,
    run: Path,
    busy: Path,
    stores: dict[str, int],
    live: Sequence[LiveBatch],
    steps: Sequence[int],
) -> list[Stage]:
    """The student of `recipe` at these steps (0: as initialised) on the batches of the cache `busy`.

    stores: names of teacher stores there, with their masks' dilation. The term, statistics and all, is the training's.
    """
    kept = train_with_snapshots(recipe, cache, run, [step for step in steps if step])
    names = {0: "initialisation", steps[-1]: "end"}
    out = []
    for step in steps:
        training = make_training(make_plan(recipe, cache), torch.device("cpu"))
        if step:
            restore(kept[step], training)
        out.append(_stage(names.get(step, "mid-way"), step, training, recipe, busy, stores, live))
    return out


def _stage(
    name: str,
    step: int,
    training: Training,
    recipe: Recipe,
    busy: Path,
    stores: dict[str, int],
    live: Sequence[LiveBatch],
) -> Stage:
    opened = {store: TeacherStore(teacher_place(busy, store)) for store in stores}
    frames = FrameStore(frames_place(busy))
    model = cast(Detector, training.model)
    needs = replace(training_needs(model, recipe), labels=False, depth=False)
    found: dict[str, dict[str, list[Agreement]]] = {part: {} for part in ("stored", "rounded", "augmented")}
    for batch in live:
        for moved in (False, True):
            augments = [_augment(moved)] * len(batch.rows)
            inputs, _ = BatchBuilder(frames, needs).build(batch.rows, augments)
            for store, teacher in opened.items():
                cells = stored_cells(frames, teacher, batch.rows, augments)
                half = batch.maps.half().float()
                fp16 = teacher.bev.dtype == "float16"
                if moved and not fp16:
                    continue
                pairs = [cells] if moved or not fp16 else [cells, cells]
                against = [half] if moved else [batch.maps, half] if fp16 else [batch.maps]
                mask = batch.mask(model, stores[store])
                term = cast(Any, next(iter(training.terms.values())))
                results = compare(training.model, term, inputs, pairs, against, mask, augmented=moved)
                parts = ["augmented"] if moved else ["stored", "rounded"]
                for part, agreement in zip(parts, results, strict=False):
                    found[part].setdefault(store, []).append(agreement)
    return Stage(name, step, **{part: {k: worst(v) for k, v in by.items()} for part, by in found.items()})


def worst(agreements: Sequence[Agreement]) -> Agreement:
    """The largest difference of each kind, and the smallest residual."""
    values = {name: max(getattr(a, name) for a in agreements) for name in Agreement.__annotations__}
    return Agreement(**{**values, "residual": min(a.residual for a in agreements)})


def _augment(moved: bool) -> FrameAugment:
    plain = no_augment(len(CAMERA_CHANNELS))
    return replace(plain, bev=AUGMENTED) if moved else plain


def stored_cells(
    frames: FrameStore, teacher: TeacherStore, rows: Sequence[int], augments: Sequence[FrameAugment]
) -> TeacherCells:
    """What the store gives training for these rows of the frame store."""
    there = rows_by_frame(len(frames), rows, require_same_frames(frames, teacher, rows))
    reader = TeachersReader({"": SaidReader(teacher, frames, Wanted(cells=True))}, {"": there})
    said = BatchBuilder(frames, Needs(), reader).build(rows, augments)[1]
    cells = said[""].cells if said is not None else None
    assert cells is not None
    return cells
