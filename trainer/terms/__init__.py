"""Distillation terms, the public door: by name, how a recipe's list of them becomes modules. One file a term."""

from trainer.terms.building import (
    build_relabels,
    build_terms,
    needs_by_term,
    parse_options,
    require_served_by,
    skipped_on,
)
from trainer.terms.registry import RELABELS, TERMS
from trainer.terms.schedule import Schedule, scheduled
from trainer.terms.spec import JoinedTeacher, Spec
from trainer.terms.term import Term, TermKind, TermNeeds, require_served

__all__ = [
    "RELABELS",
    "TERMS",
    "JoinedTeacher",
    "Schedule",
    "Spec",
    "Term",
    "TermKind",
    "TermNeeds",
    "build_relabels",
    "build_terms",
    "needs_by_term",
    "parse_options",
    "require_served",
    "require_served_by",
    "scheduled",
    "skipped_on",
]
