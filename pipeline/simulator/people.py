"""Shapes of people and of cycles with and without rider.

As in `vehicles`: builders take the box they may fill and return parts inside it. Legs, rucksacks, handlebars and arms
give the heading away.
"""

from __future__ import annotations

from pipeline.simulator.solids import Colour, Part, block
from pipeline.simulator.vehicles import RUBBER, wheel

SKIN: Colour = (120, 150, 200)
HAIR: Colour = (30, 34, 42)
METAL: Colour = (110, 108, 105)
_TROUSERS: tuple[Colour, ...] = ((70, 50, 38), (40, 40, 42), (110, 120, 130), (60, 72, 95))


def pedestrian(
    l: float, w: float, h: float, colour: Colour, style: float, *, walking: bool, sitting: bool
) -> list[Part]:
    """Legs (apart when walking) with feet ahead, torso, bent arms, a head with a face; some carry a rucksack behind."""
    trousers = _TROUSERS[int(style * 97) % 4]
    hip = 0.36 * h if sitting else 0.47 * h
    shoulder = 0.78 * h if sitting else 0.82 * h
    stride = 0.22 * l if walking else 0.0
    parts = _seated_legs(l, w, hip, trousers) if sitting else _standing_legs(l, w, hip, stride, trousers)
    clothes = "vest" if style > 0.9 else "cloth"
    torso_x, torso_y = (-0.20 * l, 0.16 * l), (-0.30 * w, 0.30 * w)
    parts.append(block(torso_x, torso_y, (hip, shoulder), colour, top_y=(-0.35 * w, 0.35 * w), kind=clothes))
    elbow = hip + 0.35 * (shoulder - hip)
    for side, swing in ((1, -0.5 * stride), (-1, 0.5 * stride)):
        y = (min(side * 0.33 * w, side * 0.47 * w), max(side * 0.33 * w, side * 0.47 * w))
        upper = (swing - 0.12 * l, swing + 0.06 * l)
        parts.append(block(upper, y, (elbow, shoulder - 0.02), colour, top_x=(-0.12 * l, 0.06 * l), kind="cloth"))
        parts.append(block((swing - 0.12 * l, swing + 0.36 * l), y, (elbow - 0.06 * h, elbow), colour, kind="cloth"))
    head = block(
        (-0.12 * l, 0.20 * l), (-0.14 * w, 0.14 * w), (shoulder + 0.03 * h, h), HAIR, top_y=(-0.11 * w, 0.11 * w),
        front="face", side="head_side", material="cloth",
    )  # fmt: skip
    parts.append(head)
    if 0.35 < style < 0.7:
        bag: Colour = (60, 40, 120) if style < 0.5 else (50, 90, 60)
        parts.append(
            block(
                (-0.45 * l, -0.20 * l), (-0.22 * w, 0.22 * w), (hip + 0.06 * h, shoulder - 0.03 * h), bag, kind="cloth"
            )
        )
    return parts


def _standing_legs(l: float, w: float, hip: float, stride: float, colour: Colour) -> list[Part]:
    parts = []
    for y, way in (((0.03 * w, 0.25 * w), stride), ((-0.25 * w, -0.03 * w), -stride)):
        shin, thigh = (way - 0.13 * l, way + 0.11 * l), (-0.15 * l, 0.13 * l)
        parts.append(block(shin, y, (0.0, hip), colour, top_x=thigh, kind="cloth"))
        parts.append(block((way - 0.13 * l, way + 0.26 * l), y, (0.0, 0.08), (40, 40, 45), material="rubber"))
    return parts


def _seated_legs(l: float, w: float, seat: float, colour: Colour) -> list[Part]:
    """Thighs forward, shins down, on a bench."""
    bench: Colour = (60, 80, 100)
    return [
        block((-0.20 * l, 0.42 * l), (0.04 * w, 0.24 * w), (seat - 0.07, seat + 0.08), colour, kind="cloth"),
        block((-0.20 * l, 0.42 * l), (-0.24 * w, -0.04 * w), (seat - 0.07, seat + 0.08), colour, kind="cloth"),
        block((0.26 * l, 0.42 * l), (-0.24 * w, 0.24 * w), (0.0, seat), colour, kind="cloth"),
        block((-0.45 * l, 0.1 * l), (-0.45 * w, 0.45 * w), (seat - 0.16, seat - 0.08), bench, kind="crate"),
    ]


def _rider(l: float, w: float, seat: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A rider who leans forward: torso, arms to the handlebar, legs down, helmet."""
    helmet: Colour = [(60, 60, 200), (220, 220, 220), (40, 40, 40)][int(style * 31) % 3]
    trousers: Colour = (60, 45, 40)
    shoulder = seat + 0.62 * (h - seat)
    return [
        block(
            (-0.16 * l, 0.00 * l),
            (-0.26 * w, 0.26 * w),
            (seat, shoulder),
            colour,
            top_x=(-0.06 * l, 0.10 * l),
            top_y=(-0.34 * w, 0.34 * w),
            kind="cloth",
        ),
        block(
            (0.14 * l, 0.24 * l),
            (-0.42 * w, 0.42 * w),
            (seat + 0.08, shoulder - 0.02),
            colour,
            top_x=(-0.01 * l, 0.09 * l),
            top_y=(-0.38 * w, 0.38 * w),
            kind="cloth",
        ),
        block(
            (0.00 * l, 0.11 * l),
            (-0.34 * w, 0.34 * w),
            (0.28 * seat, seat),
            trousers,
            top_x=(-0.12 * l, 0.02 * l),
            kind="cloth",
        ),
        block(
            (-0.02 * l, 0.12 * l), (-0.20 * w, 0.20 * w), (shoulder + 0.03, h), helmet, front="face", material="cloth"
        ),
    ]


def motorcycle(l: float, w: float, h: float, colour: Colour, style: float, *, rider: bool) -> list[Part]:
    """Two thick wheels, engine and tank, seat low at the back, handlebar and lamp high in front."""
    half = l / 2
    bar = min(1.12, 0.72 * h) if rider else h
    seat = 0.72 * bar
    radius = min(0.31, 0.16 * l)
    parts = [
        *wheel(half - radius, (-0.09, 0.09), radius),
        *wheel(-half + radius, (-0.10, 0.10), radius),
        block((-0.20 * l, 0.18 * l), (-0.22 * w, 0.22 * w), (0.22, 0.58 * bar), METAL, kind="engine"),
        block(
            (-0.05 * l, 0.24 * l),
            (-0.24 * w, 0.24 * w),
            (0.58 * bar, 0.82 * bar),
            colour,
            top_x=(-0.02 * l, 0.16 * l),
            kind="paint",
        ),
        block(
            (-half + 0.06, -0.03 * l),
            (-0.2 * w, 0.2 * w),
            (0.60 * bar, seat),
            (30, 30, 34),
            top_x=(-half + 0.02, -0.05 * l),
            back="tail_lamp",
            material="rubber",
        ),
        block(
            (0.20 * l, 0.30 * l),
            (-w / 2, w / 2),
            (0.82 * bar, bar),
            (45, 45, 45),
            top_x=(0.15 * l, 0.24 * l),
            front="head_lamp",
            material="metal",
        ),
        block(
            (0.29 * l, 0.36 * l),
            (-0.1 * w, 0.1 * w),
            (0.4, 0.84 * bar),
            METAL,
            top_x=(0.19 * l, 0.26 * l),
            material="metal",
        ),
    ]
    return parts + (_rider(l, w, seat, h, _jacket(style), style) if rider else [])


def bicycle(l: float, w: float, h: float, colour: Colour, style: float, *, rider: bool) -> list[Part]:
    """Two thin spoked wheels, a thin frame, saddle behind, a wide handlebar in front."""
    half = l / 2
    bar = min(1.05, 0.66 * h) if rider else h
    seat = 0.90 * bar
    radius = min(0.34, 0.19 * l)
    hub = radius
    parts = [
        block((half - 2 * radius, half), (-0.035, 0.035), (0.0, 2 * radius), RUBBER, kind="none", side="spokes"),
        block((-half, -half + 2 * radius), (-0.035, 0.035), (0.0, 2 * radius), RUBBER, kind="none", side="spokes"),
        # down tube, seat tube, top tube, fork
        block(
            (-0.09 * l, -0.04 * l), (-0.04, 0.04), (0.26, 0.78 * bar), colour, top_x=(0.22 * l, 0.27 * l), kind="paint"
        ),
        block(
            (-0.09 * l, -0.05 * l),
            (-0.04, 0.04),
            (0.26, seat - 0.06),
            colour,
            top_x=(-0.17 * l, -0.13 * l),
            kind="paint",
        ),
        block((-0.16 * l, 0.24 * l), (-0.035, 0.035), (0.70 * bar, 0.76 * bar), colour, kind="paint"),
        block(
            (half - radius - 0.03, half - radius + 0.03),
            (-0.05, 0.05),
            (hub, bar - 0.05),
            METAL,
            top_x=(0.22 * l, 0.27 * l),
            material="metal",
        ),
        block((-0.22 * l, -0.10 * l), (-0.12 * w, 0.12 * w), (seat - 0.07, seat), (30, 30, 34), material="rubber"),
        block((0.20 * l, 0.26 * l), (-w / 2, w / 2), (bar - 0.08, bar), (45, 45, 45), material="metal"),
    ]
    return parts + (_rider(l, w, seat, h, _jacket(style), style) if rider else [])


def _jacket(style: float) -> Colour:
    return [(60, 60, 190), (150, 90, 40), (40, 150, 160), (60, 130, 60), (45, 45, 50), (190, 190, 200)][
        int(style * 53) % 6
    ]
