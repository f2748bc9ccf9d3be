"""Terms of one's own: a distillation loss that a callable named by import path makes, `package.module:callable`.

A recipe's `[[terms]]` names it by `callable = "..."`, gives it a `name` for log and checkpoints, and `options`, which
are its keyword arguments. It is called with the student, the teacher store and the options, and returns a
`torch.nn.Module`; what it reads stands on the callable as `needs`. docs/your-own-loss.md has a whole one.
"""

from __future__ import annotations

import inspect
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from cache.errors import BevcaskError, ConfigError
from cache.store import TeacherStore
from models.config import Config
from models.detector import Batch, Detector, DetectorOutput, LossPart
from models.import_path import import_callable, one_line
from trainer.said import TeacherSaid
from trainer.terms.term import TermKind, TermNeeds

GIVEN = 2  # arguments by place: the student, and the teacher store
PAGE = "see docs/your-own-loss.md"


def imported_kind(path: str, where: str) -> TermKind:
    """How the term of a callable is made; where: what errors begin with.

    Raises ConfigError, one line, where the callable cannot be had, does not take a student and a store, or does not say
    what it needs.
    """
    named = f"{where}: callable {path}"
    build = import_callable(path, named)

    def needs(options: Config) -> TermNeeds:
        said = getattr(build, "needs", None)
        if callable(said):
            with _told(named):
                said = said(**_keywords(options))
        if not isinstance(said, TermNeeds):
            raise ConfigError(
                f"{named}: its attribute `needs` is {_what(said)}, expected a trainer.terms.TermNeeds, or a function "
                f"of the options that returns one; {PAGE}"
            )
        return said

    def term(
        name: str, weight: float, options: Config, model: Detector, teacher: TeacherStore, rows: Sequence[int]
    ) -> ImportedTerm:
        with _told(f"term {name}: callable {path}"):
            made = build(model, teacher, **_keywords(options))
        if not isinstance(made, nn.Module):
            raise ConfigError(f"{named}: it returned {_what(made)}, expected a torch.nn.Module; {PAGE}")
        return ImportedTerm(name, weight, needs(options), made, path)

    return TermKind(_options_of(build, named), needs, term)


class ImportedTerm(nn.Module):
    """A `trainer.terms.term.Term` around a module of one's own, which gives a numerator and a normaliser: of the part
    `<name>`, or a dict of them by name, of the parts `<name>.<their name>`."""

    def __init__(self, name: str, weight: float, needs: TermNeeds, module: nn.Module, path: str) -> None:
        super().__init__()
        self.name, self.weight, self.needs, self.module, self.path = name, weight, needs, module, path

    def forward(self, output: DetectorOutput, batch: Batch, said: TeacherSaid) -> dict[str, LossPart]:
        """Raises ConfigError where the module raises, or gives something else."""
        where = f"term {self.name}: callable {self.path}"
        with _told(where), torch.autocast(output.bev.device.type, enabled=False):
            found = self.module(output, batch, said)
        parts = {f".{name}": sides for name, sides in found.items()} if isinstance(found, Mapping) else {"": found}
        return {f"{self.name}{name}": self._part(sides, where) for name, sides in parts.items()}

    def _part(self, sides: Any, where: str) -> LossPart:
        if not (isinstance(sides, tuple) and len(sides) == 2 and all(map(_is_scalar, sides))):
            raise ConfigError(
                f"{where}: it gave {_what(sides)}, expected two scalar tensors, (numerator, normaliser), or a dict of "
                f"such pairs by name; {PAGE}"
            )
        numerator, normaliser = (side.reshape(1).float() for side in sides)
        return LossPart(numerator, normaliser, self.weight)


def _options_of(build: Callable[..., Any], where: str) -> type[Config]:
    """The callable's arguments behind the student and the store as a config: names, defaults and, where they are of
    TOML's kinds, types."""
    try:
        arguments = list(inspect.signature(build).parameters.values())
    except ValueError:  # a builtin without a signature
        arguments = []
    places = [a for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)]
    if len(places) < GIVEN:
        raise ConfigError(f"{where}: it must take the student and the teacher store by place, then options; {PAGE}")
    named = [*places[GIVEN:], *(a for a in arguments if a.kind == a.KEYWORD_ONLY)]
    types = _types_of(build)
    fields: dict[str, Any] = {
        a.name: (_checked(types.get(a.name, Any)), ... if a.default is a.empty else a.default) for a in named
    }
    try:
        options: type[Config] = pydantic.create_model("Options", __base__=Config, **fields)
        options.model_construct().model_dump(mode="json", warnings=False)
    except Exception as error:  # of pydantic: a name that it keeps for itself, a default that TOML cannot say
        raise ConfigError(f"{where}: its arguments are no options of a recipe: {one_line(error)}") from error
    return options


def _types_of(build: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    except Exception:  # a type that cannot be looked up is not checked
        return {}


def _checked(annotation: Any) -> Any:
    """The type that an option is held to: any where it is not one that TOML's values could have."""
    try:
        pydantic.TypeAdapter(annotation)
    except Exception:
        return Any
    return annotation


def _keywords(options: Config) -> dict[str, Any]:
    return {name: getattr(options, name) for name in type(options).model_fields}


class _told:
    """Context: an error of one's own code becomes a ConfigError of one line, with the file and line that raised it."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, BevcaskError | torch.OutOfMemoryError):
            return
        last = traceback.extract_tb(trace)[-1]
        raise ConfigError(
            f"{self.where}: it raised {type(error).__name__} ({last.filename}:{last.lineno}): {one_line(error)}"
        ) from error


def _is_scalar(side: Any) -> bool:
    return isinstance(side, Tensor) and side.numel() == 1


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_what, value))})"
    return "missing" if value is None else f"a {type(value).__name__}"
