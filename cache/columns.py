"""Columns of a coverage: a selector, or a product of selectors; and the text that lists them.

`gaussian*confident(threshold=0)+lidar` has two columns. `*` binds before `+` and `,`. A product's weight at a cell is
the product of its factors' weights, so that it keeps the cells that all of them keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cache.errors import ConfigError
from cache.grid import BevGrid
from cache.selectors import SELECTORS, Selector, Value, checked_options

NO_FACTORS = ("random", "dense")


@dataclass(frozen=True)
class Product:
    """Two or more selectors multiplied, kept in the order of SELECTORS: `a*b` is `b*a`, bytes and all.

    Raises ConfigError where a factor stands twice, or is `random` (drawn from the cells that the other columns leave,
    this one among them) or `dense` (which changes nothing).
    """

    factors: tuple[Selector, ...]

    def __post_init__(self) -> None:
        order = list(SELECTORS)
        ordered = tuple(sorted(self.factors, key=lambda factor: (order.index(factor.kind), factor.name)))
        object.__setattr__(self, "factors", ordered)
        names = [factor.name for factor in ordered]
        if len(names) < 2 or len(set(names)) < len(names) or any(factor.kind in NO_FACTORS for factor in ordered):
            raise ConfigError(
                f"product {self.name:.200}: expected two or more different factors of "
                f"{', '.join(kind for kind in SELECTORS if kind not in NO_FACTORS)}"
            )

    @property
    def name(self) -> str:
        """The name of its column of weights: the factors' names joined by `*`."""
        return "*".join(factor.name for factor in self.factors)

    @property
    def annotated(self) -> bool:
        """Whether a factor needs annotated boxes: without them the product keeps nothing."""
        return any(factor.annotated for factor in self.factors)

    def __getitem__(self, name: str) -> Selector:
        return {factor.name: factor for factor in self.factors}[name]

    def resolved(self, grid: BevGrid) -> Product:
        """The same with every option of every factor a number."""
        return Product(tuple(factor.resolved(grid) for factor in self.factors))

    def written(self) -> dict[str, Any]:
        """{factor's name: its options} for a header."""
        return {factor.name: factor.written() for factor in self.factors}

    def __str__(self) -> str:
        return "*".join(map(str, self.factors))


Column = Selector | Product


def column_of(factors: tuple[Selector, ...]) -> Column:
    """The selector, or the product where there are several."""
    return factors[0] if len(factors) == 1 else Product(factors)


def column_from_header(name: Any, options: Any) -> Column:
    """The column of this name and what `written` gave; ConfigError where that does not read, or they contradict."""
    if not isinstance(name, str) or not isinstance(options, dict):
        raise ConfigError(f"found column {name!r:.60} with options {options!r:.60}, expected a name and an object")
    kinds = [part.partition("(")[0] for part in name.split("*")]
    if len(kinds) == 1:
        return Selector(kinds[0], tuple(options.items()))
    factors = []
    for kind, part in zip(kinds, name.split("*"), strict=True):
        given = options.get(part)
        if not isinstance(given, dict):
            raise ConfigError(f"found options {options!r:.200} of {name!r:.200}, expected an object for every factor")
        factors.append(Selector(kind, tuple(given.items())))
    return Product(tuple(factors))


_SELECTOR = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\(([^()]*)\))?\s*(?:([+,*])|$)", re.ASCII)
_INT = re.compile(r"[+-]?[0-9]{1,30}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def read_columns(text: str) -> Iterator[list[tuple[str, dict[str, Value]]]]:
    """Each column's factors: kind and the options given, checked, of `NAME(option=value,...)` joined by `*`; columns
    are joined by plus signs or commas.

    Raises ConfigError where the text does not read so.
    """
    position = 0
    factors: list[tuple[str, dict[str, Value]]] = []
    while True:
        match = _SELECTOR.match(text, position)
        if match is None:
            raise ConfigError(
                f"found {text[position:]!r:.60}, expected NAME or NAME(option=value,...) joined by plus signs "
                f"(products by *), where NAME is one of {', '.join(SELECTORS)}"
            )
        name, inside, joint = match.groups()
        given: dict[str, Value] = {}
        for part in (inside or "").split(",") if (inside or "").strip() else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or key in given:
                raise ConfigError(f"selector {name:.60}: found {part.strip()!r:.60}, expected option=value, each once")
            given[key] = _value(name, key, value)
        factors.append((name, checked_options(name, given)))
        if joint != "*":
            yield factors
            factors = []
        if not joint:
            return
        position = match.end()


def _value(name: str, key: str, text: str) -> Value:
    kind = SELECTORS.get(name)
    if kind is not None and key in kind.options and kind.options[key].type is str:
        return text
    if text.lower() == "none":
        return None
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    raise ConfigError(f"selector {name:.60}: {key:.60} is {text!r:.60}, expected a number")
