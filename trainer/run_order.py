"""The whole order of a run: which frames, under which augmentation keys, make up any global step, and a rank's part.

Everything is a function of (options, seed, batch, stores) and the step's number: no rank waits for another to know
its part, and a run starts anywhere at once. Costs at a million frames: `./bevcask bench order`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cache.errors import ConfigError
from cache.files import digest_of
from trainer.balance import balanced_length
from trainer.epoch_order import EpochOrder, Frames, OrderConfig
from trainer.order import steps_per_epoch
from trainer.order_state import OrderState
from trainer.partition import padded, rank_part


@dataclass(frozen=True)
class Step:
    """A global step. entries (b,): positions of `Frames`; keys (b,): what each one's augmentation is drawn from, beside
    seed and epoch: the entry itself, or, where frames may repeat in an epoch, its place in the epoch's list."""

    step: int
    epoch: int
    entries: np.ndarray
    keys: np.ndarray


@dataclass(frozen=True)
class RankStep:
    """A rank's part of a step, at least one entry. weight (n,) float32: 1, or 0 for the one entry of a rank without
    part; first: where in the global batch it begins; batch: how many entries that has."""

    step: int
    epoch: int
    entries: np.ndarray
    keys: np.ndarray
    weight: np.ndarray
    first: int
    batch: int


class RunOrder:
    """Any global step of a run, and any rank's part of it. Safe to share between threads; the last two epochs are kept.

    Raises ConfigError where an epoch would have no step.
    """

    def __init__(self, frames: Frames, config: OrderConfig, seed: int, batch: int) -> None:
        self.frames, self.config, self.seed, self.batch = frames, config, seed, batch
        labelled = frames.labelled
        if config.balance == "cbgs":
            labelled = balanced_length(frames.class_counts[:labelled])
        self.epoch_frames = labelled + frames.drawn
        self.steps_per_epoch = steps_per_epoch(self.epoch_frames, batch, config.drop_last)
        if not self.steps_per_epoch:
            raise ConfigError(
                f"an epoch of {self.epoch_frames} frames has no step of {batch}; lower the batch"
                + (" or set drop_last = false" if config.drop_last else "")
            )
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    @property
    def dropped(self) -> int:
        """Entries of every epoch's list that drop_last leaves out: others in every epoch."""
        return max(self.epoch_frames - self.steps_per_epoch * self.batch, 0)

    def _epoch(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.frames, self.config, self.seed, epoch)

    def step(self, step: int) -> Step:
        """Global step `step`, counted over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        entries, keys = self.epoch(epoch).slice(within * self.batch, (within + 1) * self.batch)
        return Step(step, epoch, entries, keys)

    def rank_step(self, step: int, rank: int, world: int) -> RankStep:
        """Rank `rank`'s part of global step `step`; ConfigError for a rank that there is not."""
        whole = self.step(step)
        own = rank_part(len(whole.entries), rank, world)
        part, weight = padded(own)
        return RankStep(
            step, whole.epoch, part.of(whole.entries), part.of(whole.keys), weight, own.first, len(whole.entries)
        )

    def state(self, step: int) -> OrderState:
        """The state of a run of which `step` steps have reached training."""
        digest = digest_of({"frames": self.frames.digest, "options": self.config.model_dump(mode="json")})
        return OrderState(step, self.seed, self.batch, self.epoch_frames, digest)
