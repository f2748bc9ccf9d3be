"""A finished model streamed over frames of a store: test-time geometry, no augmentation, results handed on batch by
batch.

`stream` yields them, `stream_over_ranks` spreads the work over the ranks of a process group and brings every answer to
rank 0 as fixed-width arrays, `predict` keeps them all. Memory: a few batches a rank, whatever the number of frames.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from cache.errors import ConfigError
from cache.frame import Detections
from cache.store import FrameStore
from models.build import load_weights
from models.detector import Detector
from trainer.checkpoints import list_checkpoints
from trainer.distributed import Ranks
from trainer.gathering import gather
from trainer.loader import LeavingError
from trainer.loader_options import loader_of, loader_options
from trainer.partition import rank_part
from trainer.predict_work import PastMode, Work, work_of
from trainer.progress import Bar
from trainer.run_files import BEST, WEIGHTS
from trainer.scene_memory import SceneMemory

ROUND = 4  # batches that a rank predicts between two gatherings
Precision = Literal["bf16", "fp32"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Portion:
    """What a model says of a few frames: their rows of the store, and as many detections."""

    rows: list[int]
    detections: list[Detections]


def load_run(run_dir: Path, trusted: str = "", weights: Literal["last", "best"] = "last") -> Detector:
    """A model of a run, in evaluation mode: the one it ended with, or the best of its validations.

    trusted: as `models.build.load_weights`. ConfigError where the run has not ended, never validated, or is none."""
    path = run_dir / (WEIGHTS if weights == "last" else BEST)
    if not path.is_file():
        if weights == "best" and ((run_dir / WEIGHTS).is_file() or list_checkpoints(run_dir)):
            raise ConfigError(
                f"{run_dir}: no {BEST} in it: the run has not validated yet, or never does; set [train] "
                "validate_every in its recipe, or leave out --weights best"
            )
        if list_checkpoints(run_dir):
            instead = "; or --weights best takes its best validation so far" if (run_dir / BEST).is_file() else ""
            raise ConfigError(f"{run_dir}: the run has not ended; go on with `train --resume`{instead}")
        raise ConfigError(f"{run_dir}: no {path.name} in it; give the folder of a finished run")
    return load_weights(path, trusted)


def predict(
    model: Detector,
    store: FrameStore,
    rows: Sequence[int],
    *,
    batch: int = 4,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    past: PastMode = "memory",
) -> dict[str, Detections]:
    """What `model` says of these rows, by frame token, in their order; the model's mode is left as it was.

    progress: called with (frames done, frames in all); None shows a bar. past: of temporal models, see
    `trainer.predict_work`. Raises StoreError where a field is missing.
    """
    work = work_of(model, store, rows, batch, past)
    found: dict[int, Detections] = {}
    with contextlib.ExitStack() as stack:
        listener = progress or _shown(stack.enter_context(Bar("predict", len(rows))))
        for portion in stream(model, work, range(len(work.units)), precision=precision):
            found.update(zip(portion.rows, portion.detections, strict=True))
            listener(len(found), len(rows))
    return {store.tokens[row]: found[row] for row in rows}


def stream(
    model: Detector,
    work: Work,
    units: range,
    *,
    precision: Precision = "fp32",
    stop: Callable[[], bool] | None = None,
) -> Generator[Portion, None, None]:
    """Batch by batch what `model` says of these units of the work; its mode is left as it was.

    Batches are read ahead, under `trainer.loader_options`; stop: asked while one is waited for, which ends with
    LeavingError once it is true. A batch that only leads up to frames asked for gives an empty portion.
    """
    module = cast(nn.Module, model)
    device = next(module.parameters()).device
    modes = {part: part.training for part in module.modules()}
    jobs = [(number, job) for number in units for job in work.units[number]]
    maps, at = SceneMemory(), -1
    module.eval()
    try:
        with loader_of(jobs, lambda job: (job[0], work.build(job[1])), loader_options(), stop) as loader:
            for number, (ready, rows, step) in loader:
                if number != at:
                    maps, at = SceneMemory(), number
                with torch.inference_mode():
                    moved = ready.to(device) if step is None else maps.recall(ready.to(device), step)
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        output = model(moved)
                    if step is not None:
                        maps.keep(step, output.bev)
                    found = model.decode(output)
                wanted = [True] * len(rows) if step is None else step.wanted
                kept = [pair for pair, wants in zip(zip(rows, found, strict=True), wanted, strict=True) if wants]
                yield Portion([row for row, _ in kept], [one for _, one in kept])
    finally:
        for part, mode in modes.items():
            part.training = mode


def stream_over_ranks(
    model: Detector,
    store: FrameStore,
    rows: Sequence[int],
    deliver: Callable[[Portion], None],
    ranks: Ranks,
    *,
    batch: int = 4,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Every rank predicts its consecutive part of the rows; rank 0 gets each portion, soon after it was made.

    All ranks call it, with the same rows. Whole batches (of temporal models: of scenes) are dealt out, so that a
    frame's batch, and its answer to the last bit, does not depend on the number of ranks. deliver: called on rank 0
    alone, portions of a rank in order, those of different ranks in turns. An error on one rank, `deliver`'s too, is
    raised on all of them. stop: asked between batches; where it is true on any rank all of them end early, and False is
    returned.
    """
    work = work_of(model, store, rows, batch)
    parts = [rank_part(len(work.units), rank, ranks.world) for rank in range(ranks.world)]
    own = [range(part.first, part.first + part.size) for part in parts]
    longest = max(sum(len(work.units[number]) for number in units) for units in own)
    portions = stream(model, work, own[ranks.rank], precision=precision, stop=stop)
    failed: Exception | None = None
    done = 0
    with contextlib.closing(portions):
        for _ in range(math.ceil(longest / ROUND)):
            ready: list[Portion] = []
            try:
                if failed is None:
                    ready = [portion for _, portion in zip(range(ROUND), portions, strict=False)]
            except LeavingError:
                pass  # told below: a read that hangs does not keep a run from stopping
            except Exception as error:
                failed = error
            gathered = _gathered(ready, ranks, failed, stop is not None and stop())
            if gathered is None:
                return False
            for portion in gathered:
                try:
                    if failed is None:
                        deliver(portion)
                except Exception as error:
                    failed = error
                done += len(portion.rows)
            if progress is not None and ranks.rank == 0:
                progress(done, len(rows))
        _gathered([], ranks, failed)
    return True


def _gathered(
    ready: Sequence[Portion], ranks: Ranks, failed: Exception | None, stop: bool = False
) -> list[Portion] | None:
    """The portions of all ranks on rank 0, none on the others; None where a rank was asked to stop. Raises where one
    failed."""
    rows = [row for portion in ready for row in portion.rows]
    found = [one for portion in ready for one in portion.detections]
    gathered = gather(ranks, rows, found, failed is not None, stop)
    if gathered.failed:
        ranks.raise_all(failed)
    return None if gathered.stopped else [Portion(rows, found) for rows, found in gathered.parts if rows]


def _shown(bar: Bar) -> Progress:
    return lambda done, total: bar.update(done, "frames")
