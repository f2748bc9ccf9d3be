"""Foreign checkpoint files as named tensors and what the file says of itself. Nothing in a file is ever run.

torch's restricted unpickler builds tensors and plain containers only. Training checkpoints also hold a few harmless
objects (log buffers, numpy numbers, parsed arguments): by exact name these become placeholders that keep nothing. Any
other name stops the reading, and is named.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache.errors import DataError

TORCH_MAGIC = (b"PK\x03\x04", b"\x80")  # a zip of today's torch.save, a bare pickle of torch before 1.6

MAX_PROTOCOL = 3  # of pickles: torch's restricted unpickler does not know the later ones' ways to name things
SAVE_AGAIN = "save its state dict alone where it was made: torch.save(model.state_dict(), file)"

# `getattr` is how a pickle says "a method of a class"; its placeholder looks nothing up, and cannot be called.
INERT = (
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.dtypes.{name}DType" for name in ("Bool", "Int32", "Int64", "UInt8", "UInt32", "Float32", "Float64")),
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
)
INERT_DICTS = (
    "addict.addict.Dict",
    "easydict.EasyDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
)


class Inert:
    """Stands for an object that is no weight: takes any arguments and any state, keeps none."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by their names in the foreign network; meta: what the file says of its making, maybe nothing."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as those of torch.save do. DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error}); give a checkpoint file") from None
    # safetensors begins with its header's length, which one time in 32 begins as a pickle does, and then the header
    return head.startswith(TORCH_MAGIC) and head[8:] != b"{"


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights of a file of torch.save or safetensors, on the CPU. Raises DataError with the reason."""
    if not is_torch_file(path):
        return _read_safetensors(path)
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a dict with a state dict in it")
    weights = next((content[key] for key in ("model_state", "state_dict") if key in content), content)
    meta = content.get("meta")
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        keys = ", ".join(str(key) for key in list(content)[:8])
        raise DataError(f"{path}: no weights under model_state or state_dict; its keys are {keys}")
    odd = [str(name) for name, value in weights.items() if not isinstance(name, str) or not _is_plain(value)]
    if odd:
        raise DataError(f"{path}: {odd[0]} and {len(odd) - 1} other entries of the state dict are no plain tensors")
    return Checkpoint(_without_wrapper(weights), dict(meta) if isinstance(meta, Mapping) else {})


def _is_plain(value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return dense and not value.is_quantized and not value.is_complex()


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return Checkpoint(_without_wrapper(tensors), dict(file.metadata() or {}))
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{path}: neither a torch checkpoint nor a safetensors file ({error}); give the file as it was downloaded"
        ) from None


def _read_torch(path: Path) -> Any:
    placeholders: list[Any] = [(Inert, name) for name in INERT]
    placeholders += [(OrderedDict, name) for name in INERT_DICTS]
    try:
        with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocol, which the error below tells
            # The one place that reads what torch wrote; weights_only is what makes it safe.
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # whatever a damaged or hostile file makes of the reader
        protocol = _pickle_protocol(path)
        if protocol > MAX_PROTOCOL:
            raise DataError(
                f"{path}: a pickle of protocol {protocol}, which torch reads only by running what it says; refused. If "
                f"you trust the file, {SAVE_AGAIN}"
            ) from None
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise DataError(f"{path}: not readable as weights ({_last_line(error)}); download it again") from None
        raise DataError(
            f"{path}: holds {wanted[1]}, which is no weight and may run code; refused. If you trust the file, "
            f"{SAVE_AGAIN}"
        ) from None


def _pickle_protocol(path: Path) -> int:
    """Of the pickle that a file is or, as a zip, has in it; 0 where that cannot be told."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as member:
                    head = member.read(2)
        else:
            with path.open("rb") as file:
                head = file.read(2)
    except (OSError, StopIteration, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return 0
    return head[1] if head[:1] == b"\x80" and len(head) == 2 else 0


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


def _without_wrapper(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that data-parallel training puts before all of them."""
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return dict(tensors)
