"""How a BEV feature lies in a store: dense or as cells, in float16, float32 or u8; which fields that makes, and back.

    cells   bev_index (K,), bev_values (K, C), bev_weights (K, S)         exactly the cells that a masked loss reads
    dense   bev_map (C, H, W), bev_index (K,), bev_weights (K, S)         every value; the cells some selector weighs
    u8      besides bev_scale (2, C): value = scale[0] + scale[1] * byte  per frame and channel

Bytes a frame, uncompressed: cells K (2 C + 4 + 4 S), K (C + 4 + 4 S) + 8 C under u8; dense 2 C H W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.cells import Cells, cell_weights, rounded
from cache.errors import ConfigError, CorruptError
from cache.fields import FieldSpec
from cache.quantise import dequantise_u8, quantise_u8

DTYPES = ("float16", "float32", "u8")
LAYOUTS = ("cells", "dense")


@dataclass(frozen=True)
class BevEncoding:
    """layout and dtype of a BEV feature with `channels` on (height, width) cells, weighed by `selectors` selectors."""

    channels: int
    height: int
    width: int
    selectors: int
    layout: str = "cells"
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or self.layout not in LAYOUTS:
            raise ConfigError(
                f"BEV feature as {self.layout} in {self.dtype}: expected one of {', '.join(LAYOUTS)} in one of "
                f"{', '.join(DTYPES)}; see --encoding and --dtype"
            )

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BevEncoding:
        """From a store's header; CorruptError where it makes no sense."""
        try:
            channels, height, width, selectors = (
                int(values[name]) for name in ("channels", "height", "width", "selectors")
            )
            if min(channels, height, width, selectors) < 1 or max(channels, height, width, selectors) >= 10**9:
                raise ValueError("a size is out of range")
            return cls(channels, height, width, selectors, str(values["layout"]), str(values["dtype"]))
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise CorruptError(f"header: bev is {values!r:.80} ({error}); the store is damaged, run verify") from None

    def fields(self) -> tuple[FieldSpec, ...]:
        """The fields it makes, values first."""
        stored = {"u8": "uint8"}.get(self.dtype, self.dtype)
        sizes = (str(self.height), str(self.width))
        values = (
            FieldSpec("bev_values", "npy.zstd", stored, ("K", str(self.channels)), "", "BEV feature at the cells")
            if self.layout == "cells"
            else FieldSpec("bev_map", "npy.zstd", stored, (str(self.channels), *sizes), "", "BEV feature")
        )
        scale = FieldSpec("bev_scale", "npy", "float32", ("2", str(self.channels)), "", "offset and step a channel")
        return (
            FieldSpec("bev_index", "npy.zstd", "int32", ("K",), "cell", "flat cells row * W + col, ascending"),
            values,
            FieldSpec(
                "bev_weights",
                "npy.zstd",
                "float32",
                ("K", str(self.selectors)),
                "0..1",
                "weight, one column a selector",
            ),
            *((scale,) if self.dtype == "u8" else ()),
        )

    def encode(self, bev: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Fields of `bev` (C, H, W) float32 under `weights` (S, H, W) >= 0.

        Raises StoreError where a value is not finite or does not fit the dtype, or where the grids differ.
        """
        index, kept = cell_weights(bev, weights)
        cells = self.layout == "cells"
        values = np.ascontiguousarray(bev.reshape(len(bev), -1)[:, index].T) if cells else bev
        return self.encode_values(values, index, kept)

    def encode_values(self, values: np.ndarray, index: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Fields of values already gathered: (K, C) at cells `index` (K,) with `weights` (K, S), or a map (C, H, W)."""
        out = {"bev_index": index, "bev_weights": weights}
        name = "bev_values" if self.layout == "cells" else "bev_map"
        if self.dtype == "u8":
            channel_axis = 1 if self.layout == "cells" else 0
            out[name], out["bev_scale"] = quantise_u8(values, channel_axis)
        else:
            out[name] = rounded(values, self.dtype)
        return out

    def to_cells(self, fields: Mapping[str, np.ndarray], where: object) -> Cells:
        """The cells from one frame's stored fields; CorruptError, naming `where`, where they do not fit each other."""
        index = fields["bev_index"]
        if not self._ascend(index, np.zeros(1, np.int64)):
            raise CorruptError(
                f"{where}: cells out of order or outside {self.height} x {self.width}; cache the teacher again"
            )
        if self.layout == "cells":
            values = fields["bev_values"]
        else:
            values = np.ascontiguousarray(fields["bev_map"].reshape(self.channels, -1)[:, index].T)
        if self.dtype == "u8":
            values = dequantise_u8(values, fields["bev_scale"], 1)
        return Cells(index, values, fields["bev_weights"])

    def to_joined_cells(self, fields: Mapping[str, np.ndarray], offsets: np.ndarray) -> Cells | None:
        """`to_cells` over several frames' fields, each joined along its first axis; frame i holds the cells offsets[i]
        .. offsets[i + 1]. For the layout of cells only. None where a frame's cells are out of order."""
        index, values = fields["bev_index"], fields.get("bev_values")
        if values is None or not self._ascend(index, offsets[:-1]):
            return None
        if self.dtype == "u8":
            codes, values = values, np.empty(values.shape, np.float32)
            for i, scale in enumerate(fields["bev_scale"].reshape(-1, 2, self.channels)):
                part = slice(offsets[i], offsets[i + 1])
                values[part] = dequantise_u8(codes[part], scale, 1)
        return Cells(index, values, fields["bev_weights"])

    def no_cells(self) -> Cells:
        """The cells of no frame."""
        dtype = np.float32 if self.dtype == "u8" else np.dtype(self.dtype)
        return Cells(
            np.empty(0, np.int32), np.empty((0, self.channels), dtype), np.empty((0, self.selectors), np.float32)
        )

    def _ascend(self, index: np.ndarray, starts: np.ndarray) -> bool:
        """Whether cells lie on the grid and rise from each start to the next."""
        rising = np.diff(index) > 0
        rising[starts[(starts > 0) & (starts < len(index))] - 1] = True
        return bool(rising.all() and (not len(index) or (index.min() >= 0 and index.max() < self.height * self.width)))

    def to_map(self, fields: Mapping[str, np.ndarray], where: object) -> np.ndarray:
        """The whole map (C, H, W) from one frame's stored fields, zero at cells that are not stored."""
        if self.layout == "dense":
            values = fields["bev_map"]
            return dequantise_u8(values, fields["bev_scale"], 0) if self.dtype == "u8" else values
        cells = self.to_cells(fields, where)
        out = np.zeros((self.channels, self.height * self.width), cells.values.dtype)
        out[:, cells.index] = cells.values.T
        return out.reshape(self.channels, self.height, self.width)
