"""Selectors: the ways to choose cells of a BEV field, each with its options, and how one is written.

`footprint(margin=0.5)` on the command line and in recipes; missing options take their defaults. Only the description is
here: `pipeline.selectors` computes the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cache.errors import ConfigError
from cache.grid import BevGrid

Value = int | float | None
COARSE_CELL_M = 1.2  # on such cells the literal gaussian is little more than each object's centre cell


@dataclass(frozen=True)
class Option:
    """One option of a selector: an int or a float in low..high; default None: decided by the grid."""

    type: type[int] | type[float]
    default: Value
    low: float
    high: float
    about: str


@dataclass(frozen=True)
class SelectorKind:
    """What a selector keeps, its options, and whether it needs annotated boxes (then it keeps nothing without them)."""

    about: str
    options: Mapping[str, Option]
    annotated: bool = False


SELECTORS: dict[str, SelectorKind] = {
    "gaussian": SelectorKind(
        "CornerNet gaussians of the annotated boxes, BEVDistill's mask; weight: the gaussian",
        {"dilate": Option(int, None, 0, 64, "cells added to the radius; default 1 on cells of 1.2 m or more, else 0")},
        annotated=True,
    ),
    "footprint": SelectorKind(
        "cells whose centre lies in an annotated box seen from above, and its centre's cell; weight 1",
        {"margin": Option(float, 0.5, 0, 50, "metres by which each side of the box is moved outwards")},
        annotated=True,
    ),
    "confident": SelectorKind(
        "cells at which the teacher's best class heat reaches a threshold; weight: the heat",
        {"threshold": Option(float, 0.1, 1e-6, 1, "probability")},
    ),
    "lidar": SelectorKind(
        "cells that hold LiDAR returns; weight 1",
        {
            "points": Option(int, 1, 1, 10**6, "returns that a cell needs"),
            "z_min": Option(float, -5.0, -1000, 1000, "metres, canonical frame; lower returns do not count"),
            "z_max": Option(float, 3.0, -1000, 1000, "metres, canonical frame; higher returns do not count"),
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


@dataclass(frozen=True)
class Selector:
    """A selector and its options, every one of them, in the order of SELECTORS: missing ones take their defaults.

    Raises ConfigError naming what there is where name or option is unknown or a value is out of its range.
    """

    name: str
    options: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        given = checked_options(self.name, dict(self.options))
        declared = SELECTORS[self.name].options
        filled = tuple((key, given.get(key, option.default)) for key, option in declared.items())
        object.__setattr__(self, "options", filled)
        if self.name == "lidar" and not self["z_min"] < self["z_max"]:
            raise ConfigError(f"selector lidar: z_min {self['z_min']} is not below z_max {self['z_max']}; swap them")

    @classmethod
    def of(cls, name: str, **options: Value) -> Selector:
        """`Selector.of("footprint", margin=1.0)`."""
        return cls(name, tuple(options.items()))

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    @property
    def annotated(self) -> bool:
        """Whether it needs annotated boxes."""
        return SELECTORS[self.name].annotated

    def resolved(self, grid: BevGrid) -> Selector:
        """The same with every option a number; what is left open depends on the grid."""
        coarse = int(grid.cell_m >= COARSE_CELL_M - 1e-6)
        return replace(self, options=tuple((key, coarse if v is None else v) for key, v in self.options))

    def __str__(self) -> str:
        return write_selector(self.name, {key: value for key, value in self.options if value is not None})


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
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and (option.type is float or isinstance(value, int))
        if not fits or not option.low <= value <= option.high:  # NaN is in no range
            expected = f"a{' whole' if option.type is int else ''} number in {option.low}..{option.high}"
            raise ConfigError(f"selector {name}: {key} is {value!r:.60}, expected {expected} ({option.about})")
        out[key] = option.type(value) + 0  # without a minus zero, equal coverages have equal bytes
    return out


_SELECTOR = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\(([^()]*)\))?\s*(?:([+,])|$)", re.ASCII)
_INT = re.compile(r"[+-]?[0-9]{1,30}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def read_selectors(text: str) -> Iterator[tuple[str, dict[str, Value]]]:
    """Each selector's name and the options given, checked, of `NAME(option=value,...)` joined by plus signs or commas.

    Raises ConfigError where the text does not read so.
    """
    position = 0
    while True:
        match = _SELECTOR.match(text, position)
        if match is None:
            raise ConfigError(
                f"found {text[position:]!r:.60}, expected NAME or NAME(option=value,...) joined by plus signs, "
                f"where NAME is one of {', '.join(SELECTORS)}"
            )
        name, inside, joint = match.groups()
        given: dict[str, Value] = {}
        for part in (inside or "").split(",") if (inside or "").strip() else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or key in given:
                raise ConfigError(f"selector {name:.60}: found {part.strip()!r:.60}, expected option=value, each once")
            given[key] = _number(name, key, value)
        yield name, checked_options(name, given)
        if not joint:
            return
        position = match.end()


def write_selector(name: str, options: Mapping[str, Value]) -> str:
    """Inverse of `read_selectors` for one selector, whichever options are given."""
    inside = ",".join(f"{key}={repr(value).removesuffix('.0')}" for key, value in options.items())
    return f"{name}({inside})" if inside else name


def _number(name: str, key: str, text: str) -> Value:
    if text.lower() == "none":
        return None
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    raise ConfigError(f"selector {name:.60}: {key:.60} is {text!r:.60}, expected a number")
