"""Brushes for painted faces: a grainy canvas, rectangles in shares of the picture, glass that mirrors the sky."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pipeline.simulator.solids import Colour

GLASS: Colour = (72, 62, 54)
BLACK: Colour = (24, 24, 24)
WHITE: Colour = (235, 238, 240)
RED: Colour = (35, 30, 200)
LAMP: Colour = (225, 245, 250)

Painter = Callable[[Colour, np.random.Generator], np.ndarray]  # base colour, generator -> (H, W, 3 or 4) uint8


def canvas(colour: Colour, h: int, w: int, rng: np.random.Generator, grain: float = 3.0) -> np.ndarray:
    """(h, w, 3) uint8 of one colour with grain of that standard deviation."""
    image = np.empty((h, w, 3), np.float32)
    image[:] = colour
    image += rng.normal(0, grain, (h, w, 1)).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def scaled(colour: Colour, factor: float) -> Colour:
    """The colour made brighter or darker, within 0..255."""
    b, g, r = (int(min(255, max(0, c * factor))) for c in colour)
    return b, g, r


def box(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
    """Fills a rectangle given in shares of the width and height."""
    h, w = image.shape[:2]
    cv2.rectangle(
        image, (round(x0 * w), round(y0 * h)), (max(round(x1 * w) - 1, 0), max(round(y1 * h) - 1, 0)), colour, -1
    )


def glass(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Dark glass that mirrors the sky towards its top, with faint diagonal glints."""
    rows, columns = np.mgrid[0:h, 0:w]
    light = 0.85 + 0.75 * (1 - rows / h) + 0.18 * np.sin((rows * 1.3 + columns) * 0.10)
    image = light[..., None] * np.array(GLASS, np.float32) + rng.normal(0, 2, (h, w, 1))
    return np.clip(image, 0, 255).astype(np.uint8)
