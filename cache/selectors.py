"""Selectors: the ways to choose cells of a BEV field, each with its options, and how one is written.

`footprint(margin=0.5)` on the command line and in recipes; missing options take their defaults. Only the description is
here: `pipeline.selectors` computes the weights, `cache.columns` reads the text and multiplies selectors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cache.errors import ConfigError
from cache.grid import BevGrid

Value = int | float | str | None
MAX_NAMES = 64
COARSE_CELL_M = 1.2  # on such cells the literal gaussian is little more than each object's centre cell


@dataclass(frozen=True)
class Option:
    """One option of a selector: an int or a float in low..high, or a str of names joined by `|` ("": no restriction).

    default None: decided by the grid. later: stores were written before it was there, so it is written only where it
    is not the default, which does what those stores hold.
    """

    type: type[int] | type[float] | type[str]
    default: Value
    low: float
    high: float
    about: str
    later: bool = False


def _names(about: str) -> Option:
    """An option of names. It is part of the column's name, so that `gaussian` is never another's `gaussian`."""
    return Option(str, "", 0, MAX_NAMES, about, later=True)


@dataclass(frozen=True)
class SelectorKind:
    """What a selector keeps, its options, and whether it needs annotated boxes (then it keeps nothing without them)."""

    about: str
    options: Mapping[str, Option]
    annotated: bool = False


# The order is that of a product's factors, so it is part of the format: new ones go behind all that can be multiplied.
SELECTORS: dict[str, SelectorKind] = {
    "gaussian": SelectorKind(
        "CornerNet gaussians of the annotated boxes, BEVDistill's mask; weight: the gaussian",
        {
            "dilate": Option(
                int, None, 0, 64, "cells added to the radius; default 1 on cells of 1.2 m or more, else 0"
            ),
            "overlap": Option(float, 0.1, 0.01, 0.99, "IoU that a box moved by the radius keeps", later=True),
            "min_radius": Option(int, 1, 0, 64, "cells; smaller radii become this one", later=True),
            "classes": _names("classes of the boxes, such as car|truck; default all"),
        },
        annotated=True,
    ),
    "footprint": SelectorKind(
        "cells whose centre lies in an annotated box seen from above, and its centre's cell; weight 1",
        {
            "margin": Option(float, 0.5, 0, 50, "metres by which each side of the box is moved outwards"),
            "by_size": Option(int, 0, 0, 1, "1: weight sqrt(cell area / box area), as DistillBEV", later=True),
            "classes": _names("classes of the boxes, such as car|truck; default all"),
        },
        annotated=True,
    ),
    "confident": SelectorKind(
        "cells at which the teacher's best class heat reaches a threshold; weight: the heat",
        {
            "threshold": Option(float, 0.1, 0, 1, "probability"),
            "soft": Option(int, 1, 0, 1, "0: weight 1 instead of the heat", later=True),
        },
    ),
    "topk": SelectorKind(
        "cells that hold one of the teacher's k best heats over all classes; weight 1",
        {"k": Option(int, 500, 1, 10**8, "heats a frame")},
    ),
    "lidar": SelectorKind(
        "cells that hold LiDAR returns; weight 1",
        {
            "points": Option(int, 1, 1, 10**6, "returns that a cell needs"),
            "z_min": Option(float, -5.0, -1000, 1000, "metres, canonical frame; lower returns do not count"),
            "z_max": Option(float, 3.0, -1000, 1000, "metres, canonical frame; higher returns do not count"),
            "ground": Option(
                float,
                0.0,
                0,
                5,
                "metres above the fitted ground up to which returns do not count; 0: all do",
                later=True,
            ),
        },
    ),
    "view": SelectorKind(
        "cells over which a camera looks, by its calibration; weight 1",
        {
            "camera": _names("channels, such as CAM_FRONT, of which any will do; default all of the frame's"),
            "near": Option(float, 2.0, 0.01, 1000, "metres of depth; nearer places do not count"),
            "far": Option(float, 58.0, 0.01, 1000, "metres of depth; farther places do not count"),
            "z_min": Option(float, -5.0, -1000, 1000, "metres, canonical frame; lower places do not count"),
            "z_max": Option(float, 3.0, -1000, 1000, "metres, canonical frame; higher places do not count"),
        },
    ),
    "random": SelectorKind(
        "background: cells drawn by seed and token from those that no selector but dense picked; weight 1",
        {
            "cells": Option(int, 200, 1, 10**8, "cells a frame, or as many as are left"),
            "seed": Option(int, 0, 0, 2**63 - 1, "another seed draws other cells"),
        },
    ),
    "dense": SelectorKind("every cell; weight 1", {}),
}
_RISING = {"lidar": (("z_min", "z_max"),), "view": (("z_min", "z_max"), ("near", "far"))}


@dataclass(frozen=True)
class Selector:
    """A selector and its options, every one of them, in the order of SELECTORS: missing ones take their defaults.

    Raises ConfigError naming what there is where kind or option is unknown or a value is out of its range.
    """

    kind: str
    options: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        given = checked_options(self.kind, dict(self.options))
        declared = SELECTORS[self.kind].options
        filled = tuple((key, given.get(key, option.default)) for key, option in declared.items())
        object.__setattr__(self, "options", filled)
        for low, high in _RISING.get(self.kind, ()):
            if not self[low] < self[high]:
                raise ConfigError(
                    f"selector {self.kind}: {low} {self[low]} is not below {high} {self[high]}; swap them"
                )

    @classmethod
    def of(cls, kind: str, **options: Value) -> Selector:
        """`Selector.of("footprint", margin=1.0)`."""
        return cls(kind, tuple(options.items()))

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    @property
    def name(self) -> str:
        """The name of its column of weights: the kind, and the options of names where they are given."""
        return column_name(self.kind, dict(self.options))

    @property
    def factors(self) -> tuple[Selector, ...]:
        """Itself, as the only factor (`cache.columns.Product` has several)."""
        return (self,)

    @property
    def annotated(self) -> bool:
        """Whether it needs annotated boxes."""
        return SELECTORS[self.kind].annotated

    def resolved(self, grid: BevGrid) -> Selector:
        """The same with every option a number; what is left open depends on the grid."""
        coarse = int(grid.cell_m >= COARSE_CELL_M - 1e-6)
        return replace(self, options=tuple((key, coarse if v is None else v) for key, v in self.options))

    def written(self) -> dict[str, Any]:
        """Its options as headers and texts have them: all but later ones that are at their defaults."""
        declared = SELECTORS[self.kind].options
        return {key: v for key, v in self.options if not (declared[key].later and v == declared[key].default)}

    def __str__(self) -> str:
        return write_selector(self.kind, {key: value for key, value in self.written().items() if value is not None})


def column_name(kind: str, options: Mapping[str, Value]) -> str:
    """The name of the column of weights of a selector of this kind with these options."""
    return write_selector(kind, {key: value for key, value in options.items() if isinstance(value, str) and value})


def checked_options(name: Any, given: Mapping[str, Any]) -> dict[str, Value]:
    """`given` with each value of its option's type; ConfigError naming what there is. Says nothing of missing ones."""
    if not isinstance(name, str) or name not in SELECTORS:
        raise ConfigError(f"selector {name!r:.60} is unknown, expected one of {', '.join(SELECTORS)}")
    declared = SELECTORS[name].options
    out: dict[str, Value] = {}
    for key, value in given.items():
        if key not in declared:
            there_is = f"its options are {', '.join(declared)}" if declared else "it has no options"
            raise ConfigError(f"selector {name} has no option {key!r:.60}; {there_is}")
        option = declared[key]
        if value is None and option.default is None:
            out[key] = None
            continue
        if option.type is str:
            out[key] = _checked_names(name, key, value, option)
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and (option.type is float or isinstance(value, int))
        if not fits or not option.low <= value <= option.high:  # NaN is in no range
            expected = f"a{' whole' if option.type is int else ''} number in {option.low}..{option.high}"
            raise ConfigError(f"selector {name}: {key} is {value!r:.60}, expected {expected} ({option.about})")
        # + 0: without a minus zero, equal coverages have equal bytes
        out[key] = int(value) if option.type is int else float(value) + 0
    return out


_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")


def _checked_names(name: str, key: str, value: Any, option: Option) -> str:
    """The names sorted, each once, so that equal sets are equal texts."""
    names = value.split("|") if isinstance(value, str) else [""]
    if value == "":
        return ""
    if len(names) > option.high or not all(map(_NAME.fullmatch, names)):
        raise ConfigError(
            f"selector {name}: {key} is {value!r:.60}, expected up to {option.high:g} names of letters, digits and _ "
            f"joined by | ({option.about})"
        )
    return "|".join(sorted(set(names)))


def write_selector(kind: str, options: Mapping[str, Value]) -> str:
    """Inverse of `cache.columns.read_columns` for one selector, whichever options are given."""
    values = {key: v if isinstance(v, str) else repr(v).removesuffix(".0") for key, v in options.items()}
    inside = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{kind}({inside})" if inside else kind
