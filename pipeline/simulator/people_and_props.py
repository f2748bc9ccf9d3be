"""Shapes of people, cycles with and without rider, cones, barriers, bicycle racks, and of the clutter nobody labels.

As in `vehicles`: builders take the box they may fill and return parts inside it. Legs, rucksacks, handlebars and arms give
the heading away.
"""

from __future__ import annotations

from pipeline.simulator.solids import Colour, Part, block

SKIN: Colour = (120, 150, 200)
HAIR: Colour = (30, 34, 42)
METAL: Colour = (110, 108, 105)
RUBBER: Colour = (32, 30, 30)


def pedestrian(l: float, w: float, h: float, colour: Colour, style: float, *, walking: bool, sitting: bool) -> list[Part]:
    """Legs (apart when walking), torso, arms, head with a face in front; some carry a rucksack behind."""
    legs: Colour = [(70, 50, 38), (40, 40, 42), (110, 120, 130), (60, 72, 95)][int(style * 97) % 4]
    stride = 0.26 * l if walking else 0.0
    arm = 0.10 * w
    side = 0.40 * w
    if sitting:
        seat = 0.36 * h
        lower = [
            block((-0.20 * l, 0.42 * l), (0.04 * w, 0.24 * w), (seat - 0.07, seat + 0.08), colour=legs, kind="cloth", material="cloth"),
            block((-0.20 * l, 0.42 * l), (-0.24 * w, -0.04 * w), (seat - 0.07, seat + 0.08), colour=legs, kind="cloth", material="cloth"),
            block((0.26 * l, 0.42 * l), (-0.24 * w, 0.24 * w), (0.0, seat), colour=legs, kind="cloth", material="cloth"),
            block((-0.45 * l, 0.1 * l), (-0.45 * w, 0.45 * w), (seat - 0.16, seat - 0.08), colour=(60, 80, 100), kind="crate", material="wood"),
        ]  # fmt: skip
        hip, stride = seat, 0.0
    else:
        hip = 0.47 * h
        lower = [
            block(
                (stride - 0.12 * l, stride + 0.16 * l), (0.03 * w, 0.25 * w), (0.0, hip), top_x=(-0.12 * l, 0.12 * l), colour=legs,
                kind="cloth", material="cloth",
            ),
            block(
                (-stride - 0.12 * l, -stride + 0.16 * l), (-0.25 * w, -0.03 * w), (0.0, hip), top_x=(-0.12 * l, 0.12 * l), colour=legs,
                kind="cloth", material="cloth",
            ),
        ]  # fmt: skip
    shoulder = hip + (0.82 - 0.47) * h if not sitting else 0.78 * h
    swing = 0.5 * stride
    upper = [
        block(
            (-0.17 * l, 0.17 * l), (-0.28 * w, 0.28 * w), (hip, shoulder), top_y=(-0.34 * w, 0.34 * w), colour=colour,
            kind="vest" if style > 0.9 else "cloth", material="cloth",
        ),
        block((-swing - 0.08 * l, -swing + 0.1 * l), (side - arm, side + 0.5 * arm), (hip - 0.02 * h, shoulder - 0.02),
              top_x=(-0.08 * l, 0.1 * l), colour=colour, kind="cloth", material="cloth"),
        block((swing - 0.08 * l, swing + 0.1 * l), (-side - 0.5 * arm, -side + arm), (hip - 0.02 * h, shoulder - 0.02),
              top_x=(-0.08 * l, 0.1 * l), colour=colour, kind="cloth", material="cloth"),
        block((-0.12 * l, 0.18 * l), (-0.14 * w, 0.14 * w), (shoulder + 0.03 * h, h), top_y=(-0.11 * w, 0.11 * w), colour=HAIR,
              front="face", side="head_side", material="cloth"),
    ]  # fmt: skip
    if 0.35 < style < 0.7:
        upper.append(
            block((-0.42 * l, -0.17 * l), (-0.22 * w, 0.22 * w), (hip + 0.06 * h, shoulder - 0.03 * h),
                  colour=(60, 40, 120) if style < 0.5 else (50, 90, 60), kind="cloth", material="cloth")
        )  # fmt: skip
    return lower + upper


def _rider(l: float, w: float, seat: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A rider who leans forward: torso, arms to the handlebar, legs down, helmet."""
    helmet: Colour = [(60, 60, 200), (220, 220, 220), (40, 40, 40)][int(style * 31) % 3]
    trousers: Colour = (60, 45, 40)
    shoulder = seat + 0.62 * (h - seat)
    return [
        block((-0.16 * l, 0.00 * l), (-0.26 * w, 0.26 * w), (seat, shoulder), top_x=(-0.06 * l, 0.10 * l),
              top_y=(-0.34 * w, 0.34 * w), colour=colour, kind="cloth", material="cloth"),
        block((0.14 * l, 0.24 * l), (-0.42 * w, 0.42 * w), (seat + 0.08, shoulder - 0.02), top_x=(-0.01 * l, 0.09 * l),
              top_y=(-0.38 * w, 0.38 * w), colour=colour, kind="cloth", material="cloth"),
        block((0.00 * l, 0.11 * l), (-0.34 * w, 0.34 * w), (0.28 * seat, seat), top_x=(-0.12 * l, 0.02 * l), colour=trousers,
              kind="cloth", material="cloth"),
        block((-0.02 * l, 0.12 * l), (-0.20 * w, 0.20 * w), (shoulder + 0.03, h), colour=helmet, front="face", material="cloth"),
    ]  # fmt: skip


def motorcycle(l: float, w: float, h: float, colour: Colour, style: float, *, rider: bool) -> list[Part]:
    """Two thick wheels, engine and tank, seat low at the back, handlebar and lamp high in front."""
    half = l / 2
    bar = min(1.12, 0.72 * h) if rider else h
    seat = 0.72 * bar
    radius = min(0.31, 0.16 * l)
    parts = [
        block((half - 2 * radius, half), (-0.09, 0.09), (0.0, 2 * radius), colour=RUBBER, side="moto_wheel", material="rubber"),
        block((-half, -half + 2 * radius), (-0.10, 0.10), (0.0, 2 * radius), colour=RUBBER, side="moto_wheel", material="rubber"),
        block((-0.20 * l, 0.18 * l), (-0.22 * w, 0.22 * w), (0.22, 0.58 * bar), colour=METAL, kind="engine", material="metal"),
        block((-0.05 * l, 0.24 * l), (-0.24 * w, 0.24 * w), (0.58 * bar, 0.82 * bar), top_x=(-0.02 * l, 0.16 * l), colour=colour, kind="paint"),
        block((-half + 0.06, -0.03 * l), (-0.2 * w, 0.2 * w), (0.60 * bar, seat), top_x=(-half + 0.02, -0.05 * l), colour=(30, 30, 34),
              back="tail_lamp", material="rubber"),
        block((0.20 * l, 0.30 * l), (-w / 2, w / 2), (0.82 * bar, bar), top_x=(0.15 * l, 0.24 * l), colour=(45, 45, 45),
              front="head_lamp", material="metal"),
        block((0.29 * l, 0.36 * l), (-0.1 * w, 0.1 * w), (0.4, 0.84 * bar), top_x=(0.19 * l, 0.26 * l), colour=METAL, material="metal"),
    ]  # fmt: skip
    return parts + (_rider(l, w, seat, h, _jacket(style), style) if rider else [])


def bicycle(l: float, w: float, h: float, colour: Colour, style: float, *, rider: bool) -> list[Part]:
    """Two thin spoked wheels, a thin frame, saddle behind, a wide handlebar in front."""
    half = l / 2
    bar = min(1.05, 0.66 * h) if rider else h
    seat = 0.90 * bar
    radius = min(0.34, 0.19 * l)
    hub = radius
    parts = [
        block((half - 2 * radius, half), (-0.035, 0.035), (0.0, 2 * radius), colour=RUBBER, side="spokes", material="spokes"),
        block((-half, -half + 2 * radius), (-0.035, 0.035), (0.0, 2 * radius), colour=RUBBER, side="spokes", material="spokes"),
        # down tube, seat tube, top tube, fork
        block((-0.09 * l, -0.04 * l), (-0.04, 0.04), (0.26, 0.78 * bar), top_x=(0.22 * l, 0.27 * l), colour=colour, kind="paint"),
        block((-0.09 * l, -0.05 * l), (-0.04, 0.04), (0.26, seat - 0.06), top_x=(-0.17 * l, -0.13 * l), colour=colour, kind="paint"),
        block((-0.16 * l, 0.24 * l), (-0.035, 0.035), (0.70 * bar, 0.76 * bar), colour=colour, kind="paint"),
        block((half - radius - 0.03, half - radius + 0.03), (-0.05, 0.05), (hub, bar - 0.05), top_x=(0.22 * l, 0.27 * l), colour=METAL,
              material="metal"),
        block((-0.22 * l, -0.10 * l), (-0.12 * w, 0.12 * w), (seat - 0.07, seat), colour=(30, 30, 34), material="rubber"),
        block((0.20 * l, 0.26 * l), (-w / 2, w / 2), (bar - 0.08, bar), colour=(45, 45, 45), material="metal"),
    ]  # fmt: skip
    return parts + (_rider(l, w, seat, h, _jacket(style), style) if rider else [])


def _jacket(style: float) -> Colour:
    return [(60, 60, 190), (150, 90, 40), (40, 150, 160), (60, 130, 60), (45, 45, 50), (190, 190, 200)][int(style * 53) % 6]


def traffic_cone(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A square foot under an orange cone with white bands."""
    top = 0.12
    return [
        block((-l / 2, l / 2), (-w / 2, w / 2), (0.0, 0.06), colour=(30, 40, 60) if style > 0.5 else colour, material="rubber"),
        block((-0.36 * l, 0.36 * l), (-0.36 * w, 0.36 * w), (0.06, h), top_x=(-top * l, top * l), top_y=(-top * w, top * w),
              colour=colour, kind="cone", material="retro"),
    ]  # fmt: skip


def barrier(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A water-filled barrier: wide foot, narrow wall (l is its thickness, w runs along the row); or a striped fence."""
    if style < 0.75:
        return [
            block((-l / 2, l / 2), (-w / 2, w / 2), (0.0, 0.34 * h), top_x=(-0.36 * l, 0.36 * l), colour=colour, kind="plastic", material="plastic"),
            block((-0.30 * l, 0.30 * l), (-w / 2 + 0.03, w / 2 - 0.03), (0.34 * h, h), top_x=(-0.18 * l, 0.18 * l), colour=colour,
                  kind="plastic", material="plastic"),
        ]  # fmt: skip
    return [
        block((-0.06, 0.06), (-w / 2, w / 2), (0.62 * h, h), colour=colour, kind="stripes", material="retro"),
        block((-0.05, 0.05), (-w / 2, w / 2), (0.25 * h, 0.45 * h), colour=colour, kind="stripes", material="retro"),
        block((-l / 2, l / 2), (-w / 2 + 0.1, -w / 2 + 0.2), (0.0, 0.62 * h), top_x=(-0.06, 0.06), colour=METAL, material="metal"),
        block((-l / 2, l / 2), (w / 2 - 0.2, w / 2 - 0.1), (0.0, 0.62 * h), top_x=(-0.06, 0.06), colour=METAL, material="metal"),
    ]  # fmt: skip


def bicycle_rack(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A row of hoops, some with a bicycle in them (part of the rack: the data set labels the rack as one)."""
    parts: list[Part] = []
    count = max(2, int(l // 0.9))
    for i in range(count):
        x = -l / 2 + (i + 0.5) * l / count
        parts.append(block((x - 0.03, x + 0.03), (-0.3, 0.3), (0.0, 0.75), colour=METAL, side="plain", material="metal"))
        if (i * 7 + int(style * 10)) % 3:
            for y in (-0.52, 0.52):
                parts.append(
                    block((x + 0.10, x + 0.16), (y - 0.32, y + 0.32), (0.0, 0.64), colour=RUBBER, front="spokes", back="spokes",
                          material="spokes")
                )  # fmt: skip
            parts.append(block((x + 0.09, x + 0.17), (-0.45, 0.4), (0.55, 0.68), colour=colour, kind="paint"))
            parts.append(block((x - 0.12, x + 0.38), (0.40, 0.46), (0.88, 0.96), colour=(45, 45, 45), material="metal"))
    return parts


