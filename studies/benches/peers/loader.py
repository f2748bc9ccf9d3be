"""torch's DataLoader as every peer here uses it: worker processes that stay from epoch to epoch, two batches ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from studies.benches.stream_batch import Batch, Setting, collate, decoded
from studies.benches.stream_contender import Epoch


def decoder(setting: Setting) -> Any:
    """A picklable sample -> sample with pictures."""
    return partial(decoded, setting=setting)


def collator(setting: Setting) -> Any:
    """A picklable list of samples -> batch."""
    return partial(collate, setting=setting)


def loader_options(setting: Setting) -> dict[str, Any]:
    """Worker count of the setting. Persistent workers: with new ones every epoch begins with forking them."""
    return {"num_workers": setting.workers, "persistent_workers": True, "prefetch_factor": 2}


@contextlib.contextmanager
def epochs_of(loader: DataLoader[Batch]) -> Iterator[Epoch]:
    """Whole epochs of a loader; its workers end with the context."""

    def epoch(number: int) -> Iterator[Batch]:
        return iter(loader)

    try:
        yield epoch
    finally:
        workers = loader._iterator
        loader._iterator = None
        if workers is not None:
            workers._shutdown_workers()  # type: ignore[attr-defined]
