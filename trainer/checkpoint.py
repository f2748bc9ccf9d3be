"""Checkpoints: everything a run needs to go on exactly, in one safetensors file that is replaced atomically. No pickle.

Tensors are named model.*, terms.*, average.*, optimiser.<parameter>.<state>; the JSON state (order, recipe, stores) and
a checksum of the whole file are in its metadata. 3 or 4 times the size of the weights. Nothing in it depends on the
number of ranks, and there is no generator's state: randomness is a function of the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from cache.differences import first_difference
from cache.errors import CorruptError, FingerprintError
from cache.files import write_bytes
from models.backbone_weights import BackboneLoad
from trainer.initialise import Initialisation
from trainer.objective import Objective
from trainer.optimiser import Average

FORMAT = "bevcask-checkpoint-2"
_UNKNOWN, _MARK = "00000000", b'"crc32c":"%s"'


@dataclass(frozen=True)
class Training:
    """All that changes in a run."""

    objective: Objective
    optimiser: torch.optim.Optimizer
    average: Average | None
    backbone: BackboneLoad | None = None  # what the run began from, not part of its state
    began: Initialisation | None = None  # likewise

    @property
    def model(self) -> nn.Module:
        """The student, a `models.detector.Detector`."""
        return self.objective.model

    @property
    def terms(self) -> nn.ModuleDict:
        return self.objective.terms

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {
            **{f"model.{name}": parameter for name, parameter in self.model.named_parameters()},
            **{f"terms.{name}": parameter for name, parameter in self.terms.named_parameters()},
        }

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name."""
        out = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        out.update({f"terms.{name}": tensor for name, tensor in self.terms.state_dict().items()})
        if self.average is not None:
            out.update({f"average.{name}": tensor for name, tensor in self.average.tensors.items()})
        for name, parameter in self.named_parameters().items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                out[f"optimiser.{name}.{key}"] = value
        return out


def save_checkpoint(path: Path, training: Training, state: Mapping[str, Any]) -> None:
    """Writes the checkpoint; the old one stays until the new one is whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in training.tensors().items()}
    metadata = {"format": FORMAT, "crc32c": _UNKNOWN, "state": json.dumps(state, sort_keys=True)}
    write_bytes(path, _sealed(save_tensors(tensors, metadata)))


def _sealed(data: bytes) -> bytes:
    """The file with its checksum, which is of all its bytes with zeros in the checksum's place."""
    before, mark, after = data.partition(_MARK % _UNKNOWN.encode())
    assert mark
    return before + _MARK % f"{google_crc32c.value(data):08x}".encode() + after


def read_checkpoint(path: Path) -> bytes:
    """A checkpoint's bytes, checked. CorruptError where the file is not one, or not whole."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptError(f"{path}: not a readable checkpoint ({error})") from None
    metadata = _metadata(data, path)
    found = metadata.get("crc32c", _UNKNOWN)
    whole = data.replace(_MARK % found.encode(), _MARK % _UNKNOWN.encode(), 1)
    if f"{google_crc32c.value(whole):08x}" != found:
        raise CorruptError(f"{path}: not a readable checkpoint (its bytes do not match its checksum)")
    return data


def state_of(data: bytes, where: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint's bytes. CorruptError where it has none."""
    return dict(json.loads(_metadata(data, where)["state"]))


def read_state(path: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint. CorruptError where the file is not one."""
    return state_of(read_checkpoint(path), path)


def _metadata(data: bytes, where: Path) -> dict[str, str]:
    """The texts in a safetensors file's header: 8 bytes of its length, then JSON."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}, expected {FORMAT!r}")
        json.loads(metadata["state"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{where}: not a readable checkpoint ({error or 'empty'})") from None
    return dict(metadata)


def require_same_run(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """FingerprintError naming the first value of recipe or stores that differs, with both values."""
    for part in sorted(expected):
        if found.get(part) != expected[part]:
            name, was, now = first_difference(found.get(part), expected[part], part)
            raise FingerprintError(
                f"{path}: the run was begun with {name} = {was}, this call has {now}; resume with the same recipe and "
                "stores, "
                "or choose another run folder"
            )


def restore(path: Path, training: Training, data: bytes | None = None) -> None:
    """Loads a checkpoint into `training`, every tensor of it; data: its bytes, where they are at hand. CorruptError
    where names or shapes are not those expected.
    """
    try:
        tensors = load_tensors(read_checkpoint(path) if data is None else data)
    except SafetensorError as error:
        raise CorruptError(f"{path}: not a readable checkpoint ({error})") from None
    _copy_into(path, "model.", training.model.state_dict(), tensors)
    _copy_into(path, "terms.", training.terms.state_dict(), tensors)
    if training.average is not None:
        _copy_into(path, "average.", training.average.tensors, tensors)
    training.optimiser.state.clear()
    for name, parameter in training.named_parameters().items():
        prefix = f"optimiser.{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for key, value in state.items():
            if value.ndim and value.shape != parameter.shape:
                raise CorruptError(
                    f"{path}: {prefix}{key} has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}"
                )
        if state:
            # as torch keeps it: moments in the parameter's own memory layout, the step count beside them
            training.optimiser.state[parameter] = {
                key: torch.empty_like(parameter).copy_(value) if value.ndim else value.to(parameter.device)
                for key, value in state.items()
            }


@torch.no_grad()
def _copy_into(path: Path, prefix: str, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        value = tensors.get(prefix + name)
        if value is None or value.shape != target.shape:
            found = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise CorruptError(
                f"{path}: {prefix}{name}: found {found}, expected shape {tuple(target.shape)}; train again"
            )
        target.copy_(value)
