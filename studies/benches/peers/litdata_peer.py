"""litdata: chunks written by `optimize`, read through StreamingDataset and StreamingDataLoader.

By its README: `optimize` with chunks of 64 MB and a function that returns a dict of the same keys and types for every
input; numpy arrays and bytes have serializers of their own (pickle is never reached); training reads with
`shuffle=True` through StreamingDataLoader; `transform` is applied to every sample. A local folder is read in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from studies.benches.peers.loader import collator, decoder, epochs_of, loader_options
from studies.benches.stream_batch import Sample, Setting
from studies.benches.stream_contender import Epoch


class LitData:
    """StreamingDataset + StreamingDataLoader over optimized chunks."""

    name = "litdata"
    package = "litdata"

    def write(self, folder: Path, samples: Iterable[Sample], setting: Setting) -> None:
        """One worker process by fork: a spawned one would import the command line again."""
        from litdata import optimize

        held = list(samples)
        optimize(
            fn=partial(_pick, held),
            inputs=list(range(len(held))),
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",
            verbose=False,
        )

    @contextlib.contextmanager
    def open(self, folder: Path, setting: Setting) -> Iterator[Epoch]:
        """A shuffled StreamingDataset over the local folder."""
        from litdata import StreamingDataLoader, StreamingDataset

        data = StreamingDataset(str(folder), shuffle=True, drop_last=False, transform=decoder(setting))
        loader = StreamingDataLoader(
            data, batch_size=setting.batch, collate_fn=collator(setting), **loader_options(setting)
        )
        with epochs_of(loader) as epoch:
            yield epoch


def _pick(samples: list[Sample], index: int) -> dict[str, Any]:
    return dict(samples[index])
