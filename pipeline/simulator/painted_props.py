"""Faces of people, cycles, cones, barriers and clutter: cloth, faces, spokes, bands, bricks, windows, leaves.

A picture with a fourth channel has holes where that channel is 0.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.simulator.paint import BLACK, RED, WHITE, Painter, box, canvas, glass, scaled
from pipeline.simulator.solids import Colour


def _spokes(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = np.zeros((64, 64, 4), np.uint8)  # what is not drawn is a hole
    cv2.circle(image, (32, 32), 28, (*c, 255), 6)
    cv2.circle(image, (32, 32), 4, (120, 120, 120, 255), -1)
    for angle in np.arange(8) * np.pi / 8:
        dx, dy = int(28 * np.cos(angle)), int(28 * np.sin(angle))
        cv2.line(image, (32 - dx, 32 - dy), (32 + dx, 32 + dy), (120, 120, 120, 255), 1)
    return image


def _cloth(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 32, rng, 7.0).astype(np.float32)
    folds = 1 + 0.12 * np.sin(np.arange(32) * 0.8)[None, :] + 0.06 * np.sin(np.arange(48) * 0.5)[:, None]
    return np.clip(image * folds[..., None], 0, 255).astype(np.uint8)


def _vest(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas((30, 140, 245), 48, 32, rng, 5.0)
    for v in (0.35, 0.65):
        box(image, 0, v, 1, v + 0.09, (190, 250, 240))
    return image


def _face(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas((120, 150, 200), 24, 16, rng)
    box(image, 0, 0, 1, 0.3, c)
    box(image, 0.2, 0.45, 0.38, 0.53, BLACK)
    box(image, 0.62, 0.45, 0.8, 0.53, BLACK)
    return image


def _head_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 24, 16, rng)
    box(image, 0, 0.3, 0.5, 1, (120, 150, 200))
    return image


def _cone(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 32, rng, 5.0)
    box(image, 0, 0.22, 1, 0.42, WHITE)
    box(image, 0, 0.58, 1, 0.74, WHITE)
    return image


def _plastic(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 96, rng, 5.0)
    for i in range(4):
        box(image, 0.08 + i * 0.24, 0.15, 0.14 + i * 0.24, 0.95, scaled(c, 0.72))
    box(image, 0, 0, 1, 0.06, scaled(c, 1.2))
    return image


def _stripes(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(WHITE, 32, 160, rng)
    for i in range(-1, 8):
        polygon = np.array([[i * 24, 32], [i * 24 + 12, 32], [i * 24 + 28, 0], [i * 24 + 16, 0]], np.int32)
        cv2.fillConvexPoly(image, polygon, RED)
    return image


def _bricks(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(scaled(c, 0.8), 64, 256, rng, 4.0)
    for row in range(8):
        for column in range(-1, 16):
            x = column * 16 + (8 if row % 2 else 0)
            tone = scaled(c, float(rng.uniform(0.85, 1.12)))
            cv2.rectangle(image, (x + 1, row * 8 + 1), (x + 14, row * 8 + 6), tone, -1)
    return image


def _facade(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 192, 320, rng, 4.0)
    for row in range(5):
        for column in range(10):
            x, y = 8 + column * 32, 8 + row * 36
            image[y : y + 22, x : x + 18] = glass(22, 18, rng) if rng.random() < 0.8 else 190
        cv2.line(image, (0, row * 36 + 34), (319, row * 36 + 34), scaled(c, 0.7), 2)
    box(image, 0.45, 0.86, 0.55, 1.0, (50, 60, 70))
    return image


def _leaves(c: Colour, rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.normal(0, 1, (64, 64)).astype(np.float32), (0, 0), 1.6)
    fine = rng.normal(0, 0.5, (64, 64)).astype(np.float32)
    light = np.clip(1 + 1.3 * noise + 0.25 * fine, 0.25, 2.0)
    return np.clip(light[..., None] * np.array(c, np.float32), 0, 255).astype(np.uint8)


def _bark(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 64, 16, rng, 8.0).astype(np.float32)
    return np.clip(image * (1 + 0.25 * rng.normal(size=(1, 16, 1))), 0, 255).astype(np.uint8)


def _crate(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 48, rng, 6.0)
    for i in range(6):
        box(image, 0, i / 6, 1, i / 6 + 0.02, scaled(c, 0.5))
    cv2.line(image, (0, 0), (47, 47), scaled(c, 0.7), 4)
    return image


def _sign(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 48, rng)
    cv2.rectangle(image, (3, 3), (44, 44), WHITE, 2)
    cv2.arrowedLine(image, (12, 36), (34, 14), WHITE, 4)
    return image


PAINTERS: dict[str, Painter] = {
    "spokes": _spokes,
    "cloth": _cloth,
    "vest": _vest,
    "face": _face,
    "head_side": _head_side,
    "cone": _cone,
    "plastic": _plastic,
    "stripes": _stripes,
    "bricks": _bricks,
    "facade": _facade,
    "leaves": _leaves,
    "bark": _bark,
    "crate": _crate,
    "sign": _sign,
}
