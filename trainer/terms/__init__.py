"""Distillation terms by name, and how a recipe's list of them becomes modules. One file a term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cache.coverage import FrameKind
from cache.errors import ConfigError
from cache.store import TeacherStore
from models.config import Config, parse_config
from models.detector import Detector
from trainer.terms.bevdistill_dense import BevDistillDense, BevDistillDenseOptions, needs_of
from trainer.terms.term import Term, TermNeeds, require_served

__all__ = ["TERMS", "Term", "TermKind", "TermNeeds", "build_terms", "parse_options", "require_served"]


@dataclass(frozen=True)
class TermKind:
    """How one term is made: its options, what it needs under them, and its constructor."""

    options: type[Config]
    needs: Any
    build: Any


TERMS: dict[str, TermKind] = {
    "bevdistill_dense": TermKind(BevDistillDenseOptions, needs_of, BevDistillDense.build),
}


def parse_options(name: str, options: Mapping[str, Any], where: str) -> Config:
    """A term's checked options. Raises ConfigError naming an unknown term or key and those there are."""
    if name not in TERMS:
        raise ConfigError(f"{where}: term {name!r} is unknown; the terms are {', '.join(TERMS)}")
    return parse_config(TERMS[name].options, dict(options), f"{where}: term {name}, options")


def build_terms(
    specs: Sequence[tuple[str, float, Mapping[str, Any]]],
    model: Detector,
    teacher: TeacherStore | None,
    teacher_rows: Sequence[int],
) -> nn.ModuleDict:
    """The terms (name, weight, options) of a recipe as modules, in order.

    Raises ConfigError or StoreError, before anything is trained, where the teacher store or the student cannot serve
    one.
    """
    modules = nn.ModuleDict()
    for name, weight, options in specs:
        parsed = parse_options(name, options, "recipe")
        if teacher is None:
            raise ConfigError(f"term {name} needs a teacher store, but the recipe names none; set [data] teacher")
        require_served(name, TERMS[name].needs(parsed), teacher, model, teacher_rows)
        modules[name] = TERMS[name].build(name, weight, parsed, model, teacher, teacher_rows)
    return modules


def skipped_on(
    frames: FrameKind,
    specs: Sequence[tuple[str, float, Mapping[str, Any]]],
    model: Detector,
    teacher: TeacherStore,
    teacher_rows: Sequence[int],
) -> dict[str, str]:
    """The terms that do not apply to frames of this kind among the teacher's rows, where they add nothing, and why.

    Raises as `build_terms`.
    """
    answers = {
        name: require_served(
            name, TERMS[name].needs(parse_options(name, options, "recipe")), teacher, model, teacher_rows
        )
        for name, _, options in specs
    }
    kinds = {name: answer.get(frames) for name, answer in answers.items()}
    return {name: answer.reason for name, answer in kinds.items() if answer is not None and not answer.served}
