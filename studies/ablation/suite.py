"""A suite: one table of a paper as data. Rows are overlays on a base recipe, each with the rows it is held against.

TOML in `suites/`, unknown keys are errors. A row names the store that it learns from and what speaks there: the trained
teacher, or what could show that it is not the teacher's knowledge that helps, see `studies.ablation.controls`. Loading
costs milliseconds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cache.coverage import Coverage
from cache.errors import ConfigError
from models.config import Config, parse_config
from pipeline.teacher import TeacherOptions

SUITES = Path(__file__).parent / "suites"
Speaker = Literal[
    "trained",
    "untrained",
    "annotations",
    "another_frame",
    "another_frames_features",
    "untrained_features",
    "camera",
    "taught_camera",
]
BASELINE = "none"
PAPERS = ("bevdistill", "sparsekd", "bev-lgkd")
QUERIES = "bevdistill-queries"
CACHE = "cache"


class StoreSpec(Config):
    """One teacher store: who speaks (`camera`: the camera teacher, `taught_camera`: one that learnt from the LiDAR
    teacher; all others are of LiDAR), what is kept and how, in the words of `cache-teacher`; tta: over which views a
    network's answer is averaged."""

    says: Speaker = "trained"
    coverage: str = "gaussian"
    fields: str = ""
    encoding: str = "cells"
    dtype: str = "float16"
    tta: str = ""

    @model_validator(mode="after")
    def _can_be_cached(self) -> StoreSpec:
        try:
            self.options()
            Coverage.parse(self.coverage)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if self.tta and self.says not in ("trained", "untrained"):
            raise ValueError(
                f"tta {self.tta!r} averages what a LiDAR network says of a mirrored cloud, and {self.says!r} is none "
                "that looks at it; leave tta out"
            )
        return self

    def options(self) -> TeacherOptions:
        """What `cache_teacher` is told."""
        return TeacherOptions(self.coverage, encoding=self.encoding, dtype=self.dtype, tta=self.tta, fields=self.fields)

    def written(self) -> dict[str, Any]:
        """As digests have it. How a store is kept came later, and is written only where it is not the default: a store
        of before keeps its name, and results from it their keys."""
        values = self.model_dump(mode="json")
        later = ("encoding", "dtype", "tta")
        return {k: v for k, v in values.items() if k not in later or v != type(self).model_fields[k].default}


class StudentSpec(Config):
    """A column of a table: a base recipe and what is laid over it; later: added to the rank of its rows; regimes: those
    in which it is trained (none named: all)."""

    base: str
    later: int = 0
    regimes: tuple[str, ...] = ()
    recipe: dict[str, Any] = Field(default_factory=dict)


class RowSpec(Config):
    """One row. recipe: laid over the student's; like: the row whose recipe and init it takes where it has none of its
    own, as controls do; store: the store it learns from; init: whose weights it begins from; length: times the regime's
    steps; against: the row its gain is taken to; controls: rows that it must beat to count as distilling; rank: rows of
    a lower one run first; students: those it is run with (default: all of the suite).
    """

    name: str
    about: str = ""
    store: str = ""
    like: str = ""
    init: Literal["", "trained", "untrained"] = ""
    recipe: dict[str, Any] = Field(default_factory=dict)
    length: float = Field(default=1.0, gt=0)
    against: str = BASELINE
    controls: tuple[str, ...] = ()
    control: bool = False
    rank: int = 100
    students: tuple[str, ...] = ()


class Suite(Config):
    """primary: (row, student) whose gain is the suite's claim, named before the runs; choosing: its rows are there to
    choose from, on the choosing world alone."""

    name: str
    about: str
    choosing: bool = False
    students: dict[str, StudentSpec]
    stores: dict[str, StoreSpec] = Field(default_factory=dict)
    rows: tuple[RowSpec, ...]
    primary: tuple[str, str] | None = None

    @model_validator(mode="after")
    def _rows_fit(self) -> Suite:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names) or BASELINE not in names:
            raise ValueError(f"rows need names of their own, one of them {BASELINE!r}; found {names}")
        for row in self.rows:
            for what, others in (("like", [row.like]), ("against", [row.against]), ("controls", row.controls)):
                if unknown := [other for other in others if other and other not in names]:
                    raise ValueError(f"row {row.name!r}: {what} names {unknown[0]!r}, the rows are {names}")
            above = [row.name]
            while like := self._named(above[-1]).like:
                if like in above:
                    raise ValueError(f"row {row.name!r}: like goes round in a circle, {' > '.join([*above, like])}")
                above.append(like)
            if row.store and row.store not in self.stores:
                raise ValueError(f"row {row.name!r}: no store {row.store!r}, there are {sorted(self.stores)}")
            if unknown := sorted(set(row.students) - set(self.students)):
                raise ValueError(f"row {row.name!r}: no student {unknown[0]!r}, there are {sorted(self.students)}")
        if self.primary is not None and (self.primary[0] not in names or self.primary[1] not in self.students):
            raise ValueError(f"primary {self.primary}: expected a row and a student of the suite")
        return self

    def row(self, name: str) -> RowSpec:
        """The row of this name, whole: what `like` gives it filled in."""
        row = self._named(name)
        if not row.like:
            return row
        other = self.row(row.like)
        return row.model_copy(update={"recipe": row.recipe or other.recipe, "init": row.init or other.init})

    def _named(self, name: str) -> RowSpec:
        return next(row for row in self.rows if row.name == name)

    def cells(self) -> Iterator[tuple[RowSpec, str]]:
        """(row, student) of every cell of the table, whole rows, student by student in the suite's order."""
        for student in self.students:
            for row in self.rows:
                if not row.students or student in row.students:
                    yield self.row(row.name), student


def suite_names() -> list[str]:
    """The suites that ship."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or a TOML file. ConfigError with the key and what is allowed there."""
    path = SUITES / f"{name}.toml" if name in suite_names() else Path(name)
    try:
        values = tomllib.loads(path.read_text())
    except (FileNotFoundError, IsADirectoryError):
        known = ", ".join(suite_names())
        raise ConfigError(f"suite {name!r}: no such file, and not one of {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from None
    if name not in suite_names() and path.stem in suite_names():
        raise ConfigError(f"{path}: a suite named {path.stem} ships; give the file another name, its tables bear it")
    return parse_config(Suite, {"name": path.stem, **values}, str(path))


def chosen_suites(name: str) -> list[Suite]:
    """`all`: the papers' three, BEVDistill's students of queries, and what the cache makes possible, whose rows come
    last; else the one that is named."""
    return [load_suite(one) for one in ((*PAPERS, QUERIES, CACHE) if name == "all" else (name,))]


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base`, tables merged key by key, all else replaced: as a recipe's overrides are."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = laid_over(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return out
