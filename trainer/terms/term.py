"""The protocol of distillation terms: what a term needs of a teacher store and of the student, and what it gives.

A term is a `torch.nn.Module`, so that an adaptor it owns is trained with the student; it is saved in checkpoints and
never exported. It gives numerators and normalisers apart (`LossPart`), as detectors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cache.coverage import FrameKind
from cache.errors import ConfigError, StoreError
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from cache.serving import Answer, NeededSelector, StoreOffer, TermNeed, serves
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from trainer.said import TeacherSaid

_KINDS: dict[FrameKind, int] = {"labelled": KIND_LABELLED, "unlabelled": KIND_UNLABELLED}


@dataclass(frozen=True)
class TermNeeds:
    """teacher_fields: of the teacher store, by name or as `cache-teacher --fields` lists them; selectors: whose weights
    are read, `NAME` or `NAME(option=value,...)` where an option must have that value; student: attributes of
    `DetectorOutput` that are read; every_cell: teacher values at all cells are read, whatever their weights; any_grid:
    the student's grid may differ from the store's; batch: attributes of `Batch` that are read beside
    `bev_augmentation`; unaugmented: batches must not have a BEV augmentation.
    """

    teacher_fields: tuple[str, ...]
    selectors: tuple[str, ...]
    student: tuple[str, ...]
    every_cell: bool = False
    any_grid: bool = False
    batch: tuple[str, ...] = ()
    unaugmented: bool = False


class Term(Protocol):
    """One distillation loss."""

    name: str
    weight: float
    needs: TermNeeds

    def __call__(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        """Parts by name, the term's weight in each; `models.detector.total_of` gives the scalars."""
        ...


@dataclass(frozen=True)
class TermKind:
    """How one term is made: its options, what it needs under them (`TermNeeds`), and its constructor."""

    options: type[Config]
    needs: Any
    build: Any


@dataclass(frozen=True)
class RelabelKind:
    """How a change of labels is made: its options, what it needs under them, and its constructor (name, options)."""

    options: type[Config]
    needs: Any
    build: Any


def require_served(
    name: str, needs: TermNeeds, teacher: TeacherStore, model: Detector, rows: Sequence[int] | None = None
) -> dict[FrameKind, Answer]:
    """What `cache.serving.serves` answers for the kinds of frames among the teacher's `rows` (None: all of them).

    Raises, before any training, StoreError or ConfigError where the store cannot serve the term `name` on one of them,
    or where the term applies to none; every message says what was found, what the term needs, and how to get it. On
    kinds that come back as skipped the term adds nothing, because the weights that it reads are zero there.
    """
    wanted = tuple(NeededSelector.parse(text, f"term {name}: selector") for text in needs.selectors)
    gives = getattr(model, "gives", None)
    if gives is not None and (lacking := [part for part in needs.student if part not in gives]):
        raise ConfigError(
            f"term {name}: reads the student's {', '.join(lacking)}, this one gives {', '.join(sorted(gives))}; drop "
            "the term, or choose a student that has it"
        )
    on_the_grid = (bool(wanted) or needs.every_cell) and not needs.any_grid
    need = TermNeed(needs.teacher_fields, wanted, needs.every_cell, model.grid if on_the_grid else None)
    offer = StoreOffer(
        tuple(spec.name for spec in teacher.manifest.fields), teacher.grid, teacher.coverage, teacher.further.asked
    )
    found = np.unique(teacher.index.kind if rows is None else np.asarray(teacher.index.kind)[list(rows)])
    kinds = [kind for kind, number in _KINDS.items() if number in found]
    answers = {kind: serves(offer, need, kind) for kind in kinds}
    for answer in answers.values():
        if answer.verdict == "refused":
            error = ConfigError if answer.about == "grid" else StoreError
            raise error(f"term {name}: {teacher.root}: it {answer.reason}; {answer.remedy}")
    if answers and not any(answer.served for answer in answers.values()):
        raise StoreError(
            f"term {name}: {teacher.root}: it {answers[kinds[0]].reason}, all of them; drop the term, or train on "
            "annotated frames"
        )
    return answers
