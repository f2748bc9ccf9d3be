"""Detectors by name: presets and configs to models, and weights to and from safetensors.

A weights file carries the full config, the class list and the box convention in its metadata, so that it alone makes
the model again. Nothing here unpickles.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, DataError
from cache.files import write_bytes
from models.bevformer import BevFormer, BevFormerConfig
from models.centerpoint import CenterPoint, CenterPointPillarConfig, CenterPointVoxelConfig
from models.config import Config, parse_config
from models.detector import Detector
from models.imported import KIND as IMPORTED
from models.imported import ImportedConfig, imported_detector, require_trusted
from models.lift_splat import LiftSplat, LiftSplatConfig
from models.object_dgcnn import ObjectDgcnn, ObjectDgcnnPillarConfig, ObjectDgcnnVoxelConfig

PRESETS = Path(__file__).parent / "presets"
TOLD_KEYS = 3  # that a config may differ in from a preset, each told
BOX_CONVENTION = "x,y,z(gravity centre),l,w,h,yaw(counter-clockwise from +x),vx,vy; canonical frame"

# Everything is one string under one key: safetensors writes several keys in random order, and equal models must give
# equal files.
METADATA_KEY = "bevcask"

_TRAINED = "give a checkpoint written by `train`"

KINDS: dict[str, tuple[type[Config], Callable[[Any], torch.nn.Module]]] = {
    "bevformer": (BevFormerConfig, BevFormer),
    "centerpoint-pillar": (CenterPointPillarConfig, CenterPoint),
    "centerpoint-voxel": (CenterPointVoxelConfig, CenterPoint),
    IMPORTED: (ImportedConfig, imported_detector),
    "lift-splat": (LiftSplatConfig, LiftSplat),
    "object-dgcnn-pillar": (ObjectDgcnnPillarConfig, ObjectDgcnn),
    "object-dgcnn-voxel": (ObjectDgcnnVoxelConfig, ObjectDgcnn),
}


def preset_names() -> list[str]:
    """The presets that ship."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str) -> dict[str, Any]:
    """The config of a shipped preset, laid over that of the `preset` it names, if it names one.

    Raises ConfigError naming those there are.
    """
    if name not in preset_names():
        raise ConfigError(f"model preset {name!r} is unknown; the presets are {', '.join(preset_names())}")
    values = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    base = values.pop("preset", None)
    return values if base is None else _overlay(load_preset(base), values)


def resolve_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A full, checked config: where it names a `preset`, that one with the other keys laid over it, tables key by key;
    where it names a `callable`, that and its options.

    Raises ConfigError naming an unknown key and the allowed ones.
    """
    values = dict(config)
    preset = values.pop("preset", None)
    if preset is not None:
        values = _overlay(load_preset(str(preset)), values)
    where = f"model preset {preset!r}" if preset else "model config"
    if "callable" in values:
        values.setdefault("kind", IMPORTED)
    kind = values.get("kind")
    if kind not in KINDS:
        known = f"{' or '.join(KINDS)}; or name a preset: {', '.join(preset_names())}"
        raise ConfigError(f"{where}: kind {kind!r} is unknown, expected {known}")
    return parse_config(KINDS[kind][0], values, where).model_dump(mode="json")


def told_preset(config: Mapping[str, Any]) -> str:
    """In words, which preset a full config is of: the one of its kind that it differs least from, and by which keys."""
    mine, found = _leaves(config), []
    for name in preset_names():
        preset = load_preset(name)
        if preset["kind"] == config.get("kind"):
            theirs = _leaves(resolve_config(preset))
            other = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
            found.append((len(other), name, other))
    if not found:
        return f"kind {config.get('kind')}"
    count, name, other = min(found)
    few = ", ".join(f"{key} = {mine.get(key)}" for key in other)
    return f"preset {name}" + (f" with {few if count <= TOLD_KEYS else f'{count} other keys'}" if count else "")


def build_detector(config: Mapping[str, Any]) -> Detector:
    """A detector with fresh weights (torch's global random state) of a config, or of {"preset": name, overrides...}.

    Convolution weights are channels-last: 1.3 to 2 times as fast in bf16 on CPU, and no slower elsewhere.
    """
    resolved = resolve_config(config)
    config_class, detector_class = KINDS[resolved["kind"]]
    model = detector_class(parse_config(config_class, resolved, "model config"))
    for parameter in model.parameters():
        if parameter.dim() == 4:  # Module.to would also try the 5 dimensions of sparse convolutions, and fail
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return cast(Detector, model)


def save_weights(model: Detector, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """`model` as safetensors at `path`, atomically: parameters, buffers, config, classes and box convention.

    metadata: further strings, such as the recipe's digest; reserved names raise ConfigError.
    """
    own = {
        "format": "bevcask-detector-1",
        "config": json.dumps(model.config, sort_keys=True),
        "classes": json.dumps(DETECTION_CLASSES),
        "box_convention": BOX_CONVENTION,
    }
    extra = dict(metadata or {})
    if taken := sorted(set(extra) & set(own)):
        raise ConfigError(f"{path}: metadata keys {taken} are written by save_weights itself; choose other names")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(path, save_tensors(tensors, {METADATA_KEY: json.dumps({**extra, **own}, sort_keys=True)}))


def read_metadata(path: Path) -> dict[str, str]:
    """What `save_weights` wrote beside the tensors; empty for a foreign file.

    Raises DataError where the file is missing or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: not readable as a safetensors file ({error}); {_TRAINED}") from None
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def load_weights(path: Path, trusted: str = "") -> Detector:
    """The detector that `save_weights` wrote, in evaluation mode. trusted: the callable, package.module:callable, that
    may be run where the file is of one. Raises DataError naming what does not fit, ConfigError for another callable."""
    metadata = read_metadata(path)
    missing = {"config", "classes", "box_convention"} - set(metadata)
    if missing:
        raise DataError(f"{path}: its metadata lacks {sorted(missing)}; it is not a detector written by `train`")
    for key, expected in (("classes", json.dumps(DETECTION_CLASSES)), ("box_convention", BOX_CONVENTION)):
        if metadata[key] != expected:
            raise DataError(f"{path}: {key} is {metadata[key]}, this version reads {expected}; convert the checkpoint")
    config = _config_in(path, metadata["config"])
    require_trusted(str(path), config, trusted)
    model = build_detector(config)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    load_state(model, tensors, str(path))
    for name, parameter in cast(torch.nn.Module, model).named_parameters():  # buffers may hold infinities on purpose
        if not torch.isfinite(parameter).all():
            raise DataError(
                f"{path}: tensor {name} of {told_preset(config)} holds NaN or infinite values; its training diverged, "
                "take another checkpoint"
            )
    return cast(Detector, model.eval())


def _config_in(path: Path, text: str) -> dict[str, Any]:
    """The detector's config of a file's metadata. DataError, naming the file, where it is none or of none that there
    is."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: the config in its metadata is no JSON ({error}); {_TRAINED}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: the config in its metadata is {text[:60]!r}, expected a table; {_TRAINED}")
    if config.get("kind") not in KINDS:
        raise DataError(f"{path}: its config is of kind {config.get('kind')!r}, known: {', '.join(KINDS)}; {_TRAINED}")
    return config


def load_state(model: Detector, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copies `tensors` into `model`; every name and shape must fit. Raises DataError naming the first that does not."""
    expected = model.state_dict()
    for name in sorted(set(expected) | set(tensors)):
        found = f"{where}: tensor {name} has shape {tuple(tensors[name].shape)}" if name in tensors else ""
        if found and name in expected and tensors[name].shape == expected[name].shape:
            continue
        ours = told_preset(model.config)
        if not found:
            raise DataError(
                f"{where}: tensor {name} {tuple(expected[name].shape)} of {ours} is missing; it is of another model"
            )
        if name not in expected:
            raise DataError(f"{found}, and {ours} has no such tensor; the file is of another model")
        raise DataError(
            f"{found}, {ours} has {tuple(expected[name].shape)}; load it with the config it was trained with"
        )
    model.load_state_dict(tensors)


def _leaves(config: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything that is no table."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= _leaves(value, f"{under}{key}.") if isinstance(value, Mapping) else {f"{under}{key}": value}
    return out


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, tables merged, all else replaced."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = _overlay(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return out
