"""The bird's-eye-view grid: ranges and cell size.

Arrays on it are (C, H=y, W=x), row 0 at y_min, values at cell centres.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from cache.errors import ConfigError


@dataclass(frozen=True)
class BevGrid:
    """Metric extent (canonical frame, metres) and cell edge of a BEV map.

    Raises ConfigError where a range is empty or not a whole number of cells.
    """

    x_min: float
    x_max: float
    y_min: float
    y_max: float
    cell_m: float

    def __post_init__(self) -> None:
        for axis, low, high in (("x", self.x_min, self.x_max), ("y", self.y_min, self.y_max)):
            cells = (high - low) / self.cell_m if self.cell_m > 0 else 0.0
            if not math.isfinite(cells) or round(cells) < 1 or abs(cells - round(cells)) > 1e-6:
                raise ConfigError(
                    f"grid: {axis} range {low}..{high} m is not a whole, positive number of {self.cell_m} m cells; "
                    "choose a range that the cell size divides"
                )

    @property
    def width(self) -> int:
        """Cells along x."""
        return round((self.x_max - self.x_min) / self.cell_m)

    @property
    def height(self) -> int:
        """Cells along y."""
        return round((self.y_max - self.y_min) / self.cell_m)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    def centres(self) -> np.ndarray:
        """(H, W, 2) float64: x, y of every cell centre, metres."""
        x = self.x_min + (np.arange(self.width) + 0.5) * self.cell_m
        y = self.y_min + (np.arange(self.height) + 0.5) * self.cell_m
        return np.stack(np.meshgrid(x, y), axis=-1)

    def to_dict(self) -> dict[str, float]:
        """Plain values for a store's header."""
        return {key: float(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> BevGrid:
        """Inverse of `to_dict`; unknown or missing keys raise ConfigError."""
        names = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or set(values) != names:
            found = f"keys {sorted(values)}" if isinstance(values, dict) else repr(values)[:80]
            raise ConfigError(f"grid: found {found}, expected exactly the keys {sorted(names)}")
        try:
            return cls(**{key: float(value) for key, value in values.items()})
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"grid: found {values}, expected a number of metres for every key") from None

    def __str__(self) -> str:
        return f"x {self.x_min:g}..{self.x_max:g}, y {self.y_min:g}..{self.y_max:g}, cell {self.cell_m:g} m"
