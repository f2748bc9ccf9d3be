"""Strict configuration: frozen pydantic models whose errors are one line: the key, what was found, what is allowed.

Each part's config class stands beside the part; this file only has their base and the translation of errors.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from cache.errors import ConfigError
from cache.grid import BevGrid


class Config(BaseModel):
    """Base of every config: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GridConfig(Config):
    """A square-celled BEV grid in the canonical frame, metres; as `cache.grid.BevGrid`."""

    x_min: float = -51.2
    x_max: float = 51.2
    y_min: float = -51.2
    y_max: float = 51.2
    cell_m: float

    def grid(self) -> BevGrid:
        return BevGrid(self.x_min, self.x_max, self.y_min, self.y_max, self.cell_m)


C = TypeVar("C", bound=Config)


def parse_config(cls: type[C], values: dict[str, Any], where: str) -> C:
    """`values` as a `cls`. Raises ConfigError, one line: `where`, the dotted key, what is wrong and what is allowed."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(_config_at(cls, problem["loc"][:-1]).model_fields))
            raise ConfigError(f"{where}: unknown key {key!r}; allowed there: {allowed}") from None
        found = "" if problem["type"] == "missing" else f", found {problem['input']!r}"
        raise ConfigError(f"{where}: key {key!r}: {problem['msg']}{found}") from None


def _config_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The config class that a nested location of an error stands in."""
    for part in location:
        if isinstance(part, str) and part in cls.model_fields:
            annotation = cls.model_fields[part].annotation
            for candidate in (annotation, *get_args(annotation)):
                if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                    cls = candidate
    return cls
