"""Painted faces: small pictures for car sides, windscreens, lamps, windows, wheels, stripes, bricks and leaves.

A texture is drawn once per (kind, colour) and kept with a chain of halved copies, so that far faces are averaged
rather than sampled. Pixels are blue, green, red and, where the kind has holes, a fourth channel that is 0 in them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.simulator import painted_props, painted_vehicles
from pipeline.simulator.solids import Colour

_PAINTERS = {**painted_vehicles.PAINTERS, **painted_props.PAINTERS}


@dataclass(frozen=True)
class Texture:
    """levels: (H, W, 3) uint8 images, each half the size of the one before; masks likewise (H, W) or None; mean
    colour."""

    levels: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] | None
    mean: np.ndarray


@lru_cache(maxsize=4096)
def texture(kind: str, colour: Colour) -> Texture | None:
    """The texture of a face kind in a base colour; None for plain faces."""
    if kind in ("plain", "none"):
        return None
    image = _PAINTERS[kind](colour, np.random.default_rng(zlib.crc32(kind.encode())))
    mask = None
    if image.shape[2] == 4:
        image, mask = np.ascontiguousarray(image[..., :3]), np.ascontiguousarray(image[..., 3])
    levels, masks = [image], [mask]
    while min(levels[-1].shape[:2]) > 4:
        size = (levels[-1].shape[1] // 2, levels[-1].shape[0] // 2)
        levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
        masks.append(None if mask is None else cv2.resize(masks[-1], size, interpolation=cv2.INTER_AREA))
    mean = image.reshape(-1, 3).mean(axis=0) if mask is None else image[mask > 0].mean(axis=0)
    return Texture(tuple(levels), None if mask is None else tuple(masks), mean)  # type: ignore[arg-type]
