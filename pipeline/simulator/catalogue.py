"""The ten detection classes as simulated things: category, size statistics, colours, shape, attribute.

Sizes are drawn from the means and spreads measured on nuScenes mini; the shape fills its box less a small margin, as
annotators leave one, so that range noise does not push a thing's own points out of its box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.classes import BICYCLE_RACK
from pipeline.simulator import people, props, vehicles
from pipeline.simulator.solids import Colour, Mesh, Part, mesh, turned

MARGIN_M = 0.05  # shape to box wall, 2.5 times the range noise
FLOOR_M = 0.03  # a box starts this far above the ground, else noisy ground points would count as the thing's


@dataclass(frozen=True)
class ClassFigures:
    """Means and spreads of (w, l, h) in metres, and the bounds that keep a shape buildable."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]
    colours: tuple[Colour, ...]


_CAR_COLOURS: tuple[Colour, ...] = (
    (225, 225, 222),
    (190, 192, 194),
    (120, 122, 125),
    (45, 45, 48),
    (40, 40, 170),
    (150, 70, 35),
    (70, 60, 50),
    (200, 205, 215),
    (90, 60, 40),
    (60, 90, 70),
    (60, 150, 210),
    (95, 100, 105),
)
_TRUCK_COLOURS: tuple[Colour, ...] = (
    (215, 215, 212),
    (150, 80, 40),
    (50, 60, 170),
    (60, 130, 90),
    (70, 160, 200),
    (120, 120, 120),
)
_BUS_COLOURS: tuple[Colour, ...] = ((60, 60, 185), (70, 150, 80), (205, 205, 205), (160, 95, 40), (70, 170, 215))
_TRAILER_COLOURS: tuple[Colour, ...] = ((200, 202, 204), (150, 90, 50), (60, 70, 150), (90, 120, 70), (110, 112, 115))
_DIGGER_COLOURS: tuple[Colour, ...] = ((30, 170, 225), (25, 130, 225), (40, 185, 205))
_CLOTHES: tuple[Colour, ...] = (
    (60, 55, 170),
    (170, 110, 60),
    (200, 200, 205),
    (50, 50, 55),
    (70, 130, 70),
    (120, 80, 120),
    (80, 170, 200),
    (140, 150, 160),
)
_CYCLE_COLOURS: tuple[Colour, ...] = ((40, 40, 170), (45, 45, 45), (150, 80, 40), (60, 140, 60), (190, 190, 190))

FIGURES: dict[str, ClassFigures] = {
    "car": ClassFigures((1.91, 4.62, 1.70), (0.17, 0.37, 0.22), _CAR_COLOURS),
    "truck": ClassFigures((2.35, 6.60, 2.69), (0.33, 1.59, 0.68), _TRUCK_COLOURS),
    "bus": ClassFigures((2.93, 11.1, 3.71), (0.24, 1.86, 0.60), _BUS_COLOURS),
    "trailer": ClassFigures((2.28, 10.28, 3.71), (0.08, 5.63, 0.26), _TRAILER_COLOURS),
    "construction_vehicle": ClassFigures((2.59, 5.56, 2.42), (0.37, 1.55, 0.34), _DIGGER_COLOURS),
    "pedestrian": ClassFigures((0.67, 0.72, 1.76), (0.11, 0.17, 0.13), _CLOTHES),
    "motorcycle": ClassFigures((0.68, 1.98, 1.46), (0.20, 0.36, 0.20), _CYCLE_COLOURS),
    "bicycle": ClassFigures((0.64, 1.82, 1.40), (0.12, 0.13, 0.34), _CYCLE_COLOURS),
    "traffic_cone": ClassFigures((0.47, 0.44, 0.79), (0.18, 0.07, 0.16), ((30, 90, 235), (35, 75, 220))),
    "barrier": ClassFigures((2.33, 0.60, 1.05), (0.51, 0.11, 0.10), ((45, 70, 205), (205, 208, 210), (40, 120, 230))),
    "bicycle_rack": ClassFigures((1.75, 5.0, 1.2), (0.05, 1.5, 0.05), _CYCLE_COLOURS),
}

_CATEGORY = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
    "bicycle_rack": BICYCLE_RACK,
}
# lower bounds of (w, l, h): a bicycle with no rider may be low, a standing adult not
_LEAST = {
    "pedestrian": (0.45, 0.42, 1.45),
    "motorcycle": (0.45, 1.5, 1.05),
    "bicycle": (0.42, 1.5, 0.95),
    "traffic_cone": (0.3, 0.3, 0.5),
}


@dataclass(frozen=True)
class Model:
    """One instance's looks: class name, nuScenes category and attribute name (None where it has none), size (w, l, h)
    of its box rounded as in the tables, shape, and brightness factor of its colours."""

    name: str
    category: str | None
    attribute: str | None
    size: tuple[float, float, float]
    shape: Mesh
    brightness: float
    floor_m: float = FLOOR_M


def draw_model(name: str, state: str, rng: np.random.Generator) -> Model:
    """A random instance of a class in a state: moving, stopped, parked (vehicles, cycles), moving, standing, sitting
    (people).

    Moving or stopped cycles carry a rider, parked ones do not. Static props take any state.
    """
    figures = FIGURES[name]
    w, l, h = _draw_size(name, state, rng)
    colour = figures.colours[rng.integers(len(figures.colours))]
    style = float(rng.random())
    inner = (l - 2 * MARGIN_M, w - 2 * MARGIN_M, h - FLOOR_M)
    if name == "bicycle_rack":
        inner = (l - 0.6, w, h)
    parts = _build(name, state, inner, colour, style)
    category, attribute = _category(name, style, h), _attribute(name, state)
    raised = [turned(part, 0.0, (0.0, 0.0, FLOOR_M)) for part in parts]
    return Model(name, category, attribute, (w, l, h), mesh(raised), float(rng.uniform(0.82, 1.15)))


def _draw_size(name: str, state: str, rng: np.random.Generator) -> tuple[float, float, float]:
    figures = FIGURES[name]
    mean, spread = np.array(figures.mean), np.array(figures.spread)
    common = rng.normal()  # long vehicles are also wide and tall
    draw = mean + spread * np.clip(0.6 * common + 0.8 * rng.normal(size=3), -1.9, 1.9)
    if name == "trailer":
        draw[1] = np.clip(draw[1], 4.5, 15.0)
    if name in ("motorcycle", "bicycle"):
        # the annotated height follows the rider
        draw[2] = rng.uniform(1.5, 1.85) if state in ("moving", "stopped") else rng.uniform(0.98, 1.25)
    if name == "pedestrian" and state == "sitting":
        draw[2] = rng.uniform(1.2, 1.4)
    elif name in _LEAST:
        draw = np.maximum(draw, _LEAST[name])
    if name == "truck":
        draw = np.maximum(draw, (1.9, 4.6, 1.9))
    return float(round(draw[0], 3)), float(round(draw[1], 3)), float(round(draw[2], 3))


def _build(name: str, state: str, box: tuple[float, float, float], colour: Colour, style: float) -> list[Part]:
    rider = state in ("moving", "stopped")
    if name == "pedestrian":
        return people.pedestrian(*box, colour, style, walking=state == "moving", sitting=state == "sitting")
    if name == "motorcycle":
        return people.motorcycle(*box, colour, style, rider=rider)
    if name == "bicycle":
        return people.bicycle(*box, colour, style, rider=rider)
    builders = {
        "car": vehicles.car,
        "truck": vehicles.truck,
        "bus": vehicles.bus,
        "trailer": vehicles.trailer,
        "construction_vehicle": vehicles.construction_vehicle,
        "traffic_cone": props.traffic_cone,
        "barrier": props.barrier,
        "bicycle_rack": props.bicycle_rack,
    }
    return builders[name](*box, colour, style)


def _category(name: str, style: float, height: float) -> str:
    if name == "pedestrian":
        return "human.pedestrian.construction_worker" if style > 0.9 else "human.pedestrian.adult"
    return _CATEGORY[name]


def _attribute(name: str, state: str) -> str | None:
    if name in ("traffic_cone", "barrier", "bicycle_rack"):
        return None
    if name == "pedestrian":
        return "pedestrian." + {"moving": "moving", "standing": "standing", "sitting": "sitting_lying_down"}[state]
    if name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if state in ("moving", "stopped") else "cycle.without_rider"
    return f"vehicle.{state}"
