"""Painted faces: small pictures for car sides, windscreens, lamps, windows, wheels, stripes, bricks and leaves.

A texture is drawn once per (kind, colour) and kept with a chain of halved copies, so that far faces are averaged rather than
sampled. Pixels are blue, green, red and, where the kind has holes, a fourth channel that is 0 in them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.simulator.solids import Colour

GLASS: Colour = (72, 62, 54)
BLACK: Colour = (24, 24, 24)
WHITE: Colour = (235, 238, 240)
RED: Colour = (35, 30, 200)
LAMP: Colour = (225, 245, 250)


@dataclass(frozen=True)
class Texture:
    """levels: (H, W, 3) uint8 images, each half the size of the one before; masks likewise (H, W) or None; mean colour."""

    levels: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] | None
    mean: np.ndarray


@lru_cache(maxsize=4096)
def texture(kind: str, colour: Colour) -> Texture | None:
    """The texture of a face kind in a base colour; None for plain faces."""
    if kind == "plain":
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


def _canvas(colour: Colour, h: int, w: int, rng: np.random.Generator, grain: float = 3.0) -> np.ndarray:
    image = np.empty((h, w, 3), np.float32)
    image[:] = colour
    image += rng.normal(0, grain, (h, w, 1)).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _scaled(colour: Colour, factor: float) -> Colour:
    b, g, r = (int(min(255, max(0, c * factor))) for c in colour)
    return b, g, r


def _box(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
    """Fills a rectangle given in shares of the width and height."""
    h, w = image.shape[:2]
    cv2.rectangle(image, (round(x0 * w), round(y0 * h)), (max(round(x1 * w) - 1, 0), max(round(y1 * h) - 1, 0)), colour, -1)


def _paint(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 32, 64, rng, 2.0).astype(np.float32)
    image *= np.linspace(1.10, 0.88, 32)[:, None, None]  # sky above, road below
    return np.clip(image, 0, 255).astype(np.uint8)


def _car_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 192, rng)
    _box(image, 0, 0.80, 1, 1, _scaled(c, 0.45))
    for u in (0.36, 0.60):
        _box(image, u, 0, u + 0.008, 0.85, _scaled(c, 0.55))
    for u in (0.52, 0.76):
        _box(image, u, 0.12, u + 0.035, 0.22, _scaled(c, 0.5))
    for u in (0.2, 0.8):
        cv2.ellipse(image, (round(u * 192), 50), (17, 38), 0, 0, 360, BLACK, -1)
    _box(image, 0, 0.10, 0.03, 0.40, LAMP)
    _box(image, 0.975, 0.05, 1, 0.40, RED)
    return image


def _car_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 96, rng)
    _box(image, 0.02, 0.06, 0.24, 0.40, LAMP)
    _box(image, 0.76, 0.06, 0.98, 0.40, LAMP)
    _box(image, 0.28, 0.14, 0.72, 0.46, _scaled(BLACK, 1.4))
    _box(image, 0.10, 0.70, 0.90, 1.0, BLACK)
    _box(image, 0.38, 0.56, 0.62, 0.72, WHITE)
    return image


def _car_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 96, rng)
    _box(image, 0.0, 0.0, 0.2, 0.36, RED)
    _box(image, 0.8, 0.0, 1.0, 0.36, RED)
    _box(image, 0.0, 0.68, 1.0, 1.0, _scaled(c, 0.35))
    _box(image, 0.37, 0.36, 0.63, 0.58, WHITE)
    return image


def _car_boot(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _paint(c, rng)
    _box(image, 0, 0.45, 0.22, 1.0, RED)
    _box(image, 0.78, 0.45, 1, 1.0, RED)
    return image


def _car_hatch(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _paint(c, rng)
    _box(image, 0, 0.05, 0.13, 1.0, RED)
    _box(image, 0.87, 0.05, 1, 1.0, RED)
    return image


def _glass(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Dark glass that mirrors the sky towards its top, with faint diagonal glints."""
    rows, columns = np.mgrid[0:h, 0:w]
    light = 0.85 + 0.75 * (1 - rows / h) + 0.18 * np.sin((rows * 1.3 + columns) * 0.10)
    image = light[..., None] * np.array(GLASS, np.float32) + rng.normal(0, 2, (h, w, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


def _glass_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _glass(40, 128, rng)
    for u0, u1 in ((0, 0.05), (0.47, 0.52), (0.80, 0.84), (0.96, 1)):
        _box(image, u0, 0, u1, 1, c)
    _box(image, 0, 0, 1, 0.12, c)
    return image


def _glass_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _glass(40, 64, rng)
    for u0, u1 in ((0, 0.06), (0.94, 1)):
        _box(image, u0, 0, u1, 1, c)
    _box(image, 0, 0, 1, 0.08, c)
    _box(image, 0.44, 0.1, 0.56, 0.22, BLACK)
    return image


def _glass_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _glass(40, 64, rng)
    for u0, u1 in ((0, 0.12), (0.88, 1)):
        _box(image, u0, 0, u1, 1, c)
    _box(image, 0, 0, 1, 0.14, c)
    _box(image, 0.38, 0.10, 0.62, 0.18, RED)
    return image


def _cab_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 96, 96, rng)
    window = _glass(34, 56, rng)
    image[10:44, 12:68] = window
    _box(image, 0.78, 0.05, 0.80, 0.95, _scaled(c, 0.6))
    _box(image, 0, 0.86, 1, 1, BLACK)
    _box(image, 0.55, 0.50, 0.66, 0.54, BLACK)
    return image


def _cab_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 96, 96, rng)
    image[12:46, 6:90] = _glass(34, 84, rng)
    _box(image, 0.22, 0.54, 0.78, 0.74, BLACK)
    _box(image, 0.02, 0.74, 0.22, 0.88, LAMP)
    _box(image, 0.78, 0.74, 0.98, 0.88, LAMP)
    _box(image, 0, 0.90, 1, 1, _scaled(c, 0.4))
    return image


def _cab_glass(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 64, 64, rng)
    image[6:44, 6:58] = _glass(38, 52, rng)
    return image


def _ribs(c: Colour, rng: np.random.Generator, pitch: int, depth: float) -> np.ndarray:
    image = _canvas(c, 96, 256, rng).astype(np.float32)
    wave = 1 + depth * np.where((np.arange(256) % pitch) < 2, -1.0, np.where((np.arange(256) % pitch) < 4, 0.5, 0.0))
    return np.clip(image * wave[None, :, None], 0, 255).astype(np.uint8)


def _cargo_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _ribs(c, rng, 24, 0.10)
    _box(image, 0.22, 0.22, 0.78, 0.62, _scaled((c[2], c[0], c[1]), 0.75))
    _box(image, 0.28, 0.34, 0.62, 0.46, WHITE)
    for i in range(0, 16, 2):
        _box(image, i / 16, 0.93, (i + 1) / 16, 0.99, RED)
        _box(image, (i + 1) / 16, 0.93, (i + 2) / 16, 0.99, WHITE)
    return image


def _trailer_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _ribs(c, rng, 16, 0.16)
    _box(image, 0, 0.86, 1, 0.90, (60, 170, 220))
    for i in range(12):
        _box(image, i / 12, 0.94, i / 12 + 0.03, 0.99, (40, 120, 235))
    return image


def _container(c: Colour, rng: np.random.Generator) -> np.ndarray:
    return _ribs(c, rng, 10, 0.30)


def _panel(c: Colour, rng: np.random.Generator) -> np.ndarray:
    return _ribs(c, rng, 64, 0.08)


def _cargo_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 96, 96, rng)
    for u in (0.49, 0.24, 0.74):
        _box(image, u, 0.02, u + 0.02, 0.86, _scaled(c, 0.5))
    for i in range(12):
        _box(image, i / 12, 0.87, (i + 1) / 12, 0.93, (40, 190, 235) if i % 2 else (30, 30, 40))
    _box(image, 0, 0.93, 1, 1, BLACK)
    _box(image, 0.02, 0.93, 0.16, 1, RED)
    _box(image, 0.84, 0.93, 0.98, 1, RED)
    return image


def _bed_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _ribs(c, rng, 42, 0.35)
    _box(image, 0, 0.0, 1, 0.12, _scaled(c, 0.6))
    return image


def _chassis(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 32, 128, rng)
    for i in range(8):
        _box(image, i / 8, 0.3, i / 8 + 0.03, 0.9, (40, 120, 235))
    return image


def _bus_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 96, 320, rng)
    image[14:50, 8:312] = _glass(36, 304, rng)
    for i in range(1, 9):
        _box(image, 0.025 + i * 0.105, 0.14, 0.035 + i * 0.105, 0.53, _scaled(c, 0.5))
    _box(image, 0, 0.62, 1, 0.70, WHITE)
    for u in (0.05, 0.50):
        _box(image, u, 0.16, u + 0.075, 0.94, (96, 88, 80))
        _box(image, u + 0.034, 0.16, u + 0.040, 0.94, BLACK)
    for u in (0.2, 0.77):
        cv2.ellipse(image, (round(u * 320), 98), (17, 16), 0, 0, 360, BLACK, -1)
    return image


def _bus_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 96, 80, rng)
    image[16:60, 4:76] = _glass(44, 72, rng)
    _box(image, 0.12, 0.04, 0.88, 0.15, BLACK)
    _box(image, 0.2, 0.065, 0.8, 0.125, (40, 160, 245))
    _box(image, 0.03, 0.78, 0.25, 0.88, LAMP)
    _box(image, 0.75, 0.78, 0.97, 0.88, LAMP)
    _box(image, 0, 0.93, 1, 1, BLACK)
    return image


def _bus_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 96, 80, rng)
    image[12:36, 10:70] = _glass(24, 60, rng)
    for i in range(5):
        _box(image, 0.2, 0.52 + i * 0.06, 0.8, 0.55 + i * 0.06, _scaled(c, 0.35))
    _box(image, 0.0, 0.55, 0.12, 0.85, RED)
    _box(image, 0.88, 0.55, 1.0, 0.85, RED)
    _box(image, 0, 0.92, 1, 1, BLACK)
    return image


def _round(h: int, draw: Callable[[np.ndarray], None]) -> np.ndarray:
    image = np.zeros((h, h, 4), np.uint8)
    draw(image)
    return image


def _wheel(c: Colour, rng: np.random.Generator) -> np.ndarray:
    def draw(image: np.ndarray) -> None:
        cv2.circle(image, (32, 32), 31, (*c, 255), -1)
        cv2.circle(image, (32, 32), 18, (140, 138, 136, 255), -1)
        for angle in np.arange(5) * 2 * np.pi / 5:
            cv2.line(image, (32, 32), (int(32 + 17 * np.cos(angle)), int(32 + 17 * np.sin(angle))), (60, 60, 60, 255), 4)

    return _round(64, draw)


def _moto_wheel(c: Colour, rng: np.random.Generator) -> np.ndarray:
    def draw(image: np.ndarray) -> None:
        cv2.circle(image, (32, 32), 31, (*c, 255), -1)
        cv2.circle(image, (32, 32), 14, (120, 118, 115, 255), -1)

    return _round(64, draw)


def _spokes(c: Colour, rng: np.random.Generator) -> np.ndarray:
    def draw(image: np.ndarray) -> None:
        cv2.circle(image, (32, 32), 28, (*c, 255), 6)
        cv2.circle(image, (32, 32), 4, (120, 120, 120, 255), -1)
        for angle in np.arange(8) * np.pi / 8:
            dx, dy = int(28 * np.cos(angle)), int(28 * np.sin(angle))
            cv2.line(image, (32 - dx, 32 - dy), (32 + dx, 32 + dy), (120, 120, 120, 255), 1)

    return _round(64, draw)


def _track(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 32, 128, rng)
    for i in range(7):
        cv2.circle(image, (10 + i * 18, 18), 7, (90, 95, 100), -1)
    image[::1, ::8] = _scaled(c, 0.6)
    return image


def _digger(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 96, rng, 6.0)
    _box(image, 0.06, 0.25, 0.30, 0.85, _scaled(c, 0.35))
    _box(image, 0.45, 0.42, 0.9, 0.55, BLACK)
    return image


def _bucket(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 32, 96, rng, 8.0)
    for i in range(8):
        _box(image, i / 8, 0.8, i / 8 + 0.05, 1, (150, 150, 150))
    return image


def _cloth(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 32, rng, 7.0).astype(np.float32)
    folds = 1 + 0.12 * np.sin(np.arange(32) * 0.8)[None, :] + 0.06 * np.sin(np.arange(48) * 0.5)[:, None]
    return np.clip(image * folds[..., None], 0, 255).astype(np.uint8)


def _vest(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas((30, 140, 245), 48, 32, rng, 5.0)
    for v in (0.35, 0.65):
        _box(image, 0, v, 1, v + 0.09, (190, 250, 240))
    return image


def _face(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas((120, 150, 200), 24, 16, rng)
    _box(image, 0, 0, 1, 0.3, c)
    _box(image, 0.2, 0.45, 0.38, 0.53, BLACK)
    _box(image, 0.62, 0.45, 0.8, 0.53, BLACK)
    return image


def _head_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 24, 16, rng)
    _box(image, 0, 0.3, 0.5, 1, (120, 150, 200))
    return image


def _engine(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 32, 48, rng, 18.0)
    for i in range(6):
        _box(image, 0.1, 0.1 + i * 0.14, 0.9, 0.15 + i * 0.14, BLACK)
    return image


def _lamp(colour: Colour) -> Callable[[Colour, np.random.Generator], np.ndarray]:
    def draw(c: Colour, rng: np.random.Generator) -> np.ndarray:
        image = _canvas(c, 32, 64, rng)
        _box(image, 0.38, 0.15, 0.62, 0.95, colour)
        return image

    return draw


def _cone(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 32, rng, 5.0)
    _box(image, 0, 0.22, 1, 0.42, WHITE)
    _box(image, 0, 0.58, 1, 0.74, WHITE)
    return image


def _plastic(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 96, rng, 5.0)
    for i in range(4):
        _box(image, 0.08 + i * 0.24, 0.15, 0.14 + i * 0.24, 0.95, _scaled(c, 0.72))
    _box(image, 0, 0, 1, 0.06, _scaled(c, 1.2))
    return image


def _stripes(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(WHITE, 32, 160, rng)
    for i in range(-1, 8):
        polygon = np.array([[i * 24, 32], [i * 24 + 12, 32], [i * 24 + 28, 0], [i * 24 + 16, 0]], np.int32)
        cv2.fillConvexPoly(image, polygon, RED)
    return image


def _bricks(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(_scaled(c, 0.8), 64, 256, rng, 4.0)
    for row in range(8):
        for column in range(-1, 16):
            x = column * 16 + (8 if row % 2 else 0)
            tone = _scaled(c, float(rng.uniform(0.85, 1.12)))
            cv2.rectangle(image, (x + 1, row * 8 + 1), (x + 14, row * 8 + 6), tone, -1)
    return image


def _facade(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 192, 320, rng, 4.0)
    for row in range(5):
        for column in range(10):
            x, y = 8 + column * 32, 8 + row * 36
            image[y : y + 22, x : x + 18] = _glass(22, 18, rng) if rng.random() < 0.8 else 190
        cv2.line(image, (0, row * 36 + 34), (319, row * 36 + 34), _scaled(c, 0.7), 2)
    _box(image, 0.45, 0.86, 0.55, 1.0, (50, 60, 70))
    return image


def _leaves(c: Colour, rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.normal(0, 1, (64, 64)).astype(np.float32), (0, 0), 1.6)
    fine = rng.normal(0, 0.5, (64, 64)).astype(np.float32)
    light = np.clip(1 + 1.3 * noise + 0.25 * fine, 0.25, 2.0)
    return np.clip(light[..., None] * np.array(c, np.float32), 0, 255).astype(np.uint8)


def _bark(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 64, 16, rng, 8.0).astype(np.float32)
    return np.clip(image * (1 + 0.25 * rng.normal(size=(1, 16, 1))), 0, 255).astype(np.uint8)


def _crate(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 48, rng, 6.0)
    for i in range(6):
        _box(image, 0, i / 6, 1, i / 6 + 0.02, _scaled(c, 0.5))
    cv2.line(image, (0, 0), (47, 47), _scaled(c, 0.7), 4)
    return image


def _sign(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _canvas(c, 48, 48, rng)
    cv2.rectangle(image, (3, 3), (44, 44), WHITE, 2)
    cv2.arrowedLine(image, (12, 36), (34, 14), WHITE, 4)
    return image


_PAINTERS: dict[str, Callable[[Colour, np.random.Generator], np.ndarray]] = {
    "paint": _paint,
    "car_side": _car_side,
    "car_front": _car_front,
    "car_back": _car_back,
    "car_boot": _car_boot,
    "car_hatch": _car_hatch,
    "glass_side": _glass_side,
    "glass_front": _glass_front,
    "glass_back": _glass_back,
    "cab_side": _cab_side,
    "cab_front": _cab_front,
    "cab_glass": _cab_glass,
    "cargo_side": _cargo_side,
    "cargo_back": _cargo_back,
    "trailer_side": _trailer_side,
    "container": _container,
    "panel": _panel,
    "bed_side": _bed_side,
    "chassis": _chassis,
    "bus_side": _bus_side,
    "bus_front": _bus_front,
    "bus_back": _bus_back,
    "wheel": _wheel,
    "moto_wheel": _moto_wheel,
    "spokes": _spokes,
    "track": _track,
    "digger": _digger,
    "bucket": _bucket,
    "cloth": _cloth,
    "vest": _vest,
    "face": _face,
    "head_side": _head_side,
    "engine": _engine,
    "head_lamp": _lamp(LAMP),
    "tail_lamp": _lamp(RED),
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
