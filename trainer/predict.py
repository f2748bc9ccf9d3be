"""A finished model streamed over frames of a store: detections by token, test-time geometry, no augmentation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import nn

from cache.errors import ConfigError
from cache.frame import CAMERA_CHANNELS, Detections
from cache.store import FrameStore
from models.build import load_weights
from models.detector import Batch, Detector
from trainer.augment import no_augment
from trainer.batches import BatchBuilder, model_needs, moments_before
from trainer.loader import Loader
from trainer.loop import CHECKPOINT, WEIGHTS
from trainer.past import PastConfig, Pasts
from trainer.progress import Bar
from trainer.scene_memory import SceneMemory, SceneStep, memory_of, scene_steps

J = TypeVar("J")


def load_run(run_dir: Path, trusted: str = "") -> Detector:
    """The model that a run exported, in evaluation mode; trusted: as `models.build.load_weights`. ConfigError where the
    run has not ended, or is none."""
    path = run_dir / WEIGHTS
    if not path.is_file():
        if (run_dir / CHECKPOINT).is_file():
            raise ConfigError(f"{run_dir}: the run has not ended; go on with `train --resume`")
        raise ConfigError(f"{run_dir}: no {WEIGHTS} in it; give the folder of a finished run")
    return load_weights(path, trusted)


def predict(
    model: Detector,
    store: FrameStore,
    rows: Sequence[int],
    *,
    batch: int = 4,
    precision: Literal["bf16", "fp32"] = "fp32",
    progress: Callable[[int, int], None] | None = None,
    past: Literal["memory", "window"] = "memory",
) -> dict[str, Detections]:
    """What `model` says of these rows, by frame token, in their order; the model's mode is left as it was.

    progress: called with (frames done, frames in all); None shows a bar. past: of temporal models: `memory` goes
    through the rows' scenes in time order, a pass a frame; `window` shows each frame its queue - 1 moments before,
    which costs as many passes more and knows nothing older. Raises StoreError where a field is missing.
    """
    remembers = past == "memory" and moments_before(model) > 0
    batches: _Batches[Any] = (_scenes if remembers else _windows)(model, store, rows, batch)
    maps = SceneMemory()
    module = cast(nn.Module, model)
    device = next(module.parameters()).device
    out: dict[str, Detections] = {}
    asked = {store.tokens[row] for row in rows}
    was_training = module.training
    module.eval()
    try:
        with contextlib.ExitStack() as stack:
            listener = progress or _shown(stack.enter_context(Bar("predict", len(rows))))
            loader = stack.enter_context(Loader(batches.jobs, batches.build))
            stack.enter_context(torch.inference_mode())
            for ready, step in loader:
                moved = ready.to(device) if step is None else maps.recall(ready.to(device), step)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    output = model(moved)
                if step is not None:
                    maps.keep(step, output.bev)
                found = zip(ready.tokens, model.decode(output), strict=True)
                out.update((token, boxes) for token, boxes in found if token in asked)
                listener(len(out), len(rows))
    finally:
        module.train(was_training)
    return {store.tokens[row]: out[store.tokens[row]] for row in rows}


@dataclass(frozen=True)
class _Batches(Generic[J]):
    """What is built of what; a batch of a scene's moment comes with its step."""

    jobs: Sequence[J]
    build: Callable[[J], tuple[Batch, SceneStep | None]]


def _windows(model: Detector, store: FrameStore, rows: Sequence[int], batch: int) -> _Batches[range]:
    """The rows in their order, each with the moments before it where `model` is temporal."""
    builder, augment = BatchBuilder(store, model_needs(model)), no_augment(len(CAMERA_CHANNELS))
    length = moments_before(model)
    pasts = Pasts(store, None, rows, length, PastConfig(skipped=0)) if length else None
    builder.require(rows, past=pasts.rows() if pasts else ())

    def build(job: range) -> tuple[Batch, SceneStep | None]:
        past = [pasts.of(entry, 0, 0) for entry in job] if pasts else []
        return builder.build([rows[entry] for entry in job], [augment] * len(job), past=past)[0], None

    return _Batches([range(i, min(i + batch, len(rows))) for i in range(0, len(rows), batch)], build)


def _scenes(model: Detector, store: FrameStore, rows: Sequence[int], batch: int) -> _Batches[SceneStep]:
    """The rows' scenes in time order, several at once."""
    builder, augment = BatchBuilder(store, model_needs(model)), no_augment(len(CAMERA_CHANNELS))
    steps = scene_steps(store, rows, batch)
    builder.require([row for step in steps for row in step.rows])

    def build(step: SceneStep) -> tuple[Batch, SceneStep | None]:
        built, _ = builder.build(step.rows, [augment] * len(step.rows))
        return replace(built, memory=memory_of(store, step)), step

    return _Batches(steps, build)


def _shown(bar: Bar) -> Callable[[int, int], None]:
    return lambda done, total: bar.update(done, "frames")
