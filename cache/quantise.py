"""u8 values with an offset and a step per channel: half the bytes of float16, at most half a step off.

The step of a channel is its range in this frame over 255. Where a channel's least value is 0 (after a ReLU), 0 stays
exactly 0.
"""

from __future__ import annotations

import numpy as np

from cache.cells import require_finite
from cache.errors import StoreError


def quantise_u8(values: np.ndarray, channel_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 of the shape of `values`, and scale (2, C) float32: offset and step of each channel.

    Raises StoreError where a value or the range of a channel is not finite in float32. A frame without values gives
    offsets and steps of 0.
    """
    values = np.asarray(values, np.float32)
    require_finite(values)
    moved = np.moveaxis(values, channel_axis, -1)
    flat = moved.reshape(-1, moved.shape[-1])
    if not len(flat):
        return np.zeros(values.shape, np.uint8), np.zeros((2, moved.shape[-1]), np.float32)
    offset = flat.min(axis=0)
    reach = flat.max(axis=0).astype(np.float64) - offset
    if reach.max() > np.finfo(np.float32).max:
        raise StoreError(f"a BEV feature spans {reach.max():g}, too much for u8 and its step; use --dtype float32")
    step = (reach / 255).astype(np.float32)
    safe = np.where(step > 0, step, 1)
    codes = np.clip(np.rint((moved - offset) / safe), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(codes, -1, channel_axis)), np.stack([offset, step])


def dequantise_u8(codes: np.ndarray, scale: np.ndarray, channel_axis: int) -> np.ndarray:
    """float32 values of `quantise_u8`'s codes."""
    shape = [1] * codes.ndim
    shape[channel_axis] = -1
    return codes * scale[1].reshape(shape) + scale[0].reshape(shape)
