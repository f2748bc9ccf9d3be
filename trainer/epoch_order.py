"""One epoch: which frames its list holds, and in which order they come, under a run's options.

The list is every labelled frame, or the class-balanced draw of them, and the epoch's share of unlabelled ones; the
order is global or keeps shards together. Under default options it is `trainer.order.epoch_list`'s, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from cache.files import digest_of, sha256
from cache.store import FrameStore
from models.config import Config
from trainer.balance import balanced_list
from trainer.blocks import BlockOrder, block_offsets
from trainer.order import epoch_order, unlabelled_draw


class OrderConfig(Config):
    """shuffle: `global`, or `blocks`, which keeps shards together; block_frames: at most so many frames a block, 0 for
    whole shards; window: blocks shuffled among each other, and so shards open at a time; balance: `cbgs` draws for
    every class equally often; drop_last: leave out an epoch's short last batch.
    """

    shuffle: Literal["global", "blocks"] = "global"
    block_frames: int = Field(default=0, ge=0)
    window: int = Field(default=8, ge=1)
    balance: Literal["none", "cbgs"] = "none"
    drop_last: bool = False


@dataclass(frozen=True)
class Frames:
    """The frames that epochs are made of, by position: the labelled ones first, `labelled` of them, then the others, of
    which an epoch draws `drawn`.

    shard (N,): where each lies; class_counts (N, classes): boxes it shows; digest: of what fixes the list.
    """

    labelled: int
    drawn: int
    shard: np.ndarray
    class_counts: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.shard)

    @classmethod
    def of(
        cls, store: FrameStore, rows: Sequence[int], labelled: int, drawn: int, manifests: Mapping[str, str]
    ) -> Frames:
        """The frames `rows` of a store, as `trainer.plan.Plan` has them; manifests: digest of each store that the run
        reads. From the index alone."""
        at = np.asarray(rows, np.int64)
        digest = digest_of(
            {"stores": dict(manifests), "rows": sha256(at.astype("<i8").tobytes()), "labelled": labelled}
        )
        return cls(labelled, drawn, np.asarray(store.index.shard)[at], np.asarray(store.index.class_counts)[at], digest)


class EpochOrder:
    """One epoch's entries in the order in which they are used, any slice of it."""

    def __init__(self, frames: Frames, config: OrderConfig, seed: int, epoch: int) -> None:
        others = frames.labelled + unlabelled_draw(seed, epoch, len(frames) - frames.labelled, frames.drawn)
        balanced = config.balance == "cbgs"
        labelled = (
            balanced_list(frames.class_counts[: frames.labelled], seed, epoch)
            if balanced
            else np.arange(frames.labelled)
        )
        listed = np.concatenate([labelled, others])
        keys = np.arange(len(listed)) if balanced else listed
        self._blocks: BlockOrder | None = None
        if config.shuffle == "blocks":
            together = np.lexsort((listed, frames.shard[listed]))  # by shard, in the order in which it holds them
            listed, keys = listed[together], keys[together]
            offsets = block_offsets(frames.shard[listed], config.block_frames)
            self._blocks = BlockOrder(offsets, config.window, seed, epoch)
        else:
            order = epoch_order(seed, epoch, len(listed))
            listed, keys = listed[order], keys[order]
        self._listed, self._keys = listed, keys if balanced else listed

    def __len__(self) -> int:
        return len(self._listed)

    def slice(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Entries start .. stop, fewer at the end, and their keys; (n,) int64 each."""
        at = slice(start, stop) if self._blocks is None else self._blocks.entries(start, stop)
        return self._listed[at], self._keys[at]
