"""How a recipe's list of terms becomes modules, and what they need together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cache.coverage import FrameKind
from cache.errors import ConfigError
from cache.store import TeacherStore
from models.config import Config, parse_config
from models.detector import Detector
from trainer.terms.registry import RELABELS, TERMS
from trainer.terms.relabel import Relabel
from trainer.terms.term import RelabelKind, TermKind, TermNeeds, require_served

Spec = tuple[str, float, Mapping[str, Any]]  # a term's name, weight and options


def parse_options(name: str, options: Mapping[str, Any], where: str) -> Config:
    """A term's checked options. Raises ConfigError naming an unknown term or key and those there are."""
    kind = TERMS.get(name) or RELABELS.get(name)
    if kind is None:
        raise ConfigError(f"{where}: term {name!r} is unknown; the terms are {', '.join([*TERMS, *RELABELS])}")
    return parse_config(kind.options, dict(options), f"{where}: term {name}, options")


def needs_by_term(specs: Sequence[Spec]) -> dict[str, TermNeeds]:
    """What each term of a recipe needs under its options."""
    kinds: dict[str, TermKind | RelabelKind] = {**TERMS, **RELABELS}
    parsed = {name: parse_options(name, options, "recipe") for name, _, options in specs}
    return {name: kinds[name].needs(options) for name, options in parsed.items()}


def build_terms(
    specs: Sequence[Spec], model: Detector, teacher: TeacherStore | None, teacher_rows: Sequence[int]
) -> nn.ModuleDict:
    """The terms of a recipe as modules, in order; those that change labels aside.

    Raises ConfigError or StoreError, before anything is trained, where the teacher store or the student cannot serve
    one.
    """
    require_served_by(specs, model, teacher, teacher_rows)
    return nn.ModuleDict(
        {
            name: TERMS[name].build(name, weight, parse_options(name, options, "recipe"), model, teacher, teacher_rows)
            for name, weight, options in specs
            if name in TERMS
        }
    )


def build_relabels(specs: Sequence[Spec]) -> tuple[Relabel, ...]:
    """What changes labels of a recipe, in order."""
    return tuple(
        RELABELS[name].build(name, parse_options(name, options, "recipe"))
        for name, _, options in specs
        if name in RELABELS
    )


def require_served_by(
    specs: Sequence[Spec], model: Detector, teacher: TeacherStore | None, teacher_rows: Sequence[int]
) -> dict[str, Any]:
    """By term what `require_served` answers. ConfigError where there are terms and no teacher."""
    if specs and teacher is None:
        raise ConfigError(f"term {specs[0][0]} needs a teacher store, but the recipe names none; set [data] teacher")
    assert teacher is not None or not specs
    return {
        name: require_served(name, needs, teacher, model, teacher_rows)  # type: ignore[arg-type]
        for name, needs in needs_by_term(specs).items()
    }


def skipped_on(
    frames: FrameKind,
    specs: Sequence[Spec],
    model: Detector,
    teacher: TeacherStore,
    teacher_rows: Sequence[int],
) -> dict[str, str]:
    """The terms that do not apply to frames of this kind among the teacher's rows, where they add nothing, and why.

    Raises as `build_terms`.
    """
    kinds = {
        name: answer.get(frames) for name, answer in require_served_by(specs, model, teacher, teacher_rows).items()
    }
    return {name: answer.reason for name, answer in kinds.items() if answer is not None and not answer.served}
