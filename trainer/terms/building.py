"""How a recipe's list of terms becomes modules, and what they need together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cache.coverage import FrameKind
from cache.errors import ConfigError
from cache.serving import Answer
from models.config import Config, parse_config
from models.detector import Detector
from trainer.terms.imported import imported_kind
from trainer.terms.registry import RELABELS, TERMS
from trainer.terms.relabel import Relabel
from trainer.terms.spec import JoinedTeacher, Spec
from trainer.terms.term import RelabelKind, TermKind, TermNeeds, require_served


def kind_of(name: str, callable: str, where: str) -> TermKind | RelabelKind:
    """How a term is made: a shipped one by its name, one of one's own by its import path.

    Raises ConfigError naming an unknown term and those there are, and as `trainer.terms.imported.imported_kind`.
    """
    shipped = TERMS.get(name) or RELABELS.get(name)
    if callable:
        if shipped is not None:
            raise ConfigError(f"{where}: term {name!r} is a shipped one: give that of callable {callable} another name")
        return imported_kind(callable, f"{where}: term {name}")
    if shipped is None:
        raise ConfigError(
            f"{where}: term {name!r} is unknown; the terms are {', '.join([*TERMS, *RELABELS])}; for one of your own "
            'say callable = "module:callable" beside its name'
        )
    return shipped


def parse_options(name: str, options: Mapping[str, Any], where: str, callable: str = "") -> Config:
    """A term's checked options. Raises ConfigError as `kind_of`, and naming an unknown key and those there are."""
    return parse_config(kind_of(name, callable, where).options, dict(options), f"{where}: term {name}, options")


def _kind_and_options(spec: Spec) -> tuple[TermKind | RelabelKind, Config]:
    return kind_of(spec.name, spec.callable, "recipe"), parse_options(spec.name, spec.options, "recipe", spec.callable)


def needs_by_term(specs: Sequence[Spec]) -> dict[str, TermNeeds]:
    """What each term of a recipe needs under its options, by what it is known as."""
    out = {}
    for spec in specs:
        kind, options = _kind_and_options(spec)
        out[spec.known_as] = kind.needs(options)
    return out


def build_terms(specs: Sequence[Spec], model: Detector, teachers: Mapping[str, JoinedTeacher]) -> nn.ModuleDict:
    """The terms of a recipe as modules, in order, by what they are known as; those that change labels aside. teachers:
    by name.

    Raises ConfigError or StoreError, before anything is trained, where a term's teacher store or the student cannot
    serve it.
    """
    require_served_by(specs, model, teachers)
    out = nn.ModuleDict()
    for spec in specs:
        kind, options = _kind_and_options(spec)
        if isinstance(kind, TermKind):
            teacher = teachers[spec.teacher]
            out[spec.known_as] = kind.build(spec.known_as, spec.weight, options, model, teacher.store, teacher.rows)
    return out


def build_relabels(specs: Sequence[Spec]) -> dict[str, Relabel]:
    """What changes labels of a recipe, in order, by what it is known as."""
    out = {}
    for spec in specs:
        kind, options = _kind_and_options(spec)
        if isinstance(kind, RelabelKind):
            out[spec.known_as] = kind.build(spec.known_as, options)
    return out


def require_served_by(
    specs: Sequence[Spec], model: Detector, teachers: Mapping[str, JoinedTeacher]
) -> dict[str, dict[FrameKind, Answer]]:
    """By term what `require_served` answers. ConfigError where a term's teacher is not among `teachers`."""
    needs, out = needs_by_term(specs), {}
    for spec in specs:
        if spec.teacher not in teachers:
            found = f"teacher {spec.teacher!r} is not opened" if spec.teacher else "the recipe names none"
            raise ConfigError(f"term {spec.known_as} needs a teacher store, but {found}; set [data] teacher")
        teacher = teachers[spec.teacher]
        out[spec.known_as] = require_served(spec.known_as, needs[spec.known_as], teacher.store, model, teacher.rows)
    return out


def skipped_on(
    frames: FrameKind, specs: Sequence[Spec], model: Detector, teachers: Mapping[str, JoinedTeacher]
) -> dict[str, str]:
    """The terms that do not apply to frames of this kind among their teacher's rows, where they add nothing, and why.

    Raises as `build_terms`.
    """
    kinds = {name: answer.get(frames) for name, answer in require_served_by(specs, model, teachers).items()}
    return {name: answer.reason for name, answer in kinds.items() if answer is not None and not answer.served}
