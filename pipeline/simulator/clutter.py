"""Shapes of what stands about and nobody labels: poles, trees, bushes, walls, buildings, crates, bins, bollards, signs.

They occlude, return LiDAR points, and some resemble labelled things in size (bins, crates, bollards), so that a
detector must look at shape and texture.
"""

from __future__ import annotations

from pipeline.simulator.solids import Colour, Part, block

# kind -> (l, w, h) ranges in metres
CLUTTER_SIZES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "pole": ((0.22, 0.3), (0.22, 0.3), (5.5, 8.0)),
    "tree": ((2.2, 4.0), (2.2, 4.0), (4.5, 8.5)),
    "bush": ((1.0, 4.0), (0.8, 1.4), (0.6, 1.4)),
    "wall": ((5.0, 14.0), (0.25, 0.35), (1.6, 2.6)),
    "building": ((10.0, 22.0), (7.0, 12.0), (6.0, 14.0)),
    "crate": ((0.6, 1.6), (0.6, 1.4), (0.5, 1.5)),
    "bin": ((0.5, 0.6), (0.5, 0.6), (0.9, 1.2)),
    "bollard": ((0.2, 0.25), (0.2, 0.25), (0.8, 1.1)),
    "sign": ((0.12, 0.15), (0.6, 0.8), (2.2, 2.8)),
    "hydrant": ((0.3, 0.35), (0.3, 0.35), (0.6, 0.8)),
}


def clutter(kind: str, l: float, w: float, h: float, style: float) -> list[Part]:
    """Parts of one piece of clutter that fills the box (l, w, h)."""
    x, y = (-l / 2, l / 2), (-w / 2, w / 2)
    grey: Colour = (118, 120, 122)
    if kind == "pole":
        return [
            block(
                (-0.09, 0.09),
                (-0.09, 0.09),
                (0.0, h),
                grey,
                top_x=(-0.06, 0.06),
                top_y=(-0.06, 0.06),
                material="metal",
            ),
            block(x, y, (0.0, 0.35), (90, 92, 95), material="concrete"),
        ]
    if kind == "tree":
        crown = 0.34 * h
        green: Colour = (38, int(72 + 30 * style), 48)
        return [
            block((-0.16, 0.16), (-0.16, 0.16), (0.0, crown), (40, 58, 78), kind="bark"),
            block(
                (-0.33 * l, 0.33 * l), (-0.33 * w, 0.33 * w), (crown, 0.6 * h), green, top_x=x, top_y=y, kind="leaves"
            ),
            block(x, y, (0.6 * h, h), green, top_x=(-0.22 * l, 0.22 * l), top_y=(-0.22 * w, 0.22 * w), kind="leaves"),
        ]
    if kind == "bush":
        return [
            block(
                x,
                y,
                (0.0, h),
                top_x=(-0.4 * l, 0.4 * l),
                top_y=(-0.3 * w, 0.3 * w),
                colour=(40, int(80 + 25 * style), 50),
                kind="leaves",
            )
        ]
    if kind == "wall":
        return [
            block(
                x,
                y,
                (0.0, h),
                (105, 125, 150) if style < 0.5 else (150, 152, 155),
                kind="bricks",
            )
        ]
    if kind == "building":
        tone: Colour = [(150, 160, 170), (120, 140, 170), (140, 130, 125), (165, 175, 178)][int(style * 4) % 4]
        return [block(x, y, (0.0, h), tone, kind="facade", top="plain")]
    if kind == "crate":
        return [block(x, y, (0.0, h), (80, 120, 160), kind="crate")]
    if kind == "bin":
        return [
            block(
                x,
                y,
                (0.0, 0.9 * h),
                [(60, 100, 50), (70, 70, 70), (130, 90, 40)][int(style * 3)],
                top_x=(-0.46 * l, 0.5 * l),
                kind="plastic",
            ),
            block(x, y, (0.9 * h, h), (40, 40, 40), top_x=(-0.3 * l, 0.45 * l), material="plastic"),
        ]
    if kind == "sign":
        return [
            block((-0.04, 0.04), (-0.04, 0.04), (0.0, h), grey, material="metal"),
            block(
                (0.04, 0.06),
                y,
                (h - w, h),
                (150, 90, 40) if style < 0.5 else (40, 40, 190),
                front="sign",
                back="plain",
                material="retro",
            ),
        ]
    if kind == "hydrant":
        return [block(x, y, (0.0, h), (40, 40, 180), top_x=(-0.1, 0.1), top_y=(-0.1, 0.1), material="metal")]
    return [block(x, y, (0.0, h), (60, 62, 66) if style < 0.6 else (60, 190, 230), material="metal")]
