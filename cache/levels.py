"""A further BEV map of a teacher as a store keeps it: on its own grid, at the cells that the coverage makes there.

A level's cells are whole multiples or whole parts of the feature's. Where it is coarser, a cell's weight is the largest
of those that it spans; where it is finer, that of the cell it lies in: what a masked loss reads of one it finds in the
other. On the feature's own grid index and weights are the feature's, and are not stored again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cache.bev import BevEncoding
from cache.cells import Cells
from cache.errors import ConfigError
from cache.fields import FieldSpec
from cache.grid import BevGrid


def level_ratio(main: BevGrid, level: BevGrid) -> int:
    """Cells of `main` along one side of a cell of `level` (1 or more), or minus the cells of `level` along one of
    `main`. ConfigError where ranges differ or that is no whole number."""
    bounds = ("x_min", "x_max", "y_min", "y_max")
    same_range = all(abs(getattr(main, name) - getattr(level, name)) <= 1e-6 * main.cell_m for name in bounds)
    factor = max(level.cell_m / main.cell_m, main.cell_m / level.cell_m)
    large, small = (main, level) if level.cell_m > main.cell_m else (level, main)
    if not same_range or abs(factor - round(factor)) > 1e-6 or large.height != small.height * round(factor):
        raise ConfigError(f"a map on {level} beside the feature's {main}: expected one range, cells in whole ratios")
    return round(factor) if level.cell_m >= main.cell_m else -round(factor)


def level_weights(weights: np.ndarray, ratio: int) -> np.ndarray:
    """The weights (S, H, W) of the feature's cells on a level's, see `level_ratio`: max-pooled, or repeated."""
    if ratio < 0:
        return np.repeat(np.repeat(weights, -ratio, axis=1), -ratio, axis=2)
    count, height, width = weights.shape
    return weights.reshape(count, height // ratio, ratio, width // ratio, ratio).max(axis=(2, 4))


@dataclass(frozen=True)
class Level:
    """name: as `DetectorOutput.levels` has it; grid: its own; ratio: see `level_ratio`; encoding: of its values;
    letter: of the number of its cells, "K" where they are the feature's."""

    name: str
    grid: BevGrid
    ratio: int
    encoding: BevEncoding
    letter: str

    @property
    def own_cells(self) -> bool:
        """Whether it has an index and weights of its own."""
        return self.ratio != 1

    def stored_name(self, bev_name: str) -> str:
        """The name under which what `BevEncoding` calls `bev_name` is stored."""
        shared = bev_name in ("bev_index", "bev_weights") and not self.own_cells
        return bev_name if shared else f"level_{self.name}_{bev_name.removeprefix('bev_')}"

    def fields(self) -> tuple[FieldSpec, ...]:
        """The fields that it adds."""
        return tuple(
            replace(
                spec,
                name=self.stored_name(spec.name),
                shape=tuple(self.letter if size == "K" else size for size in spec.shape),
                about=f"level {self.name}: {spec.about}",
            )
            for spec in self.encoding.fields()
            if self.own_cells or spec.name not in ("bev_index", "bev_weights")
        )

    def encode(self, bev_map: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Its fields of a map (C, h, w) float32 under weights (S, H, W) of the feature; as `BevEncoding.encode`."""
        return self.named(self.encoding.encode(bev_map, level_weights(weights, self.ratio)))

    def named(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `BevEncoding` gives, under the names of this level and without what it shares."""
        kept = {self.stored_name(name): values for name, values in fields.items()}
        return {name: values for name, values in kept.items() if not name.startswith("bev_")}

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the stored fields that `to_cells` needs, in the order of the encoding's."""
        return tuple(self.stored_name(spec.name) for spec in self.encoding.fields())

    def unnamed(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Stored fields under the names that `BevEncoding` has for them."""
        return {spec.name: fields[self.stored_name(spec.name)] for spec in self.encoding.fields()}

    def to_cells(self, fields: Mapping[str, np.ndarray], where: object) -> Cells:
        """Its cells from one frame's stored fields; CorruptError as `BevEncoding.to_cells`."""
        return self.encoding.to_cells(self.unnamed(fields), where)

    def header(self) -> dict[str, Any]:
        """What a reader must know of it."""
        return {"channels": self.encoding.channels, "grid": self.grid.to_dict()}

    @classmethod
    def on(cls, name: str, channels: int, grid: BevGrid, main: BevGrid, bev: BevEncoding, letter: str) -> Level:
        """The level beside a feature `bev` on the grid `main`; ConfigError where the grids do not go together."""
        ratio = level_ratio(main, grid)
        encoding = replace(bev, channels=channels, height=grid.height, width=grid.width)
        return cls(name, grid, ratio, encoding, letter if ratio != 1 else "K")
