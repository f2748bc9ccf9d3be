"""A finished model streamed over frames of a store: detections by token, test-time geometry, no augmentation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from cache.errors import ConfigError
from cache.frame import CAMERA_CHANNELS, Detections
from cache.store import FrameStore
from models.build import load_weights
from models.detector import Batch, Detector
from trainer.augment import no_augment
from trainer.batches import BatchBuilder, model_needs
from trainer.loader import Loader
from trainer.loop import CHECKPOINT, WEIGHTS
from trainer.progress import Bar


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
) -> dict[str, Detections]:
    """What `model` says of these rows, by frame token; the model's mode is left as it was.

    progress: called with (frames done, frames in all); None shows a bar. Raises StoreError where a field is missing.
    """
    builder = BatchBuilder(store, model_needs(model))
    builder.require(rows)
    jobs = [list(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    augment = no_augment(len(CAMERA_CHANNELS))

    def build(job: list[int]) -> Batch:
        return builder.build(job, [augment] * len(job))[0]

    module = cast(nn.Module, model)
    device = next(module.parameters()).device
    out: dict[str, Detections] = {}
    was_training = module.training
    module.eval()
    try:
        with contextlib.ExitStack() as stack:
            listener = progress or _shown(stack.enter_context(Bar("predict", len(rows))))
            loader = stack.enter_context(Loader(jobs, build))
            stack.enter_context(torch.inference_mode())
            for ready in loader:
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    output = model(ready.to(device))
                out.update(zip(ready.tokens, model.decode(output), strict=True))
                listener(len(out), len(rows))
    finally:
        module.train(was_training)
    return out


def _shown(bar: Bar) -> Callable[[int, int], None]:
    return lambda done, total: bar.update(done, "frames")
