"""Which earlier moments a temporal student is shown with each frame: a pure function of (seed, epoch, key).

Of the last `length + skipped` moments of the frame's scene `skipped` are left out at random, so that a model meets the
past at several distances, as BEVFormer trains (Li et al. 2022: 1). One table of rows for a run; a draw costs 20 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from cache.store import FrameStore
from models.config import Config
from trainer.scene_windows import ABSENT, SceneStart, scene_windows

_PAST = 7  # keeps this stream apart from those that `trainer.order` lists


class PastConfig(Config):
    """Of temporal models; others have no past. skipped: moments left out at random of the last queue - 1 + skipped; 0:
    always the last. spacing: 1 takes each moment before, 2 every other one. moments: which frames may be a past, `key`
    frames or `all`, the unlabelled ones between them too. start: where the scene had not begun, `absent` tells the
    model so (BEVFormer), `repeat` shows the oldest moment there is once more (BEVDistill's release, BEVDet4D).
    """

    skipped: int = Field(default=1, ge=0)
    spacing: int = Field(default=1, ge=1)
    moments: Literal["key", "all"] = "key"
    start: SceneStart = "absent"


def past_draw(seed: int, epoch: int, key: int, length: int, skipped: int) -> np.ndarray:
    """Which `length` of the last length + skipped moments an entry is shown, (length,) int64 rising. Pure."""
    if not skipped:
        return np.arange(length)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_PAST, seed, epoch, key))))
    return np.sort(generator.permutation(length + skipped)[:length])


class Pasts:
    """The `length` moments before each of `rows` of a split's frames. Safe to share between threads."""

    def __init__(
        self, frames: FrameStore, split: str | None, rows: Sequence[int], length: int, config: PastConfig, seed: int = 0
    ) -> None:
        self.length, self.config, self.seed = length, config, seed
        listed = frames.split_rows(split)
        may = np.array([config.moments == "all" or frames.is_keyframe(row) for row in listed], bool)
        every = np.asarray(listed, np.int64)
        windows = scene_windows(
            np.asarray(frames.index.scene)[every],
            np.asarray(frames.index.timestamp_us)[every],
            length + config.skipped,
            spacing=config.spacing,
            start=config.start,
            may_be_past=may,
        )
        own = windows[np.searchsorted(every, np.asarray(rows, np.int64))]  # rows of a split rise
        self._rows = np.where(own == ABSENT, ABSENT, every[own])

    def of(self, entry: int, epoch: int, key: int) -> list[int]:
        """Rows of the moments that the entry is shown in this epoch, oldest first, ABSENT where the scene had not
        begun."""
        drawn = past_draw(self.seed, epoch, key, self.length, self.config.skipped)
        return [int(row) for row in self._rows[entry, drawn]]

    def rows(self) -> list[int]:
        """Every row that may be shown as a past, rising."""
        found = np.unique(self._rows)
        return [int(row) for row in found[found != ABSENT]]
