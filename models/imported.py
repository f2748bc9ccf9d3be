"""Students of one's own: a detector that a callable named by import path makes, `package.module:callable`.

A recipe's `[model] callable = "..."` names it, with `options` that are its keyword arguments. It returns a
`torch.nn.Module` that speaks `models.detector.Detector`; docs/integrate.md has a whole one. Code is run only because a
person's recipe or command names it: a weights file that names a callable is not loaded by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn

from cache.errors import BevcaskError, ConfigError
from cache.grid import BevGrid
from models.config import Config
from models.import_path import IMPORT_PATH, import_callable, one_line

KIND = "imported"
_PARTS: dict[str, tuple[type, str]] = {
    "grid": (BevGrid, "the cache.grid.BevGrid of its map"),
    "modality": (str, "'lidar' or 'camera'"),
    "bev_channels": (int, "the channels of its map"),
    "config": (dict, "its settings; a camera model's image_size (width, height) among them"),
    "levels": (Mapping, "its further maps by name, may be empty"),
    "heat_classes": (tuple, "the class of each channel of its heatmaps, may be empty"),
    "gives": (frozenset, "the attributes of DetectorOutput that it fills, such as bev and heads"),
}


class ImportedConfig(Config):
    """callable: its import path; options: its keyword arguments; image_size: what the detector said it reads."""

    kind: Literal["imported"]
    callable: str = Field(pattern=f"^{IMPORT_PATH}$")
    options: dict[str, Any] = Field(default_factory=dict)
    image_size: tuple[int, int] | None = None


def imported_detector(config: ImportedConfig) -> nn.Module:
    """The callable's detector. ConfigError, one line, where it cannot be had or lacks a part of the protocol."""
    where = f"[model] callable {config.callable}"
    build = import_callable(config.callable, where)
    try:
        model = build(**config.options)
    except BevcaskError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: it raised {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{where}: it returned a {type(model).__name__}, expected a torch.nn.Module")
    lacking = [f"{part} ({what})" for part, (kind, what) in _PARTS.items() if not isinstance(_of(model, part), kind)]
    lacking += [method for method in ("loss_parts", "decode") if not callable(_of(model, method))]
    if lacking:
        raise ConfigError(
            f"{where}: its {type(model).__name__} lacks {', '.join(lacking)}; a student is a models.detector.Detector, "
            "see docs/integrate.md"
        )
    found: Any = model
    size = found.config.get("image_size")
    found.config = config.model_dump(mode="json") | ({"image_size": list(size)} if size is not None else {})
    return model


def require_trusted(where: str, config: Mapping[str, Any], trusted: str) -> None:
    """ConfigError for a weights file of a callable other than the one that the caller trusts to run here."""
    if config.get("kind") == KIND and config.get("callable") != trusted:
        raise ConfigError(
            f"{where}: says that the callable {config.get('callable')} made it; if you trust that module to run here, "
            f"`evaluate --callable {config.get('callable')}` runs it"
        )


def _of(model: nn.Module, part: str) -> Any:
    return getattr(model, part, None)
