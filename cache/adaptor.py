"""A teacher's frozen adaptor, from a store's header: the convolution that makes T_feat of the stored T_pre.

BEVDistill's dense loss compares the features behind each detector's shared convolution; the teacher's is frozen, so it
is kept once a store in place of a second map a frame. Batch norm is folded into the convolution when it is written.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.errors import CorruptError

KIND = "conv-relu"  # max(0, conv(x) + bias), stride 1, zeros around
MAX_VALUES = 1 << 25


@dataclass(frozen=True)
class Adaptor:
    """weight: (O, C, k, k) float32, k odd; bias: (O,) float32; the output keeps the map's size: padding k // 2."""

    weight: np.ndarray
    bias: np.ndarray

    @property
    def padding(self) -> int:
        """Zeros on each side of the map."""
        return self.weight.shape[-1] // 2

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name."""
        return {"weight": self.weight, "bias": self.bias}

    def header(self) -> dict[str, Any]:
        """Plain values for a store's header: little-endian float32 in base64, weight before bias under one sha256."""
        raw = {name: np.ascontiguousarray(values, "<f4").tobytes() for name, values in self.arrays().items()}
        return {
            "kind": KIND,
            "in_channels": self.weight.shape[1],
            "out_channels": self.weight.shape[0],
            "kernel": self.weight.shape[-1],
            **{name: base64.b64encode(data).decode() for name, data in raw.items()},
            "sha256": hashlib.sha256(b"".join(raw.values())).hexdigest(),
        }

    @classmethod
    def from_header(cls, values: Any, where: str) -> Adaptor:
        """Inverse of `header`; CorruptError where sizes, digest or values are not what `header` writes."""
        try:
            if values["kind"] != KIND:
                raise ValueError(f"kind {values['kind']!r:.40}, this version reads {KIND}")
            sizes = [values[name] for name in ("out_channels", "in_channels", "kernel")]
            if any(type(size) is not int or not 0 < size < 10**5 for size in sizes) or sizes[2] % 2 == 0:
                raise ValueError(f"sizes {sizes}, expected channels and an odd kernel")
            out, channels, kernel = sizes
            shapes = {"weight": (out, channels, kernel, kernel), "bias": (out,)}
            if sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) > MAX_VALUES:
                raise ValueError(f"sizes {sizes}, more than {MAX_VALUES} values")
            raw = {name: base64.b64decode(values[name], validate=True) for name in shapes}
            if hashlib.sha256(b"".join(raw.values())).hexdigest() != values["sha256"]:
                raise ValueError("the sha256 of its values differs")
            arrays = {name: np.frombuffer(raw[name], "<f4").reshape(shape) for name, shape in shapes.items()}
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError("a value is not finite")
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise CorruptError(f"{where}: {error}; the store is damaged, run verify") from None
        return cls(arrays["weight"].astype(np.float32), arrays["bias"].astype(np.float32))  # writable, native order
