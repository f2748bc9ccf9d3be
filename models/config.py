"""Strict configuration: frozen pydantic models whose errors are one line: the key, what was found, what is allowed.

Each part's config class stands beside the part; this file only has their base and the translation of errors.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cache.errors import ConfigError
from cache.grid import BevGrid


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError(f"{ends[0]:g} to {ends[1]:g} m must rise")
    return ends


AtLeastOne = Annotated[int, Field(ge=1)]  # channels, strides, pixels
NotNegative = Annotated[float, Field(ge=0)]  # weights, distances
Between = Annotated[tuple[float, float], AfterValidator(_rising)]  # low, high (m)


class Config(BaseModel):
    """Base of every config: unknown keys are errors, numbers are finite, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    """`values` as a `cls`. Raises ConfigError, one line: `where`, the dotted key, what is wrong and what is allowed.

    A table is not told again as what was found: its validator names the values that do not go together.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(_config_at(cls, problem["loc"][:-1]).model_fields))
            raise ConfigError(f"{where}: unknown key {key!r}; allowed there: {allowed}") from None
        whole = isinstance(problem["input"], dict) and problem["type"] == "value_error"
        found = "" if whole or problem["type"] == "missing" else f", found {problem['input']!r}"
        said = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {f'key {key!r}: ' if key else ''}{said}{found}") from None
    except ConfigError as error:  # of a part that says for itself what is wrong, as a grid does
        raise ConfigError(f"{where}: {error}") from None


def _config_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The config class that a nested location of an error stands in."""
    for part in location:
        if isinstance(part, str) and part in cls.model_fields:
            annotation = cls.model_fields[part].annotation
            for candidate in (annotation, *get_args(annotation)):
                if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                    cls = candidate
    return cls
