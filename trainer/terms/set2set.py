"""Set-to-set distillation of Object-DGCNN: the teacher's objects stand for annotations (Wang and Solomon 2021).

A row of BEVDistill's table. It is `bevdistill_sparse` with every object trusted alike: one-to-one matching, then class
and box loss on each layer of the decoder. The weights are those of Object-DGCNN's detection loss for boxes and
BEVDistill's soft cross-entropy for classes; the paper's own are not known to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from cache.store import TeacherStore
from models.config import Config
from models.detector import Detector
from trainer.terms.bevdistill_sparse import BevDistillSparse, BevDistillSparseOptions
from trainer.terms.bevdistill_sparse import needs_of as sparse_needs_of
from trainer.terms.teacher_set import Source
from trainer.terms.term import TermNeeds


class Set2SetOptions(Config):
    """As `bevdistill_sparse` has them."""

    objects: Source = "queries"
    top: int = Field(default=300, ge=1)
    layers: Literal["all", "last"] = "all"
    box_weight: float = Field(default=0.25, ge=0)
    class_weight: float = Field(default=1.0, ge=0)
    velocity_weight: float = Field(default=0.2, ge=0)

    def sparse(self) -> BevDistillSparseOptions:
        """The same as options of the sparse term."""
        return BevDistillSparseOptions(quality="none", **self.model_dump())


def build(
    name: str,
    weight: float,
    options: Set2SetOptions,
    model: Detector,
    teacher: TeacherStore,
    teacher_rows: Sequence[int],
) -> BevDistillSparse:
    """The term for a student; ConfigError where that is known to have no queries."""
    return BevDistillSparse.build(name, weight, options.sparse(), model, teacher, teacher_rows)


def needs_of(options: Set2SetOptions) -> TermNeeds:
    """What the term reads under these options."""
    return sparse_needs_of(options.sparse())
