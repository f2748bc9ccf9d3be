"""Shapes of cars, trucks, buses, trailers and construction vehicles: several frusta each, with a front and a back.

Every builder takes the box (l, w, h) it may fill and returns parts inside it; `style` in [0, 1) picks the variant.
LiDAR can tell the heading from hoods, cabs, tongues and arms; cameras also from lamps, windscreens and windows.
"""

from __future__ import annotations

from pipeline.simulator.solids import Colour, Part, block

RUBBER: Colour = (32, 30, 30)
STEEL: Colour = (70, 68, 66)


def wheel(x: float, y: tuple[float, float], radius: float, kind: str = "wheel") -> list[Part]:
    """A wheel standing on the ground at x: two frusta that make a hexagon in profile, tyre and rim painted on the
    sides."""
    hub, narrow = (x - radius, x + radius), (x - 0.55 * radius, x + 0.55 * radius)
    low, high = f"{kind}_low", f"{kind}_high"
    return [
        block(narrow, y, (0.0, radius), RUBBER, top_x=hub, side=low, material="rubber"),
        block(hub, y, (radius, 2 * radius), RUBBER, top_x=narrow, side=high, material="rubber"),
    ]


def _wheels(l: float, w: float, radius: float, places: tuple[float, ...], thick: float = 0.22) -> list[Part]:
    """A wheel on each side at every place (x as a fraction of l)."""
    sides = ((w / 2 - thick, w / 2), (-w / 2, -w / 2 + thick))
    return [part for place in places for y in sides for part in wheel(place * l, y, radius)]


def car(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """Sedan, hatchback or van: hood in front of a sloped windscreen, red lamps behind."""
    half, waist, radius = l / 2, 0.56 * h, min(0.34, 0.2 * h)
    if style < 0.45:  # sedan: hood, cabin, boot
        cabin, roof = (-0.40 * l, 0.20 * l), (-0.26 * l, 0.03 * l)
        hood_top, boot = 0.20 * l, True
    elif style < 0.85:  # hatchback: the cabin reaches the back
        cabin, roof = (-half + 0.03, 0.22 * l), (-half + 0.22, 0.06 * l)
        hood_top, boot = 0.22 * l, False
    else:  # van: a short nose
        cabin, roof = (-half + 0.02, 0.36 * l), (-half + 0.08, 0.24 * l)
        hood_top, boot = 0.36 * l, False
        waist = 0.5 * h
    inset = 0.04 * w
    parts = [
        block(
            (-half, half),
            (-w / 2 + 0.02, w / 2 - 0.02),
            (0.17 * h, 0.42 * h),
            colour,
            side="car_side",
            front="car_front",
            back="car_back",
            top="none",  # under the shoulder; drawn, it would shine through the seam
        ),
        # shoulder: falls from the windscreen's foot to the nose
        block(
            (-half, half),
            (-w / 2 + 0.02, w / 2 - 0.02),
            (0.42 * h, waist),
            colour,
            top_x=(-half + 0.02, hood_top + 0.04),
            top_y=(-w / 2 + inset, w / 2 - inset),
            kind="paint",
            back="car_boot" if boot else "car_hatch",
        ),
        block(
            cabin,
            (-w / 2 + inset, w / 2 - inset),
            (waist, h),
            colour,
            top_x=roof,
            top_y=(-w / 2 + 3.4 * inset, w / 2 - 3.4 * inset),
            side="glass_side",
            front="glass_front",
            back="glass_back",
            top="paint",
            material="glass",
        ),
    ]
    return parts + _wheels(l, w, radius, (0.30, -0.30))


def truck(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A cab with windscreen in front of a tall cargo box, or of a low open bed (style >= 0.6)."""
    half = l / 2
    cab_length = min(2.1, 0.32 * l)
    cab_height = 0.80 * h if style < 0.6 else h
    cab_back = half - cab_length
    cargo: Colour = (205, 208, 206) if style < 0.35 else tuple(int(60 + 0.7 * c) for c in colour)  # type: ignore[assignment]
    parts = [
        block(
            (cab_back, half),
            (-w / 2 + 0.06, w / 2 - 0.06),
            (0.14 * h, cab_height),
            colour,
            top_x=(cab_back + 0.05, half - 0.28),
            side="cab_side",
            front="cab_front",
            kind="paint",
        ),
        block((-half, cab_back), (-0.32 * w, 0.32 * w), (0.13 * h, 0.24 * h), STEEL, material="metal"),
    ]
    floor = 0.26 * h
    if style < 0.6:
        parts.append(
            block(
                (-half, cab_back - 0.25),
                (-w / 2, w / 2),
                (floor, h),
                cargo,
                side="cargo_side",
                back="cargo_back",
                kind="panel",
            )
        )
    else:
        wall = floor + 0.22 * h
        parts += [
            block((-half, cab_back - 0.15), (-w / 2, w / 2), (floor, floor + 0.05 * h), STEEL, material="metal"),
            block((-half, cab_back - 0.15), (w / 2 - 0.09, w / 2), (floor, wall), cargo, side="bed_side"),
            block((-half, cab_back - 0.15), (-w / 2, -w / 2 + 0.09), (floor, wall), cargo, side="bed_side"),
            block((-half, -half + 0.09), (-w / 2, w / 2), (floor, wall), cargo, back="cargo_back", kind="panel"),
            # a load in the middle of the bed
            block(
                (-0.30 * l, 0.02 * l),
                (-0.3 * w, 0.3 * w),
                (floor, wall + 0.06 * h),
                (70, 105, 140),
                kind="crate",
            ),
        ]
    radius = min(0.52, 0.19 * h)
    return parts + _wheels(l, w, radius, (0.5 - 0.55 * cab_length / l, -0.36) + ((-0.22,) if l > 8 else ()), 0.3)


def bus(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """One long body: a tall raked windscreen in front, window bands, doors, an engine hump on the roof at the back."""
    half = l / 2
    body = 0.91 * h
    parts = [
        block(
            (-half, half),
            (-w / 2 + 0.02, w / 2 - 0.02),
            (0.10 * h, body),
            colour,
            top_x=(-half + 0.05, half - 0.38),
            side="bus_side",
            front="bus_front",
            back="bus_back",
            kind="paint",
        ),
        block(
            (-0.42 * l, -0.12 * l),
            (-0.36 * w, 0.36 * w),
            (body, h),
            (190, 190, 190),
            top_x=(-0.41 * l, -0.15 * l),
            kind="panel",
        ),
    ]
    if style > 0.5:
        parts.append(block((0.12 * l, 0.28 * l), (-0.3 * w, 0.3 * w), (body, h - 0.08), (190, 190, 190), kind="panel"))
    return parts + _wheels(l, w, 0.48, (0.30, -0.27), 0.28)


def trailer(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A box or flat bed on wheels at the back, with a narrow tongue in front and no cab."""
    half = l / 2
    tongue = min(1.6, 0.22 * l)
    nose, floor = half - tongue, min(1.15, 0.34 * h)
    parts = [
        # the tongue slopes from under the floor down to the coupling
        block(
            (half - 0.5, half),
            (-0.12, 0.12),
            (0.42, floor - 0.1),
            STEEL,
            top_x=(nose - 0.4, nose + 0.1),
            top_y=(-0.4, 0.4),
            material="metal",
        ),
        block((half - 0.35, half - 0.2), (-0.08, 0.08), (0.0, 0.46), STEEL, material="metal"),
        block((-half, nose), (-0.4 * w, 0.4 * w), (floor - 0.35, floor), STEEL, side="chassis", material="metal"),
    ]
    if style < 0.65:
        parts.append(
            block(
                (-half, nose),
                (-w / 2, w / 2),
                (floor, h),
                colour,
                side="trailer_side",
                back="cargo_back",
                front="panel",
                kind="panel",
            )
        )
    else:  # flat bed under a short container
        parts += [
            block((-half, nose), (-w / 2, w / 2), (floor, floor + 0.18), (60, 80, 110), side="bed_side"),
            block(
                (-0.38 * l, nose - 0.3),
                (-w / 2 + 0.04, w / 2 - 0.04),
                (floor + 0.18, h),
                colour,
                side="container",
                back="cargo_back",
                kind="container",
            ),
        ]
    return parts + _wheels(l, w, 0.46, (-0.40, -0.40 + 1.05 / max(l, 4.0)), 0.3)


def construction_vehicle(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """An excavator on tracks with boom, stick and bucket ahead, or a wheel loader with a wide bucket (style >=
    0.55)."""
    half = l / 2
    glass: Colour = (70, 62, 55)
    if style < 0.55:
        body_front = -half + 0.58 * l
        return [
            block((-half, body_front), (w / 2 - 0.55, w / 2), (0.0, 0.30 * h), RUBBER, side="track", material="rubber"),
            block(
                (-half, body_front), (-w / 2, -w / 2 + 0.55), (0.0, 0.30 * h), RUBBER, side="track", material="rubber"
            ),
            block((-half, body_front - 0.15), (-0.44 * w, 0.44 * w), (0.32 * h, 0.62 * h), colour, kind="digger"),
            block(
                (body_front - 0.34 * l, body_front),
                (0.06 * w, 0.44 * w),
                (0.62 * h, h),
                colour,
                top_x=(body_front - 0.33 * l, body_front - 0.25),
                side="cab_glass",
                front="cab_glass",
                back="cab_glass",
                kind="paint",
                material="glass",
            ),
            # boom up and forward, then the stick down to the bucket
            block(
                (body_front - 0.2, body_front + 0.15),
                (-0.26 * w, -0.10 * w),
                (0.45 * h, 0.95 * h),
                colour,
                top_x=(half - 0.27 * l, half - 0.17 * l),
                kind="digger",
            ),
            block(
                (half - 0.10 * l, half - 0.02 * l),
                (-0.25 * w, -0.11 * w),
                (0.22 * h, 0.95 * h),
                colour,
                top_x=(half - 0.27 * l, half - 0.17 * l),
                kind="digger",
            ),
            block(
                (half - 0.19 * l, half),
                (-0.36 * w, 0.0),
                (0.02, 0.26 * h),
                STEEL,
                top_x=(half - 0.10 * l, half),
                material="metal",
            ),
        ]
    return [
        block(
            (-half, 0.05 * l),
            (-0.42 * w, 0.42 * w),
            (0.26 * h, 0.60 * h),
            colour,
            top_x=(-half + 0.3, 0.05 * l),
            kind="digger",
        ),
        block(
            (-0.14 * l, 0.12 * l),
            (-0.32 * w, 0.32 * w),
            (0.60 * h, h),
            colour,
            top_x=(-0.12 * l, 0.07 * l),
            side="cab_glass",
            front="cab_glass",
            back="cab_glass",
            kind="paint",
            material="glass",
        ),
        block((0.05 * l, 0.30 * l), (-0.30 * w, 0.30 * w), (0.24 * h, 0.50 * h), colour, kind="digger"),
        block((0.20 * l, 0.38 * l), (-0.3 * w, -0.18 * w), (0.35 * h, 0.48 * h), glass, top_x=(0.10 * l, 0.20 * l)),
        block((0.20 * l, 0.38 * l), (0.18 * w, 0.3 * w), (0.35 * h, 0.48 * h), glass, top_x=(0.10 * l, 0.20 * l)),
        block((0.34 * l, half), (-w / 2, w / 2), (0.02, 0.38 * h), STEEL, top_x=(0.34 * l, 0.42 * l), kind="bucket"),
        *_wheels(l, w, 0.27 * h, (-0.28, 0.20), 0.45),
    ]
