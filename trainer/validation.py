"""Validation while a run goes on: the student on frames of the val split, every so many steps, and its best weights.

Predicting takes the ranks' time; the metric, in a thread of rank 0, does not, nor does writing `best.safetensors`. The
student looked at is a copy with the averaged weights where the run has those: batches, random states, norms and losses
of the training are as without. Costs a second copy of the weights, and the boxes of the frames looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cache.errors import ConfigError, DataError, StoreError
from cache.files import digest_of
from cache.store import FrameStore
from evaluation.metrics import Metrics
from models.build import build_detector, read_metadata, save_weights
from models.detector import Detector
from trainer.batches import moments_before
from trainer.checkpoint import Training
from trainer.distributed import ALONE, Ranks
from trainer.metrics import VALIDATION, read_validations
from trainer.observer import Found
from trainer.plan import Plan
from trainer.predict import Portion, stream_over_ranks
from trainer.predict_work import work_of
from trainer.recipe import TrainConfig
from trainer.run_files import BEST, METRICS
from trainer.scoring_thread import ScoringThread

VAL_SPLITS = ("val", "mini_val")
BATCH = 4  # as `evaluate` has it, so that its figures of the best weights are these


# Given the student, the steps done and the rows validated, looks at a few frames and returns what is left to do, which
# the thread does.
Look = Callable[[Detector, int, Sequence[int]], Callable[[], None]]


def validation_rows(store: FrameStore, config: TrainConfig, whole_scenes: bool) -> list[int]:
    """The annotated key frames that are looked at: all of the split, or about `validate_frames` spread evenly over it.

    whole_scenes: whole scenes, as a model with memory must go through them anyway. Raises ConfigError where the store
    has no such split, StoreError where none of its frames has annotations.
    """
    splits = sorted({scene.split for scene in store.manifest.scenes})
    split = config.validate_split or next((name for name in VAL_SPLITS if name in splits), "")
    if split not in splits:
        wanted = f"no split {split!r}" if split else f"no split {' or '.join(VAL_SPLITS)}"
        raise ConfigError(
            f"{store.root}: {wanted} to validate on, it has {', '.join(splits)}; set [train] validate_split to one of "
            "them, or validate_every = 0"
        )
    rows = [row for row in store.key_rows(split) if store.is_labelled(row)]
    if not rows:
        raise StoreError(
            f"{store.root}: split {split!r} has no annotated key frame to validate on; set [train] validate_split to "
            "another, or validate_every = 0"
        )
    limit = config.validate_frames
    if not limit or limit >= len(rows):
        return rows
    if not whole_scenes:
        return [rows[i] for i in _spread(len(rows), limit)]
    scenes: dict[int, list[int]] = {}
    for row in rows:
        scenes.setdefault(int(store.index.scene[row]), []).append(row)
    count = max(1, round(limit * len(scenes) / len(rows)))
    members = list(scenes.values())
    return [row for i in _spread(len(members), count) for row in members[i]]


def validation_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Every how many steps a run validates; 0: never."""
    return config.validate_every * (steps_per_epoch if config.validate_unit == "epochs" else 1)


def _spread(count: int, chosen: int) -> list[int]:
    """`chosen` of `count` numbers, evenly: the middles of as many equal parts."""
    return [(2 * i + 1) * count // (2 * chosen) for i in range(chosen)]


class Validator:
    """Of one run, on every rank. Raises ConfigError or StoreError, before any training, for a split that can't serve.

    look: on rank 0, see `Look`. Not to be shared between threads.
    """

    def __init__(
        self, plan: Plan, run_dir: Path, device: torch.device, ranks: Ranks = ALONE, look: Look | None = None
    ) -> None:
        config = plan.recipe.train
        self._plan, self._path, self._ranks, self._look = plan, run_dir / BEST, ranks, look
        self.every = validation_steps(config, plan.run_order.steps_per_epoch)
        with torch.random.fork_rng():
            self._model = build_detector(plan.recipe.model)
        cast(nn.Module, self._model).to(device).eval()
        self.rows = validation_rows(plan.frames, config, moments_before(self._model) > 0)
        work_of(self._model, plan.frames, self.rows, BATCH)  # that images or clouds are missing is told now
        self._rows_digest = digest_of(self.rows)[:16]
        self._best = float("-inf")
        self._known: set[int] = set()
        self._at_work: ScoringThread | None = None
        self._found: list[Found] = []

    def begin(self) -> None:
        """Takes up what an earlier call knew: the best so far."""
        known = read_validations(self._path.parent / METRICS) if self._ranks.rank == 0 else []
        self._best = self._to_beat(known) if self._ranks.rank == 0 else float("-inf")
        self._known = {line["step"] for line in known}
        for left in self._path.parent.glob(f"{BEST}.*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)

    def _to_beat(self, known: Sequence[Mapping[str, Any]]) -> float:
        """The figure of the weights that are kept, by the present `best_by`; where the log does not know their step,
        which comes again, the best that it knows. Nothing where none are kept, or they were chosen on other frames."""
        lowest = float("-inf")
        try:
            kept = read_metadata(self._path) if self._path.is_file() else {}
            chosen, step = json.loads(kept.get("validation", "{}")), int(kept.get("step", "-1"))
        except (DataError, ValueError):  # damaged: to be written anew
            return lowest
        if chosen.get("frames") != len(self.rows) or chosen.get("rows", self._rows_digest) != self._rows_digest:
            return lowest
        best_by = f"{VALIDATION}{self._plan.recipe.train.best_by}"
        figures = {int(line["step"]): float(line.get(best_by, lowest)) for line in known}
        return figures.get(step, max(figures.values(), default=lowest))

    def due(self, done: int) -> bool:
        """Whether to validate after `done` steps: every so many, and after the last one."""
        return done % self.every == 0 or done == self._plan.steps

    def owed(self, done: int) -> bool:
        """Whether the validation after `done` steps was due and is not in the log: the run was killed too early. On
        rank 0; the others are told."""
        owes = done > 0 and self.due(done) and self._ranks.rank == 0 and done not in self._known
        return self._ranks.broadcast(bytes([owes])) == b"\1"

    def start(self, training: Training, done: int, stop: Callable[[], bool] | None = None) -> float:
        """Predicts, with all ranks; returns its seconds. The figures come out of `found` later, on rank 0.

        stop: whether this rank was asked to stop; then all ranks give the validation up, and the run that goes on owes
        it. Raises what `trainer.predict.stream_over_ranks` raises, on every rank.
        """
        begun = time.perf_counter()
        self._settle()
        state = training.average.tensors if training.average is not None else training.model.state_dict()
        self._model.load_state_dict(state)
        rank_0 = self._ranks.rank == 0
        scoring = ScoringThread(self._plan.frames, self.rows, done, self._keeper(done)) if rank_0 else None
        deliver = scoring.add if scoring else _nothing
        after = None
        try:
            whole = stream_over_ranks(
                self._model, self._plan.frames, self.rows, deliver, self._ranks, batch=BATCH, stop=stop
            )
            if whole and scoring and self._look:
                after = self._look(self._model, done, self.rows)
        except BaseException:
            if scoring:
                scoring.cancel()
            raise
        if scoring and not whole:
            scoring.cancel()
        seconds = time.perf_counter() - begun
        if scoring and whole:
            scoring.close(seconds, after)
            self._at_work = scoring
        return seconds

    def found(self, wait: bool = False) -> list[Found]:
        """What validations have found since the last call; wait: for the one at work too. Raises OutOfSpaceError, or
        whatever else kept the best weights from being written."""
        if self._at_work is not None and (wait or self._at_work.ended):
            self._settle()
        out, self._found = self._found, []
        return out

    def close(self) -> None:
        """Ends the thread, whatever it was at."""
        if self._at_work is not None:
            self._at_work.cancel()
            self._at_work = None

    def _settle(self) -> None:
        if self._at_work is not None:
            scoring, self._at_work = self._at_work, None
            self._found.append(scoring.result())

    def _keeper(self, done: int) -> Callable[[Metrics], bool]:
        """Writes the weights if figures are the best so far, and says whether they are."""
        recipe = self._plan.recipe

        def keep(metrics: Metrics) -> bool:
            value = getattr(metrics, recipe.train.best_by)
            if not value > self._best:  # NaN is never the best
                return False
            metadata = {
                "recipe": recipe.name,
                "recipe_digest": recipe.digest,
                "step": str(done),
                "validation": json.dumps(
                    {"mAP": metrics.mAP, "NDS": metrics.NDS, "frames": len(self.rows), "rows": self._rows_digest}
                ),
                **{f"store:{k}": v for k, v in self._plan.manifests().items()},
            }
            save_weights(self._model, self._path, metadata)
            self._best = value
            return True

        return keep


def _nothing(portion: Portion) -> None:
    pass
