"""Shapes of cones, barriers and bicycle racks; builders as in `vehicles`."""

from __future__ import annotations

from pipeline.simulator.people import METAL
from pipeline.simulator.solids import Colour, Part, block
from pipeline.simulator.vehicles import RUBBER


def traffic_cone(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A square foot under an orange cone with white bands."""
    top = 0.12
    return [
        block(
            (-l / 2, l / 2), (-w / 2, w / 2), (0.0, 0.06), (30, 40, 60) if style > 0.5 else colour, material="rubber"
        ),
        block(
            (-0.36 * l, 0.36 * l),
            (-0.36 * w, 0.36 * w),
            (0.06, h),
            colour,
            top_x=(-top * l, top * l),
            top_y=(-top * w, top * w),
            kind="cone",
        ),
    ]


def barrier(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A water-filled barrier: wide foot, narrow wall (l is its thickness, w runs along the row); or a striped fence."""
    if style < 0.75:
        return [
            block(
                (-l / 2, l / 2), (-w / 2, w / 2), (0.0, 0.34 * h), colour, top_x=(-0.36 * l, 0.36 * l), kind="plastic"
            ),
            block(
                (-0.30 * l, 0.30 * l),
                (-w / 2 + 0.03, w / 2 - 0.03),
                (0.34 * h, h),
                colour,
                top_x=(-0.18 * l, 0.18 * l),
                kind="plastic",
            ),
        ]
    return [
        block((-0.06, 0.06), (-w / 2, w / 2), (0.62 * h, h), colour, kind="stripes"),
        block((-0.05, 0.05), (-w / 2, w / 2), (0.25 * h, 0.45 * h), colour, kind="stripes"),
        block(
            (-l / 2, l / 2), (-w / 2 + 0.1, -w / 2 + 0.2), (0.0, 0.62 * h), METAL, top_x=(-0.06, 0.06), material="metal"
        ),
        block(
            (-l / 2, l / 2), (w / 2 - 0.2, w / 2 - 0.1), (0.0, 0.62 * h), METAL, top_x=(-0.06, 0.06), material="metal"
        ),
    ]


def bicycle_rack(l: float, w: float, h: float, colour: Colour, style: float) -> list[Part]:
    """A row of hoops, some with a bicycle in them (part of the rack: the data set labels the rack as one)."""
    parts: list[Part] = []
    count = max(2, int(l // 0.9))
    for i in range(count):
        x = -l / 2 + (i + 0.5) * l / count
        hoop = (x - 0.03, x + 0.03)
        for y in ((-0.33, -0.27), (0.27, 0.33)):
            parts.append(block(hoop, y, (0.0, 0.72), METAL, material="metal"))  # noqa: PERF401
        parts.append(block(hoop, (-0.33, 0.33), (0.72, 0.78), METAL, material="metal"))
        if (i * 7 + int(style * 10)) % 3:
            parts += _parked_in_rack(x + 0.13, colour)
    return parts


def _parked_in_rack(x: float, colour: Colour) -> list[Part]:
    """A bicycle across the rack at x, pointing to +y."""
    thin, tube = (x - 0.03, x + 0.03), (x - 0.035, x + 0.035)
    return [
        *(
            block(
                thin,
                (y - 0.32, y + 0.32),
                (0.0, 0.64),
                RUBBER,
                kind="none",
                front="spokes",
                back="spokes",
            )
            for y in (-0.5, 0.5)
        ),
        block(tube, (-0.42, 0.36), (0.56, 0.64), colour, kind="paint"),
        block(tube, (0.38, 0.46), (0.34, 0.92), METAL, top_y=(0.34, 0.42), material="metal"),
        block((x - 0.24, x + 0.24), (0.33, 0.40), (0.90, 0.97), (45, 45, 45), material="metal"),
        block((x - 0.06, x + 0.06), (-0.42, -0.2), (0.78, 0.85), (30, 30, 34), material="rubber"),
    ]
