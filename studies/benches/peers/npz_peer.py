"""One .npz file a frame behind a map-style data set: what most people write first.

Not compressed, as numpy's `savez` leaves it: SPDL's documentation measures what zlib costs and advises against it.
`shuffle=True` and a collate function are what torch's data page (pytorch.org/docs/stable/data.html) shows for map-style
data sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from studies.benches.peers.loader import collator, decoder, epochs_of, loader_options
from studies.benches.stream_batch import Sample, Setting
from studies.benches.stream_contender import Epoch


class NpzLoader:
    """npz files + DataLoader."""

    name = "npz"
    package = ""

    def write(self, folder: Path, samples: Iterable[Sample], setting: Setting) -> None:
        """<folder>/<frame>.npz; JPEGs as uint8 arrays."""
        folder.mkdir(parents=True)
        for sample in samples:
            arrays = {
                name: np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
                for name, value in sample.items()
            }
            np.savez(folder / f"{sample['frame']:06d}.npz", **arrays)

    def open(self, folder: Path, setting: Setting) -> AbstractContextManager[Epoch]:
        """A shuffled DataLoader over the files."""
        files: Dataset[Any] = _Files(sorted(folder.glob("*.npz")), decoder(setting))
        return epochs_of(
            DataLoader(
                files,
                batch_size=setting.batch,
                shuffle=True,
                collate_fn=collator(setting),
                **loader_options(setting),
            )
        )


class _Files(Dataset[dict[str, np.ndarray]]):
    def __init__(self, paths: list[Path], decode: Any) -> None:
        self._paths = [str(path) for path in paths]
        self._decode = decode

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        with np.load(self._paths[index]) as stored:
            return self._decode(dict(stored))
