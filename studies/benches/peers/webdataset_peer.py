"""Stock webdataset: tar shards, shuffled by shard and by a buffer, decoded and batched in the workers.

By webdataset's page "Sharding, Parallel I/O, and DataLoader" and its FAQ: shards are shuffled, and a buffer of 100
samples shuffles their content before it is decoded (#439); batches are made in the workers (`batched`) and the
DataLoader has `batch_size=None`; there are several shards a worker, so that each has its share of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from studies.benches.peers.loader import collator, decoder, epochs_of, loader_options
from studies.benches.stream_batch import Sample, Setting
from studies.benches.stream_contender import Epoch

SHARDS = 16
SHUFFLE = 100


class WebDatasetLoader:
    """WebDataset + DataLoader."""

    name = "webdataset"
    package = ""

    def write(self, folder: Path, samples: Iterable[Sample], setting: Setting) -> None:
        """Tar shards of equal length; arrays as .npy, pictures as .jpg, in one frame's members."""
        from webdataset import ShardWriter

        folder.mkdir(parents=True)
        length = -(-setting.frames // SHARDS)
        with ShardWriter(f"{folder}/%05d.tar", maxcount=length, maxsize=1e12, verbose=0) as writer:
            for sample in samples:
                members: dict[str, Any] = {"__key__": f"{sample['frame']:06d}"}
                for name, value in sample.items():
                    if isinstance(value, bytes):
                        members[f"{name}.jpg"] = value
                    elif name != "frame":
                        members[f"{name}.npy"] = _npy(value)
                writer.write(members)

    def open(self, folder: Path, setting: Setting) -> AbstractContextManager[Epoch]:
        """The pipeline of the documentation's own examples."""
        from webdataset import WebDataset

        shards = [str(path) for path in sorted(folder.glob("*.tar"))]
        data = (
            WebDataset(shards, shardshuffle=len(shards))
            .shuffle(SHUFFLE)
            .decode()  # .npy members become arrays; pictures stay bytes for the common decoder
            .map(_named)
            .map(decoder(setting))
            .batched(setting.batch, collation_fn=collator(setting))
        )
        return epochs_of(DataLoader(data, batch_size=None, **loader_options(setting)))


def _named(sample: dict[str, Any]) -> dict[str, Any]:
    """`bev_index.npy` -> `bev_index`; the key is the frame's number."""
    out = {key.partition(".")[0]: value for key, value in sample.items() if not key.startswith("__")}
    return out | {"frame": int(sample["__key__"])}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()
