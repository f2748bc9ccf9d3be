"""What a foreign file says of its own making: classes, voxels, range and version, from the metadata of mmdetection3d.

OpenPCDet's files say nothing. Nothing here trusts what is told: it is compared with what a model is built with.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from cache.errors import ConfigError

OLD_BOXES, NEW_BOXES = "old-boxes", "new-boxes"  # of mmdetection3d before 1.0, and since
GRIDS = {"voxel": "voxels", "pillar": "pillars"}  # where a config has the grid of an encoder


def require_told_grid(config: Mapping[str, Any], encoder: str, meta: Mapping[str, Any], where: str) -> None:
    """ConfigError where the file tells of other voxels or another range than `config` has."""
    grid = config[GRIDS[encoder]]
    z_low, z_high = config["z_range"]
    low_high = (grid["x_min"], grid["y_min"], z_low, grid["x_max"], grid["y_max"], z_high)
    for key, count, expected in (
        ("voxel_size", 3, (grid["cell_m"], grid["cell_m"], config.get("voxel_height_m", z_high - z_low))),
        ("point_cloud_range", 6, low_high),
    ):
        told = told_numbers(meta, key, count)
        if told and any(abs(a - b) > 1e-6 for a, b in zip(told, expected, strict=True)):
            raise ConfigError(
                f"{where}: says {key} = {list(told)}, the model is built with {[float(e) for e in expected]}; name the "
                "preset that it was trained as: --teacher"
            )


def told_classes(meta: Mapping[str, Any]) -> list[str]:
    """The class list of an mmdetection3d file, empty where it has none."""
    nested = meta.get("dataset_meta")
    for place in (nested if isinstance(nested, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = place.get(key)
            if isinstance(names, list | tuple) and names:
                return [str(name) for name in names]
    return []


def told_numbers(meta: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """A list of numbers in the config text of an mmdetection3d file, empty where it says none."""
    for text in (meta.get("cfg"), meta.get("config")):
        for found in re.findall(rf"\b{key}\s*=\s*\[([^\[\]]*)\]", text) if isinstance(text, str) else ():
            parts = [part.strip() for part in found.split(",") if part.strip()]
            with contextlib.suppress(ValueError):  # names or sums in place of numbers tell nothing
                if len(parts) == count:
                    return tuple(float(part) for part in parts)
    return ()
