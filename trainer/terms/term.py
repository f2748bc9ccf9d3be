"""The protocol of distillation terms: what a term needs of a teacher store and of the student, and what it gives.

A term is a `torch.nn.Module`, so that an adaptor it owns is trained with the student; it is saved in checkpoints and
never exported. It gives numerators and normalisers apart (`LossPart`), as detectors do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cache.errors import ConfigError, StoreError
from cache.grid import BevGrid
from cache.store import TeacherStore
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.batches import TeacherCells


@dataclass(frozen=True)
class TermNeeds:
    """teacher_fields, selectors: of the teacher store; student: attributes of `DetectorOutput` that are read."""

    teacher_fields: tuple[str, ...]
    selectors: tuple[str, ...]
    student: tuple[str, ...]


class Term(Protocol):
    """One distillation loss."""

    name: str
    weight: float
    needs: TermNeeds

    def __call__(self, output: DetectorOutput, batch: Batch, cells: TeacherCells | None) -> dict[str, LossPart]:
        """Parts by name, the term's weight in each; `models.detector.total_of` gives the scalars."""
        ...


def require_served(name: str, needs: TermNeeds, teacher: TeacherStore, model: Detector) -> None:
    """Raises, before any training, StoreError or ConfigError where `teacher` or `model` cannot serve the term `name`.

    Every message names what was found, what the term needs, and how to get it.
    """
    fields = {spec.name for spec in teacher.manifest.fields}
    for field in needs.teacher_fields:
        if field not in fields:
            raise StoreError(
                f"term {name} reads the field {field!r}, but {teacher.root} holds {sorted(fields)}; run cache-teacher "
                "again "
                "with a teacher that gives it"
            )
    for selector in needs.selectors:
        if selector not in teacher.selectors:
            raise StoreError(
                f"term {name} reads the cells of selector {selector!r}, but {teacher.root} covers "
                f"{teacher.selectors}; run "
                f"`cache-teacher --coverage {','.join([*teacher.selectors, selector])}` under another --name"
            )
    if needs.selectors:
        _require_same_grid(name, teacher, model.grid)


def _require_same_grid(name: str, teacher: TeacherStore, grid: BevGrid) -> None:
    if teacher.grid != grid:
        raise ConfigError(
            f"term {name}: {teacher.root} is on the grid {teacher.grid}, the student's is {grid}; set the student's "
            "grid to "
            "the teacher's in [model], or run cache-teacher with a teacher on the student's grid"
        )
