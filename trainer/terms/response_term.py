"""What terms share that compare the heads' answers, classes and raw maps, at the stored cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

from torch import nn

from cache.store import TeacherStore
from models.detector import Detector
from trainer.terms.store_facts import column_name, map_fields, require_same_groups
from trainer.terms.student import head_classes
from trainer.terms.term import TermNeeds


class ResponseOptions(Protocol):
    """selector: whose weights; branches: which raw maps are compared, of `models.center_head.BRANCHES`."""

    @property
    def selector(self) -> str: ...
    @property
    def branches(self) -> tuple[str, ...]: ...


def needs_of(options: ResponseOptions) -> TermNeeds:
    """What a term of responses reads under these options."""
    fields = (*map_fields(), "logits", *(("regression",) if options.branches else ()))
    return TermNeeds(fields, (options.selector,), ("heads",), any_grid=True)


class ResponseTerm(nn.Module):
    """Base of a `trainer.terms.term.Term`. column: of the weights; groups: the student's classes by task group."""

    def __init__(self, name: str, weight: float, options: Any, model: Detector) -> None:
        super().__init__()
        self.name, self.weight, self.options, self.grid = name, weight, options, model.grid
        self.needs, self.column = needs_of(options), column_name(options.selector)
        self.groups = head_classes(name, model).names

    @classmethod
    def build(
        cls,
        name: str,
        weight: float,
        options: Any,
        model: Detector,
        teacher: TeacherStore,
        teacher_rows: Sequence[int],
    ) -> Self:
        """The term for a student. ConfigError where its task groups are not the teacher's and a branch is compared."""
        if options.branches:
            require_same_groups(name, teacher, model)
        return cls(name, weight, options, model)
