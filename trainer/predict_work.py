"""What is predicted in which batches: units of work that stand by themselves, so that any process may take any of them.

A detector of single frames has a unit a batch. A temporal one goes through scenes in time order, a pass a frame
(`memory`): a unit is a few whole scenes side by side. Or it is shown with each frame its queue - 1 moments before
(`window`), which costs as many passes more and knows nothing older: again a unit a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cache.frame import CAMERA_CHANNELS
from cache.store import FrameStore
from models.detector import Batch, Detector
from trainer.augment import no_augment
from trainer.batches import BatchBuilder, model_needs, moments_before
from trainer.past import PastConfig, Pasts
from trainer.scene_memory import SceneStep, memory_of, scene_steps

PastMode = Literal["memory", "window"]
Built = tuple[Batch, list[int], SceneStep | None]


@dataclass(frozen=True)
class Work:
    """units: each a list of batches in order, of whatever kind `build` takes; build: what it makes of one: the batch,
    its rows, and its step where scenes are gone through. Safe to call in any thread."""

    units: Sequence[Sequence[Any]]
    build: Callable[[Any], Built]


def work_of(model: Detector, store: FrameStore, rows: Sequence[int], batch: int, past: PastMode = "memory") -> Work:
    """The work of these rows, each of which is told once; batch: frames, or scenes, at once. A pure function of its
    arguments. Raises StoreError where a field is missing."""
    remembers = past == "memory" and moments_before(model) > 0
    return (_scenes if remembers else _windows)(model, store, rows, batch)


def _windows(model: Detector, store: FrameStore, rows: Sequence[int], batch: int) -> Work:
    """The rows in their order, each with the moments before it where `model` is temporal."""
    builder, augment = BatchBuilder(store, model_needs(model)), no_augment(len(CAMERA_CHANNELS))
    length = moments_before(model)
    pasts = Pasts(store, None, rows, length, PastConfig(skipped=0)) if length else None
    builder.require(rows, past=pasts.rows() if pasts else ())

    def build(job: range) -> Built:
        past = [pasts.of(entry, 0, 0) for entry in job] if pasts else []
        own = [rows[entry] for entry in job]
        return builder.build(own, [augment] * len(job), past=past)[0], own, None

    return Work([[range(i, min(i + batch, len(rows)))] for i in range(0, len(rows), batch)], build)


def _scenes(model: Detector, store: FrameStore, rows: Sequence[int], batch: int) -> Work:
    """The rows' scenes in time order, so many side by side."""
    builder, augment = BatchBuilder(store, model_needs(model)), no_augment(len(CAMERA_CHANNELS))
    by_scene: dict[int, list[int]] = {}
    for row in rows:
        by_scene.setdefault(int(store.index.scene[row]), []).append(row)
    scenes = list(by_scene.values())
    groups = [[row for scene in scenes[i : i + batch] for row in scene] for i in range(0, len(scenes), batch)]
    units = [scene_steps(store, group, batch) for group in groups]
    builder.require([row for unit in units for step in unit for row in step.rows])

    def build(step: SceneStep) -> Built:
        built, _ = builder.build(step.rows, [augment] * len(step.rows))
        return replace(built, memory=memory_of(store, step)), step.rows, step

    return Work(units, build)
