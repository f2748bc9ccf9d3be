"""Coverage: which cells of a BEV field a teacher store keeps, with a weight per cell and selector.

Part of the store's header, so that training can refuse a term that the store cannot serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.errors import ConfigError
from cache.grid import BevGrid
from models.gaussian import foreground_mask

SELECTORS = ("gaussian", "dense")
COARSE_CELL_M = 1.2  # on such cells the literal gaussian is little more than each object's centre cell


@dataclass(frozen=True)
class Coverage:
    """Selectors whose union is stored. gaussian: CornerNet gaussians of the annotated boxes (BEVDistill's mask), radius
    grown by `dilate` cells; dense: every cell, weight 1.
    """

    selectors: tuple[str, ...]
    dilate: int

    @classmethod
    def parse(cls, text: str, dilate: int | None, grid: BevGrid) -> Coverage:
        """From the command line: names joined by commas or plus signs; dilate None means 1 on coarse cells, else 0."""
        names = tuple(name.strip() for name in text.replace("+", ",").split(",") if name.strip())
        unknown = [name for name in names if name not in SELECTORS]
        if unknown or not names or len(set(names)) != len(names):
            raise ConfigError(
                f"--coverage {text!r}: found {list(names)}, expected one or more of {', '.join(SELECTORS)}, each once"
            )
        if dilate is not None and dilate < 0:
            raise ConfigError(f"--dilate {dilate} is negative, expected a number of cells, 0 or more")
        return cls(names, int(grid.cell_m >= COARSE_CELL_M) if dilate is None else dilate)

    def weights(self, boxes_lidar: np.ndarray | None, grid: BevGrid) -> np.ndarray:
        """(S, H, W) float32, one map a selector. boxes_lidar is None on frames without annotations, whose gaussian map
        is zero everywhere."""
        maps = []
        for name in self.selectors:
            if name == "dense":
                maps.append(np.ones(grid.shape, np.float32))
            elif boxes_lidar is None:
                maps.append(np.zeros(grid.shape, np.float32))
            else:
                maps.append(foreground_mask(boxes_lidar, grid, min_radius=1, dilate=self.dilate))
        return np.stack(maps)

    def header(self) -> dict[str, Any]:
        """For the store's header, per kind of frame."""
        unlabelled = [name for name in self.selectors if name == "dense"]
        return {"selectors": list(self.selectors), "dilate_cells": self.dilate, "unlabelled": unlabelled}
