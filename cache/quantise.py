"""u8 values with an offset and a step per channel: half the bytes of float16, at most half a step off.

The step of a channel is its range in this frame over 255, and never a denormal number, whose few bits would lose 0.
0 stays exactly 0, since zeros say something (a cell that no camera reached): it is the least value of a channel after a
ReLU; where a channel is negative somewhere the step is the range over 254, and a code means 0.
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
    around = (offset < 0) & (flat.max(axis=0) >= 0)  # a code to spare, so that 0 can have one of its own
    step = (reach / np.where(around, 254, 255)).astype(np.float32)
    step = np.where(reach > 0, np.maximum(step, np.finfo(np.float32).tiny), step)
    safe = np.where(step > 0, step, 1)
    offset = np.where(around & (step > 0), -np.ceil(-offset / safe) * safe, offset)  # rounded as a decoder's product is
    codes = np.clip(np.rint((moved - offset) / safe), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(codes, -1, channel_axis)), np.stack([offset, step])


def keeps_zero(scale: np.ndarray) -> np.ndarray:
    """(C,) bool of a frame's scale (2, C): whether 0 comes back as 0, or the channel has no 0 to keep. In stores from
    before 2026-11-30 channels around 0 say no."""
    offset, step = scale
    code = np.rint(-offset / np.where(step > 0, step, 1))
    spans = (offset <= 0) & (code <= 255)
    return ~spans | (code.astype(np.float32) * step + offset == 0)


def dequantise_u8(codes: np.ndarray, scale: np.ndarray, channel_axis: int) -> np.ndarray:
    """float32 values of `quantise_u8`'s codes."""
    shape = [1] * codes.ndim
    shape[channel_axis] = -1
    return codes * scale[1].reshape(shape) + scale[0].reshape(shape)
