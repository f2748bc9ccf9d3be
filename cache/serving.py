"""Can this store serve that term: the coverage contract, as a pure function of two descriptions.

A store holds fields on a grid at the cells of its coverage; a term needs fields, weights of selectors or every cell, on
frames of a kind. The answer is served, refused (with the reason, both values and the remedy) or skipped (the term does
not apply to frames of that kind, whatever a store holds). Nothing is read and nothing raised for an unserved term.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from cache.columns import Column, Product, read_columns
from cache.coverage import Coverage, FrameKind
from cache.errors import ConfigError
from cache.field_list import KINDS, NOTHING, Asked, FieldList, asked_by_field
from cache.grid import BevGrid
from cache.selectors import Selector, Value, checked_options, column_name, write_selector


@dataclass(frozen=True)
class NeededSelector:
    """A selector whose weights a term reads, and those of its options that must have exactly these values.

    Options of names (`classes`, `camera`) are part of the column's name: left out, all classes and cameras are meant.
    """

    kind: str
    options: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        given = checked_options(self.kind, dict(self.options))
        object.__setattr__(self, "options", tuple((key, value) for key, value in given.items() if value is not None))
        _ = self.wanted  # with the defaults it must be a selector that can be cached

    @staticmethod
    def parse(text: str, where: str = "selector") -> Needed:
        """From `NAME` (any options will do), `NAME(option=value,...)` or a product of such, as a recipe writes it."""
        try:
            found = list(read_columns(text))
            if len(found) != 1:
                raise ConfigError("found several selectors, expected one, or a product of them")
            factors = tuple(NeededSelector(kind, tuple(given.items())) for kind, given in found[0])
            return factors[0] if len(factors) == 1 else NeededProduct(factors)
        except ConfigError as error:
            raise ConfigError(f"{where} {text!r:.200}: {error}") from None

    @property
    def name(self) -> str:
        """The name of the column that is read."""
        return column_name(self.kind, dict(self.options))

    @property
    def wanted(self) -> Selector:
        """What to cache for it: the options asked for, the defaults for the others."""
        return Selector(self.kind, self.options)

    def met_by(self, column: Column) -> bool:
        """Whether the weights of `column` are the ones asked for."""
        if not isinstance(column, Selector) or column.name != self.name:
            return False
        return all(column[key] == value for key, value in self.options)

    def __str__(self) -> str:
        return write_selector(self.kind, dict(self.options))


@dataclass(frozen=True)
class NeededProduct:
    """A product of selectors whose weights a term reads. A store that holds the factors apart does not hold it."""

    factors: tuple[NeededSelector, ...]

    def __post_init__(self) -> None:
        order = [factor.name for factor in self.wanted.factors]  # refuses what cannot be multiplied
        object.__setattr__(self, "factors", tuple(sorted(self.factors, key=lambda factor: order.index(factor.name))))

    @property
    def name(self) -> str:
        """The name of the column that is read."""
        return self.wanted.name

    @property
    def wanted(self) -> Product:
        """What to cache for it."""
        return Product(tuple(factor.wanted for factor in self.factors))

    def met_by(self, column: Column) -> bool:
        """Whether the weights of `column` are the ones asked for."""
        if not isinstance(column, Product) or column.name != self.name:
            return False
        return all(mine.met_by(theirs) for mine, theirs in zip(self.factors, column.factors, strict=True))

    def __str__(self) -> str:
        return "*".join(map(str, self.factors))


Needed = NeededSelector | NeededProduct


@dataclass(frozen=True)
class StoreOffer:
    """What a teacher store holds: the names of its fields, the grid of its BEV fields, its coverage, and which further
    fields were asked for."""

    fields: tuple[str, ...]
    grid: BevGrid
    coverage: Coverage
    asked: FieldList = NOTHING


@dataclass(frozen=True)
class TermNeed:
    """What a term reads. fields: by name, or further ones as `cache-teacher --fields` has them (`level(name=canvas)`,
    `samples(boxes=truth,points=9)`), which any layout serves; selectors: whose weights it reads; every_cell: values at
    all cells, whatever their weights; grid: of the BEV fields, with the stride in its cell (None: any grid will do).
    """

    fields: tuple[str, ...] = ()
    selectors: tuple[Needed, ...] = ()
    every_cell: bool = False
    grid: BevGrid | None = None


@dataclass(frozen=True)
class Answer:
    """verdict; for refused and skipped, `reason`: what the term needs and what was found.

    For refused also `about`, the part that does not fit, and `remedy`; `coverage`: the text for `cache-teacher
    --coverage` of a store that would serve both this term and those that the store serves now, where that helps.
    """

    verdict: Literal["served", "refused", "skipped"]
    reason: str = ""
    about: Literal["", "fields", "coverage", "grid"] = ""
    remedy: str = ""
    coverage: str = ""

    @property
    def served(self) -> bool:
        """Whether the term can be computed on these frames."""
        return self.verdict == "served"


def serves(offer: StoreOffer, need: TermNeed, frames: FrameKind = "labelled") -> Answer:
    """Whether a store with this offer can serve that need on frames of this kind.

    Skipped comes first: on unlabelled frames a selector that needs annotated boxes keeps nothing in any store, so
    caching again would not help, and a store of both kinds of frames is judged by its labelled ones.

    `dense` keeps the values of every cell, so it serves any term that brings weights of its own (or none) and says
    every_cell. It does not stand in for another selector: the store holds no weights but its own column of ones, and
    a term that reads the weights of `gaussian` is refused by a `dense` store without them (`gaussian+dense` serves
    both). Nor does it change the rest: fields, grid and rounding are those of the store. No union of other selectors
    counts as every cell, even where in some frame it happens to be; nor does a BEV field in the dense layout
    (`cache.bev`), whose reader gives the covered cells: a term that reads the whole map names that field.

    A term of a product is served by a column of that product, whichever way round it is written, not by columns of its
    factors: a store keeps each column's weights, and the trainer reads one of them.

    Options that a term fixes must be equal, also where another value would keep more cells: the weights would differ,
    and with them the loss. Grids are equal when no border is off by more than a millionth of a cell.
    """
    absent = [str(s) for s in need.selectors if frames == "unlabelled" and s.wanted.annotated]
    if absent:
        return Answer("skipped", f"needs the annotated boxes of {', '.join(absent)}, the frames are {frames}")
    missing = [field for field in need.fields if not _holds(offer, field)]
    if missing:
        return _without(missing, offer, need)
    unmet = [s for s in need.selectors if s.name not in offer.coverage or not s.met_by(offer.coverage[s.name])]
    if unmet:
        return _recache(f"reads the weights of selector {unmet[0]}", offer, need)
    if need.every_cell and not offer.coverage.every_cell:
        return _recache("reads every cell (dense)", offer, need)
    if need.grid is not None and not same_grid(offer.grid, need.grid):
        return Answer(
            "refused",
            f"reads the grid {need.grid}, the store is on {offer.grid}",
            "grid",
            f"set the student's grid to the store's in [model], or run cache-teacher with a teacher on {need.grid}",
        )
    return Answer("served")


def _holds(offer: StoreOffer, field: str) -> bool:
    return field in offer.fields or (_is_asked(field) and offer.asked.holds(_asked(field)))


def _is_asked(field: str) -> bool:
    return field.partition("(")[0] in KINDS


def _asked(field: str) -> Asked:
    return FieldList.parse(field, "field").items[0]


def _without(missing: list[str], offer: StoreOffer, need: TermNeed) -> Answer:
    """Refused for want of fields; the remedy keeps what the store has and adds those, and the coverage asked for."""
    wanted = [_asked(field) if _is_asked(field) else asked_by_field(field) for field in missing]
    remedy = "run cache-teacher again, under another --name, with a teacher that gives it"
    if None not in wanted:
        fields = functools.reduce(lambda have, item: have.with_item(item) if item else have, wanted, offer.asked)
        remedy = f"run `cache-teacher --fields '{fields}' --coverage '{_covering(offer, need)}'` under another --name"
    held = ", ".join([*sorted(offer.fields), *map(str, offer.asked.items)])
    return Answer("refused", f"reads the field {missing[0]!r}, the store holds {held or 'none'}", "fields", remedy)


def _recache(reason: str, offer: StoreOffer, need: TermNeed) -> Answer:
    """Refused; the remedy keeps what the store has and adds all that the need asks for."""
    coverage = _covering(offer, need)
    fields = f" --fields '{offer.asked}'" if offer.asked.items else ""
    return Answer(
        "refused",
        f"{reason}, the store covers {offer.coverage}",
        "coverage",
        f"run `cache-teacher{fields} --coverage '{coverage}'` under another --name",
        str(coverage),
    )


def _covering(offer: StoreOffer, need: TermNeed) -> Coverage:
    """The store's coverage, and what the need asks for beyond it."""
    coverage = offer.coverage
    for wanted in need.selectors:
        if wanted.name not in coverage or not wanted.met_by(coverage[wanted.name]):
            coverage = coverage.with_selector(wanted.wanted.resolved(offer.grid))
    if need.every_cell and not coverage.every_cell:
        coverage = coverage.with_selector(Selector("dense"))
    return coverage


def same_grid(a: BevGrid, b: BevGrid) -> bool:
    """Whether two grids are one: as many cells, and each border within a millionth of a cell."""
    if a.shape != b.shape:
        return False
    borders = ((a.x_min, b.x_min), (a.x_max, b.x_max), (a.y_min, b.y_min), (a.y_max, b.y_max))
    return all(abs(mine - other) <= 1e-6 * a.cell_m for mine, other in borders)
