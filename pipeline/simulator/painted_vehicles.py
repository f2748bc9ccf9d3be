"""Faces of vehicles: car sides and lamps, windscreens, cargo boxes, bus windows, wheels, tracks.

Front faces show white lamps and windscreens, back faces red lamps: a camera can tell the heading.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.simulator.paint import BLACK, LAMP, RED, WHITE, Painter, box, canvas, glass, scaled
from pipeline.simulator.solids import Colour


def _paint(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 32, 64, rng, 2.0).astype(np.float32)
    image *= np.linspace(1.10, 0.88, 32)[:, None, None]  # sky above, road below
    return np.clip(image, 0, 255).astype(np.uint8)


def _car_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 192, rng)
    box(image, 0, 0.80, 1, 1, scaled(c, 0.45))
    for u in (0.36, 0.60):
        box(image, u, 0, u + 0.008, 0.85, scaled(c, 0.55))
    for u in (0.52, 0.76):
        box(image, u, 0.12, u + 0.035, 0.22, scaled(c, 0.5))
    for u in (0.2, 0.8):
        cv2.ellipse(image, (round(u * 192), 50), (17, 38), 0, 0, 360, BLACK, -1)
    box(image, 0, 0.10, 0.03, 0.40, LAMP)
    box(image, 0.975, 0.05, 1, 0.40, RED)
    return image


def _car_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 96, rng)
    box(image, 0.02, 0.06, 0.24, 0.40, LAMP)
    box(image, 0.76, 0.06, 0.98, 0.40, LAMP)
    box(image, 0.28, 0.14, 0.72, 0.46, scaled(BLACK, 1.4))
    box(image, 0.10, 0.70, 0.90, 1.0, BLACK)
    box(image, 0.38, 0.56, 0.62, 0.72, WHITE)
    return image


def _car_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 96, rng)
    box(image, 0.0, 0.0, 0.2, 0.36, RED)
    box(image, 0.8, 0.0, 1.0, 0.36, RED)
    box(image, 0.0, 0.68, 1.0, 1.0, scaled(c, 0.35))
    box(image, 0.37, 0.36, 0.63, 0.58, WHITE)
    return image


def _car_boot(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _paint(c, rng)
    box(image, 0, 0.45, 0.22, 1.0, RED)
    box(image, 0.78, 0.45, 1, 1.0, RED)
    return image


def _car_hatch(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _paint(c, rng)
    box(image, 0, 0.05, 0.13, 1.0, RED)
    box(image, 0.87, 0.05, 1, 1.0, RED)
    return image


def _glass_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = glass(40, 128, rng)
    for u0, u1 in ((0, 0.05), (0.47, 0.52), (0.80, 0.84), (0.96, 1)):
        box(image, u0, 0, u1, 1, c)
    box(image, 0, 0, 1, 0.12, c)
    return image


def _glass_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = glass(40, 64, rng)
    for u0, u1 in ((0, 0.06), (0.94, 1)):
        box(image, u0, 0, u1, 1, c)
    box(image, 0, 0, 1, 0.08, c)
    box(image, 0.44, 0.1, 0.56, 0.22, BLACK)
    return image


def _glass_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = glass(40, 64, rng)
    for u0, u1 in ((0, 0.12), (0.88, 1)):
        box(image, u0, 0, u1, 1, c)
    box(image, 0, 0, 1, 0.14, c)
    box(image, 0.38, 0.10, 0.62, 0.18, RED)
    return image


def _cab_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 96, 96, rng)
    window = glass(34, 56, rng)
    image[10:44, 12:68] = window
    box(image, 0.78, 0.05, 0.80, 0.95, scaled(c, 0.6))
    box(image, 0, 0.86, 1, 1, BLACK)
    box(image, 0.55, 0.50, 0.66, 0.54, BLACK)
    return image


def _cab_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 96, 96, rng)
    image[12:46, 6:90] = glass(34, 84, rng)
    box(image, 0.22, 0.54, 0.78, 0.74, BLACK)
    box(image, 0.02, 0.74, 0.22, 0.88, LAMP)
    box(image, 0.78, 0.74, 0.98, 0.88, LAMP)
    box(image, 0, 0.90, 1, 1, scaled(c, 0.4))
    return image


def _cab_glass(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 64, 64, rng)
    image[6:44, 6:58] = glass(38, 52, rng)
    return image


def _ribs(c: Colour, rng: np.random.Generator, pitch: int, depth: float) -> np.ndarray:
    image = canvas(c, 96, 256, rng).astype(np.float32)
    wave = 1 + depth * np.where((np.arange(256) % pitch) < 2, -1.0, np.where((np.arange(256) % pitch) < 4, 0.5, 0.0))
    return np.clip(image * wave[None, :, None], 0, 255).astype(np.uint8)


def _cargo_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _ribs(c, rng, 24, 0.10)
    box(image, 0.22, 0.22, 0.78, 0.62, scaled((c[2], c[0], c[1]), 0.75))
    box(image, 0.28, 0.34, 0.62, 0.46, WHITE)
    for i in range(0, 16, 2):
        box(image, i / 16, 0.93, (i + 1) / 16, 0.99, RED)
        box(image, (i + 1) / 16, 0.93, (i + 2) / 16, 0.99, WHITE)
    return image


def _trailer_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _ribs(c, rng, 16, 0.16)
    box(image, 0, 0.86, 1, 0.90, (60, 170, 220))
    for i in range(12):
        box(image, i / 12, 0.94, i / 12 + 0.03, 0.99, (40, 120, 235))
    return image


def _container(c: Colour, rng: np.random.Generator) -> np.ndarray:
    return _ribs(c, rng, 10, 0.30)


def _panel(c: Colour, rng: np.random.Generator) -> np.ndarray:
    return _ribs(c, rng, 64, 0.08)


def _cargo_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 96, 96, rng)
    for u in (0.49, 0.24, 0.74):
        box(image, u, 0.02, u + 0.02, 0.86, scaled(c, 0.5))
    for i in range(12):
        box(image, i / 12, 0.87, (i + 1) / 12, 0.93, (40, 190, 235) if i % 2 else (30, 30, 40))
    box(image, 0, 0.93, 1, 1, BLACK)
    box(image, 0.02, 0.93, 0.16, 1, RED)
    box(image, 0.84, 0.93, 0.98, 1, RED)
    return image


def _bed_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = _ribs(c, rng, 42, 0.35)
    box(image, 0, 0.0, 1, 0.12, scaled(c, 0.6))
    return image


def _chassis(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 32, 128, rng)
    for i in range(8):
        box(image, i / 8, 0.3, i / 8 + 0.03, 0.9, (40, 120, 235))
    return image


def _bus_side(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 96, 320, rng)
    image[14:50, 8:312] = glass(36, 304, rng)
    for i in range(1, 9):
        box(image, 0.025 + i * 0.105, 0.14, 0.035 + i * 0.105, 0.53, scaled(c, 0.5))
    box(image, 0, 0.62, 1, 0.70, WHITE)
    for u in (0.05, 0.50):
        box(image, u, 0.16, u + 0.075, 0.94, (96, 88, 80))
        box(image, u + 0.034, 0.16, u + 0.040, 0.94, BLACK)
    for u in (0.2, 0.77):
        cv2.ellipse(image, (round(u * 320), 98), (17, 16), 0, 0, 360, BLACK, -1)
    return image


def _bus_front(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 96, 80, rng)
    image[16:60, 4:76] = glass(44, 72, rng)
    box(image, 0.12, 0.04, 0.88, 0.15, BLACK)
    box(image, 0.2, 0.065, 0.8, 0.125, (40, 160, 245))
    box(image, 0.03, 0.78, 0.25, 0.88, LAMP)
    box(image, 0.75, 0.78, 0.97, 0.88, LAMP)
    box(image, 0, 0.93, 1, 1, BLACK)
    return image


def _bus_back(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 96, 80, rng)
    image[12:36, 10:70] = glass(24, 60, rng)
    for i in range(5):
        box(image, 0.2, 0.52 + i * 0.06, 0.8, 0.55 + i * 0.06, scaled(c, 0.35))
    box(image, 0.0, 0.55, 0.12, 0.85, RED)
    box(image, 0.88, 0.55, 1.0, 0.85, RED)
    box(image, 0, 0.92, 1, 1, BLACK)
    return image


def _half_wheel(low: bool) -> Painter:
    """Tyre and rim of one half of a wheel, stretched so that on a hexagon's side they look round."""

    def draw(c: Colour, rng: np.random.Generator) -> np.ndarray:
        image = np.empty((64, 64, 3), np.uint8)
        image[:] = c
        cv2.circle(image, (32, 32), 20, (150, 148, 146), -1)
        for angle in np.arange(5) * 2 * np.pi / 5:
            cv2.line(image, (32, 32), (int(32 + 19 * np.cos(angle)), int(32 + 19 * np.sin(angle))), (60, 60, 60), 4)
        return np.ascontiguousarray(image[32:] if low else image[:32])

    return draw


def _track(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 32, 128, rng)
    for i in range(7):
        cv2.circle(image, (10 + i * 18, 18), 7, (90, 95, 100), -1)
    image[::1, ::8] = scaled(c, 0.6)
    return image


def _digger(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 48, 96, rng, 6.0)
    box(image, 0.06, 0.25, 0.30, 0.85, scaled(c, 0.35))
    box(image, 0.45, 0.42, 0.9, 0.55, BLACK)
    return image


def _bucket(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 32, 96, rng, 8.0)
    for i in range(8):
        box(image, i / 8, 0.8, i / 8 + 0.05, 1, (150, 150, 150))
    return image


def _engine(c: Colour, rng: np.random.Generator) -> np.ndarray:
    image = canvas(c, 32, 48, rng, 18.0)
    for i in range(6):
        box(image, 0.1, 0.1 + i * 0.14, 0.9, 0.15 + i * 0.14, BLACK)
    return image


def _lamp(colour: Colour) -> Painter:
    def draw(c: Colour, rng: np.random.Generator) -> np.ndarray:
        image = canvas(c, 32, 64, rng)
        box(image, 0.38, 0.15, 0.62, 0.95, colour)
        return image

    return draw


PAINTERS: dict[str, Painter] = {
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
    "wheel_low": _half_wheel(True),
    "wheel_high": _half_wheel(False),
    "track": _track,
    "digger": _digger,
    "bucket": _bucket,
    "engine": _engine,
    "head_lamp": _lamp(LAMP),
    "tail_lamp": _lamp(RED),
}
