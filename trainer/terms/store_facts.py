"""What terms ask of a teacher store when they are built: channels and grids of its maps, task groups, depth bins.

The one place where terms read the description of further fields (`cache.further`), so that what cannot be served is
refused here, before training, with the field's name and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cache.cells import Cells
from cache.errors import ConfigError, StoreError
from cache.grid import BevGrid
from cache.serving import NeededSelector
from cache.store import TeacherStore
from models.detector import Detector


@dataclass(frozen=True)
class MapFacts:
    """One BEV map: its channels and grid."""

    channels: int
    grid: BevGrid


def teacher_map(teacher: TeacherStore, level: str) -> MapFacts:
    """The feature ("") or a further level of the store. StoreError naming the field and the remedy where it is not
    stored."""
    if not level:
        return MapFacts(teacher.bev.channels, teacher.grid)
    store: Any = teacher
    store.require(f"level(name={level})")
    found = store.further.level(level)
    return MapFacts(found.encoding.channels, found.grid)


def teacher_cells(teacher: TeacherStore, level: str) -> Callable[[int], Cells]:
    """Reads one row's cells of that map."""
    store: Any = teacher
    return (lambda row: store.level_cells(row, level)) if level else teacher.cells


def student_map(term: str, model: Detector, level: str) -> MapFacts:
    """The student's main map ("") or one of its levels. ConfigError naming those there are."""
    if not level:
        return MapFacts(model.bev_channels, model.grid)
    if level not in model.levels:
        raise ConfigError(
            f"term {term}: the student gives no level {level!r}, it gives {', '.join(model.levels) or 'none'}; set "
            "student_level to one of them, or leave it out for the main map"
        )
    return MapFacts(model.levels[level].channels, model.levels[level].grid)


def student_groups(term: str, model: Detector) -> tuple[tuple[str, ...], ...]:
    """The classes of each of the student's task groups, in the order of `DetectorOutput.heads`. ConfigError for a
    detector without them."""
    tasks = (model.config.get("head") or {}).get("tasks")
    if not tasks:
        raise ConfigError(
            f"term {term}: the student has no centre head with task groups, which this term reads; choose a model with "
            "`heads`, or a term for queries"
        )
    return tuple(tuple(task) for task in tasks)


def teacher_groups(teacher: TeacherStore) -> tuple[tuple[str, ...], ...]:
    """The classes of each task group of the stored `regression`."""
    store: Any = teacher
    store.require("regression")
    return tuple(tuple(names) for names in store.further.groups)


def require_same_groups(term: str, teacher: TeacherStore, model: Detector) -> None:
    """ConfigError, naming both, where a task group of the student is not one of the teacher's: raw regression of one
    group cannot teach another."""
    mine, theirs = student_groups(term, model), teacher_groups(teacher)
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


def sampled_channels(teacher: TeacherStore, item: str) -> int:
    """Channels of an item of samples. StoreError naming the item and the remedy where it is not stored."""
    store: Any = teacher
    return int(store.further.channels[store.require(item).name])


def columns_of(selectors: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of weights that these selectors read."""
    return tuple(NeededSelector.parse(text).name for text in selectors)


def level_field(level: str) -> tuple[str, ...]:
    """The teacher field of a map, and what every masked term reads beside it."""
    return ("bev_index", "bev_weights", *((f"level(name={level})",) if level else ()))


def nothing_there(root: Any, columns: Sequence[str], frames: int) -> StoreError:
    """The refusal of a store that has no cell of a term's selectors in the frames that were looked at."""
    return StoreError(
        f"{root}: no cell of selector {' or '.join(map(repr, columns))} in {frames} training frames; the teacher store "
        "has nothing to distil there, choose another selector or split"
    )
