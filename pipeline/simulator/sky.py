"""What stands beyond the world: sky, clouds and a hazy skyline of trees and buildings, as a panorama in azimuth.

Six looks, each painted once per process (about 60 ms) and looked up by viewing direction; the haze at the horizon is
that of the ground.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from pipeline.simulator.ground import HAZE_COLOUR

WIDTH = 4096
TEXELS_PER_RAD = WIDTH / (2 * np.pi)
LOWEST_RAD, HIGHEST_RAD = -0.06, 0.60
FOOT_RAD = 0.014  # how far the skyline's foot reaches below the horizon
HEIGHT = round((HIGHEST_RAD - LOWEST_RAD) * TEXELS_PER_RAD)

_LOOKS = (  # zenith colour, cloud amount
    ((205, 150, 95), 0.35),
    ((190, 165, 135), 0.75),
    ((196, 186, 176), 1.0),
    ((215, 160, 90), 0.15),
    ((180, 160, 140), 0.55),
    ((165, 150, 140), 0.9),
)


@lru_cache(maxsize=len(_LOOKS))
def panorama(look: int) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: rows from the highest elevation down, columns with falling azimuth (left to right)."""
    zenith, cloud_amount = _LOOKS[look]
    rng = np.random.default_rng([77, look])
    elevation = HIGHEST_RAD - (np.arange(HEIGHT) + 0.5) / TEXELS_PER_RAD
    height = np.clip(elevation / HIGHEST_RAD, 0, 1)[:, None, None] ** 0.7
    image = (1 - height) * np.full(3, HAZE_COLOUR + 18.0) + height * np.array(zenith, np.float64)
    image = np.repeat(image, WIDTH, axis=1).astype(np.float32)
    clouds = np.zeros((HEIGHT, WIDTH), np.float32)
    for scale, weight in ((8, 0.5), (16, 0.3), (48, 0.2)):
        coarse = rng.normal(0, 1, (HEIGHT // (1024 // scale) + 3, 2 * scale)).astype(np.float32)
        coarse = np.pad(coarse, ((0, 0), (2, 2)), mode="wrap")  # so that the seam does not show
        cell = WIDTH // (2 * scale)
        grown = cv2.resize(coarse, (WIDTH + 4 * cell, HEIGHT), interpolation=cv2.INTER_CUBIC)
        clouds += weight * grown[:, 2 * cell : 2 * cell + WIDTH]
    cover = np.clip((clouds - (0.45 - 0.8 * cloud_amount)) * 1.4, 0, 1)[..., None] * np.float32(0.85)
    image = image * (1 - cover) + cover * (np.float32(228) + 14 * clouds[..., None])
    image[elevation < 0] = HAZE_COLOUR
    for distance, base, tall in ((0.55, 0.045, 0.10), (0.30, 0.035, 0.06)):
        _skyline(image, rng, distance, base, tall)
    return np.clip(image, 0, 255).astype(np.uint8)


def _skyline(image: np.ndarray, rng: np.random.Generator, haze: float, base: float, tall: float) -> None:
    """A row of buildings and tree tops along the horizon, mixed with the given share of haze."""
    # foot a little below the horizon, where the ground picture ends
    horizon = round((HIGHEST_RAD + FOOT_RAD) * TEXELS_PER_RAD)
    x = 0
    while x < WIDTH:
        width = int(rng.integers(30, 150))
        if rng.random() < 0.5:
            top = horizon - int(TEXELS_PER_RAD * rng.uniform(0.3, 1.0) * tall)
            tone = rng.uniform(80, 170) * np.array([1.02, 1.0, rng.uniform(0.9, 1.05)])
            piece = np.full((horizon - top, min(width, WIDTH - x), 3), tone, np.float32)
            piece[4::7, :, :] *= 0.8
            piece[:, 3::6, :] *= 0.85
        else:
            top = horizon - int(TEXELS_PER_RAD * base * rng.uniform(0.5, 1.2))
            piece = np.empty((horizon - top, min(width, WIDTH - x), 3), np.float32)
            piece[:] = (46, 76, 56)
            piece *= np.clip(1 + 0.3 * rng.normal(size=piece.shape[:2]), 0.4, 1.6)[..., None].astype(np.float32)
        image[top:horizon, x : x + width] = (1 - haze) * piece + haze * HAZE_COLOUR
        x += width
