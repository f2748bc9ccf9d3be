"""mosaicml-streaming: MDS shards through StreamingDataset.

By its documentation: shards of the default size ("Helpful Tips": 50 to 100 MB work well); arrays in the ndarray
encoding with a fixed dtype ("Dataset Format"); for data that lies locally only `local` is given ("Using locally
available datasets"); `batch_size` is passed to data set and loader, and workers persist ("FAQs and Tips"); everything
else is left at its default ("Performance Tuning"): shuffle algorithm py1e, predownload of 8 batches.

`import streaming` fails beside a torch without CUDA: it imports the torchvision data sets, and torchvision has no build
for that torch. What is measured lies in `streaming.base`, which needs no torchvision, so the package is entered there;
nothing of it is replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studies.benches.peers.loader import collator, decoder, epochs_of, loader_options
from studies.benches.stream_batch import Sample, Setting
from studies.benches.stream_contender import Epoch


class MosaicStreaming:
    """StreamingDataset + StreamingDataLoader over MDS shards."""

    name = "mosaicml-streaming"
    package = "streaming"

    def write(self, folder: Path, samples: Iterable[Sample], setting: Setting) -> None:
        """One column a field: JPEGs as bytes, arrays as ndarray:<dtype>."""
        base = _streaming_base()
        writer = None
        for sample in samples:
            writer = writer or base.MDSWriter(
                out=str(folder), columns={name: _encoding(value) for name, value in sample.items()}, progress_bar=False
            )
            writer.write(dict(sample))
        if writer is not None:
            writer.finish()

    @contextlib.contextmanager
    def open(self, folder: Path, setting: Setting) -> Iterator[Epoch]:
        """A local, shuffled StreamingDataset; its shared memory is freed with the context."""
        base = _streaming_base()
        data = _decoding(base.StreamingDataset)(
            local=str(folder), shuffle=True, batch_size=setting.batch, decode=decoder(setting)
        )
        loader = base.StreamingDataLoader(
            data, batch_size=setting.batch, collate_fn=collator(setting), **loader_options(setting)
        )
        try:
            with epochs_of(loader) as epoch:
                yield epoch
        finally:
            del loader, data
            importlib.import_module("streaming.base.util").clean_stale_shared_memory()


def _streaming_base() -> Any:
    """The module `streaming.base`, imported without what `streaming/__init__.py` imports beside it."""
    if "streaming" not in sys.modules:
        spec = find_spec("streaming")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("mosaicml-streaming is not installed")
        package = types.ModuleType("streaming")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["streaming"] = package
    return importlib.import_module("streaming.base")


def _encoding(value: Any) -> str:
    if isinstance(value, bytes):
        return "bytes"
    return "int" if isinstance(value, int) else f"ndarray:{value.dtype.name}"


def _decoding(base: type[Any]) -> type[Any]:
    """A data set that transforms its samples in __getitem__, as the documentation's CIFAR-10 guide does."""

    class Decoding(base):
        def __init__(self, *, decode: Any, **options: Any) -> None:
            super().__init__(**options)
            self.decode = decode

        def __getitem__(self, at: Any) -> Any:
            return self.decode(super().__getitem__(at))

    return Decoding
