"""What terms ask of a teacher store when they are built: channels and grids of its maps, task groups, depth bins.

The one place where terms read the description of further fields (`cache.further`), so that what cannot be served is
refused here, before training, with the field's name and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cache.cells import Cells
from cache.errors import ConfigError, StoreError
from cache.field_list import Asked
from cache.grid import BevGrid
from cache.quantise import keeps_zero
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.detector import Detector
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.student import MapFacts, head_classes, require_box_maps

LOOKED_AT = 128  # frames whose values are looked at before training: enough for a channel's mean to 1 %


def teacher_map(teacher: TeacherStore, level: str) -> MapFacts:
    """The feature ("") or a further level of the store. StoreError naming the field and the remedy where it is not
    stored."""
    if not level:
        return MapFacts(teacher.bev.channels, teacher.grid)
    store: Any = teacher
    store.require(level_item(level))
    found = store.further.level(level)
    return MapFacts(found.encoding.channels, found.grid)


def teacher_cells(teacher: TeacherStore, level: str) -> Callable[[int], Cells]:
    """Reads one row's cells of that map."""
    store: Any = teacher
    return (lambda row: store.level_cells(row, level)) if level else teacher.cells


def teacher_groups(teacher: TeacherStore) -> tuple[tuple[str, ...], ...]:
    """The classes of each task group of the stored `regression`."""
    store: Any = teacher
    store.require("regression")
    return tuple(tuple(names) for names in store.further.groups)


def require_same_groups(term: str, teacher: TeacherStore, model: Detector) -> None:
    """ConfigError, naming both, where a task group of the student is not one of the teacher's: raw regression of one
    group cannot teach another."""
    require_box_maps(term, model)
    mine, theirs = head_classes(term, model).names, teacher_groups(teacher)
    known = {frozenset(group) for group in theirs}
    for group in mine:
        if frozenset(group) not in known:
            raise ConfigError(
                f"term {term}: the student's task group {'|'.join(group)} is none of the teacher's "
                f"{', '.join('|'.join(names) for names in theirs)}; set [model.head] tasks to the teacher's, or drop "
                "the regression from the term's branches"
            )


def depth_edges(teacher: TeacherStore) -> tuple[float, ...]:
    """Edges (m) of the stored depth bins."""
    store: Any = teacher
    store.require("depth")
    return tuple(store.further.depth.edges_m)


def require_exact_zeros(term: str, remedy: str, teacher: TeacherStore, level: str, rows: Sequence[int]) -> None:
    """StoreError where zeros of a map in u8 did not stay zeros, by the scales of some of `rows`; remedy: what else the
    term could be told. Stores written since 2026-11-30 keep them, and float16 always does."""
    store: Any = teacher
    encoding = store.further.level(level).encoding if level else teacher.bev
    if encoding.dtype != "u8":
        return
    field = store.further.level(level).stored_name("bev_scale") if level else "bev_scale"
    for row in evenly(rows):
        lost = ~keeps_zero(store.read(row, field))
        if lost.any():
            raise StoreError(
                f"term {term}: {teacher.root}: {field} of frame {teacher.token(row)} has no code for 0 in channel "
                f"{int(lost.argmax())}, and the term tells by zeros what the teacher did not see; run `cache-teacher "
                f"--dtype float16` under another --name, or u8 again with this version, or {remedy}"
            )


def evenly(rows: Sequence[int]) -> list[int]:
    """Up to LOOKED_AT of the rows, evenly spread: what is looked at before training."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).round().astype(int)
    return [rows[place] for place in sorted(set(places.tolist()))]


def sampled_channels(teacher: TeacherStore, item: str) -> int:
    """Channels of an item of samples. StoreError naming the item and the remedy where it is not stored."""
    store: Any = teacher
    return int(store.further.channels[store.require(item).name])


def column_name(selector: str) -> str:
    """The name of the column of weights that a selector reads."""
    return NeededSelector.parse(selector).name


def columns_of(selectors: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of weights that these selectors read."""
    return tuple(map(column_name, selectors))


def map_fields(level: str = "") -> tuple[str, ...]:
    """The teacher fields of a map, and what every masked term reads beside it."""
    return ("bev_index", "bev_weights", *((level_item(level),) if level else ()))


def level_item(level: str) -> str:
    """A level as `cache-teacher --fields` lists it."""
    return str(Asked("level", (("name", level),)))


def said_map(said: TeacherSaid, level: str = "") -> tuple[TeacherCells, BevGrid]:
    """The stored cells of the feature ("") or of a level, and their grid."""
    cells, grid = (said.levels[level], said.level_grids[level]) if level else (said.cells, said.grid)
    assert cells is not None
    return cells, grid


def nothing_there(root: Any, columns: Sequence[str], frames: int) -> StoreError:
    """The refusal of a store that has no cell of a term's selectors in the frames that were looked at."""
    return StoreError(
        f"{root}: no cell of selector {' or '.join(map(repr, columns))} in {frames} training frames; the teacher store "
        "has nothing to distil there, choose another selector or split"
    )
