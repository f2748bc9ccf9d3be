"""Coverage: which cells of a BEV field a teacher store keeps, described; the header's part that terms are judged by.

A coverage is an ordered union of columns of weights, each of a selector (`cache.selectors`) or a product of selectors
(`cache.columns`). It is written `gaussian(dilate=1)*confident+random(cells=200)` on the command line, and as plain JSON
in a store's header.
`pipeline.coverage` computes the weights, `cache.serving` judges what a store can serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from cache.columns import Column, column_from_header, column_of, read_columns
from cache.errors import ConfigError, CorruptError
from cache.grid import BevGrid
from cache.selectors import SELECTORS, Selector

FrameKind = Literal["labelled", "unlabelled"]
FRAME_KINDS: tuple[FrameKind, ...] = get_args(FrameKind)
MAX_COLUMNS = 64


@dataclass(frozen=True)
class Coverage:
    """Selectors and products whose union a store keeps; weights of the i-th are column i. ConfigError: none, or one
    twice."""

    selectors: tuple[Column, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.selectors) <= MAX_COLUMNS or len(set(self.names)) != len(self.names):
            raise ConfigError(
                f"coverage {list(self.names)!r:.200}: expected one or more (up to {MAX_COLUMNS}) of "
                f"{', '.join(SELECTORS)} or products of them, each at most once"
            )

    @classmethod
    def parse(cls, text: str, grid: BevGrid | None = None, where: str = "--coverage") -> Coverage:
        """From `NAME(option=value,...)` joined by plus signs or commas, products by `*`; with a grid, no option stays
        open.

        `where` names the text's place in the ConfigError.
        """
        try:
            columns = (tuple(Selector(kind, tuple(given.items())) for kind, given in c) for c in read_columns(text))
            coverage = cls(tuple(map(column_of, columns)))
        except ConfigError as error:
            raise ConfigError(f"{where} {text!r:.200}: {error}") from None
        return coverage if grid is None else coverage.resolved(grid)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(selector.name for selector in self.selectors)

    @property
    def factors(self) -> tuple[Selector, ...]:
        """Every selector that stands in it, by itself or in a product, in order."""
        return tuple(factor for column in self.selectors for factor in column.factors)

    def __getitem__(self, name: str) -> Column:
        for selector in self.selectors:
            if selector.name == name:
                return selector
        raise ConfigError(f"selector {name!r} is not in the coverage {self}; its selectors are {', '.join(self.names)}")

    def factor(self, name: str) -> Selector:
        """The column of this name, which must be a selector by itself."""
        column = self[name]
        assert isinstance(column, Selector), f"{name} is a product"
        return column

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def every_cell(self) -> bool:
        """Whether every cell's values are kept. Only `dense` promises it."""
        return "dense" in self.names

    def applying(self, frames: FrameKind) -> tuple[str, ...]:
        """Names of the columns that can keep cells of such frames, in order."""
        return tuple(s.name for s in self.selectors if frames == "labelled" or not s.annotated)

    def resolved(self, grid: BevGrid) -> Coverage:
        """The same with every option a number."""
        return Coverage(tuple(selector.resolved(grid) for selector in self.selectors))

    def with_selector(self, wanted: Column) -> Coverage:
        """The union with one more selector or product, which takes the place of its namesake."""
        if wanted.name not in self:
            return Coverage((*self.selectors, wanted))
        return Coverage(tuple(wanted if s.name == wanted.name else s for s in self.selectors))

    def __str__(self) -> str:
        return "+".join(map(str, self.selectors))

    def header(self) -> dict[str, Any]:
        """Plain values for a store's header: columns, their options, and the columns that each kind of frame has.

        Raises ConfigError where an option is open still: parse with the grid.
        """
        open_options = [f"{s.name}.{key}" for s in self.factors for key, value in s.options if value is None]
        if open_options:
            raise ConfigError(f"coverage {self}: {', '.join(open_options)} is open; resolve it with the store's grid")
        return {
            "selectors": list(self.names),
            "options": {column.name: column.written() for column in self.selectors},
            **{frames: list(self.applying(frames)) for frames in FRAME_KINDS},
        }

    @classmethod
    def from_header(cls, values: Any, where: str = "header.coverage") -> Coverage:
        """Inverse of `header`. Trusts nothing: CorruptError where `values` are not what `header` would write."""
        try:
            if not isinstance(values, dict) or set(values) != {"selectors", "options", *FRAME_KINDS}:
                found = sorted(map(str, values)) if isinstance(values, dict) else values
                raise ConfigError(f"found {found!r:.200}, expected selectors, options, {', '.join(FRAME_KINDS)}")
            names, options = values["selectors"], values["options"]
            if not isinstance(names, list) or not isinstance(options, dict) or len(names) > MAX_COLUMNS:
                raise ConfigError(f"found selectors {names!r:.200} with options {options!r:.200}")
            coverage = cls(tuple(column_from_header(name, options.get(name)) for name in names))
            if coverage.header() != values:
                raise ConfigError(f"found {values!r:.400}, expected {coverage.header()}")
        except (ConfigError, TypeError, ValueError, RecursionError) as error:
            raise CorruptError(
                f"{where}: {error}; the manifest is damaged or forged, cache the teacher again"
            ) from None
        return coverage
