"""Further fields of a teacher store, described: what `cache-teacher --fields` lists, and what a term may ask for.

Written `logits,level(name=canvas),queries(top=50),samples(boxes=truth,points=9)`; options left out take their defaults.
A list is a set: its items stand in the order of KINDS, then by name, so that equal lists are equal texts and headers.
`cache.further` says which arrays an item makes, `pipeline.fields` computes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache.errors import ConfigError, CorruptError

Value = int | float | str
_LEVEL = r"[a-z0-9][a-z0-9_]{0,15}"  # a part of the names of fields
_POINTS = r"9|[1-9][0-9]?x[1-9][0-9]?"


@dataclass(frozen=True)
class Option:
    """An option of an item: an int or a float in low..high, or a str that `pattern` matches. default None: it must be
    given."""

    type: type[int] | type[float] | type[str]
    default: Value | None
    about: str
    low: float = 0
    high: float = 0
    pattern: str = ""


KINDS: dict[str, Mapping[str, Option]] = {
    "logits": {},
    "regression": {},
    "level": {"name": Option(str, None, "a further BEV map of the teacher", pattern=_LEVEL)},
    "queries": {"top": Option(int, 0, "the best queries a frame, 0: all", 0, 10**5)},
    "samples": {
        "boxes": Option(str, "truth", "truth or teacher", pattern="truth|teacher"),
        "points": Option(str, "9", "9 (corners, edge middles, centre) or a grid such as 7x7", pattern=_POINTS),
        "level": Option(str, "", "a further BEV map in place of the feature", pattern=f"({_LEVEL})?"),
        "enlarge": Option(float, 1.0, "factor on length and width of the boxes", 0.1, 10),
        "limit": Option(int, 0, "boxes of the teacher a frame, the best ones, 0: all", 0, 10**5),
    },
    "depth": {},
    "adaptor": {},
}


@dataclass(frozen=True)
class Asked:
    """One item of a list, with every option. ConfigError naming what there is where it does not read."""

    kind: str
    options: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"field {self.kind!r:.60} is unknown, expected one of {', '.join(KINDS)}")
        declared, given = KINDS[self.kind], dict(self.options)
        for key in given:
            if key not in declared:
                there_is = f"its options are {', '.join(declared)}" if declared else "it has no options"
                raise ConfigError(f"field {self.kind} has no option {key!r:.60}; {there_is}")
        filled = tuple((key, _checked(self.kind, key, given.get(key, o.default), o)) for key, o in declared.items())
        object.__setattr__(self, "options", filled)
        if self.kind == "samples" and self["limit"] and self["boxes"] == "truth":
            raise ConfigError("field samples: limit goes with boxes=teacher; every annotated box is sampled")

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    @property
    def name(self) -> str:
        """What it is called in a store; the beginning of the names of its arrays. Once in a list."""
        if self.kind == "level":
            return f"level_{self['name']}"
        if self.kind == "samples":
            return "_".join(filter(None, ("samples", self["boxes"], self["level"], self["points"])))
        return self.kind

    def holds(self, wanted: Asked) -> bool:
        """Whether who has this has `wanted`: rows are the best ones first, so that fewer are the beginning of more."""
        if self.name != wanted.name:
            return False
        same = all(self[key] == wanted[key] for key in KINDS[self.kind] if key not in ("top", "limit"))
        counts = [(self[key], wanted[key]) for key in ("top", "limit") if key in KINDS[self.kind]]
        return same and all(not have or 0 < want <= have for have, want in counts)

    def __str__(self) -> str:
        declared = KINDS[self.kind]
        inside = ",".join(f"{k}={_written(v)}" for k, v in self.options if v != declared[k].default)
        return f"{self.kind}({inside})" if inside else self.kind


_ITEM = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\(([^()]*)\))?\s*(?:([+,])|$)", re.ASCII)


@dataclass(frozen=True)
class FieldList:
    """Items by KINDS and name, each name once; may be empty. ConfigError for a name that stands twice."""

    items: tuple[Asked, ...] = ()

    def __post_init__(self) -> None:
        order = list(KINDS)
        ordered = tuple(sorted(self.items, key=lambda item: (order.index(item.kind), item.name)))
        object.__setattr__(self, "items", ordered)
        names = [item.name for item in ordered]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{twice[0]} stands twice; name it once, or with other points")

    @classmethod
    def parse(cls, text: str, where: str = "--fields") -> FieldList:
        """From `NAME(option=value,...)` joined by commas or plus signs, empty for none; `where` names the text's place
        in the ConfigError."""
        items: list[Asked] = []
        position = 0
        try:
            while text.strip():
                match = _ITEM.match(text, position)
                if match is None:
                    raise ConfigError(
                        f"found {text[position:]!r:.60}, expected NAME or NAME(option=value,...) joined by commas, "
                        f"where NAME is one of {', '.join(KINDS)}"
                    )
                items.append(Asked(match[1], tuple(_read_options(match[1], match[2] or "").items())))
                position = match.end()
                if not match[3]:
                    break
            return cls(tuple(items))
        except ConfigError as error:
            raise ConfigError(f"{where} {text!r:.200}: {error}") from None

    @classmethod
    def from_header(cls, text: Any, where: str) -> FieldList:
        """Inverse of `str`; CorruptError for anything that `str` would not have written."""
        try:
            if not isinstance(text, str):
                raise ConfigError(f"found {text!r:.60}, expected a text")
            asked = cls.parse(text, "asked")
            if str(asked) != text:
                raise ConfigError(f"found {text!r:.200}, expected {str(asked)!r:.200}")
        except ConfigError as error:
            raise CorruptError(f"{where}: {error}; the store is damaged, run verify") from None
        return asked

    def of(self, kind: str) -> tuple[Asked, ...]:
        """The items of a kind."""
        return tuple(item for item in self.items if item.kind == kind)

    def __contains__(self, kind: object) -> bool:
        return any(item.kind == kind for item in self.items)

    def holds(self, wanted: Asked) -> bool:
        """Whether a store of this list has `wanted`."""
        return any(item.holds(wanted) for item in self.items)

    def with_item(self, wanted: Asked) -> FieldList:
        """The list that has `wanted` too, which takes the place of its namesake."""
        if self.holds(wanted):
            return self
        return FieldList((*(item for item in self.items if item.name != wanted.name), wanted))

    def __str__(self) -> str:
        return ",".join(map(str, self.items))


NOTHING = FieldList()


def asked_by_field(field: str) -> Asked | None:
    """The item that makes the array `field` of a store; None for arrays that every store has, and unknown ones."""
    if match := re.fullmatch(r"(logits|regression)(_map)?", field):
        return Asked(match[1])
    if match := re.fullmatch(rf"level_({_LEVEL})_(values|map|index|weights|scale)", field):
        return Asked("level", (("name", match[1]),))
    if field in ("query_logits", "query_boxes"):
        return Asked("queries")
    if match := re.fullmatch(rf"samples_(truth|teacher)(?:_({_LEVEL}))?_({_POINTS})(_inside)?", field):
        return Asked("samples", (("boxes", match[1]), ("level", match[2] or ""), ("points", match[3])))
    return Asked("depth") if field == "depth_probs" else None


def _read_options(kind: str, inside: str) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for part in inside.split(",") if inside.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key in out:
            raise ConfigError(f"field {kind:.60}: found {part.strip()!r:.60}, expected option=value, each once")
        out[key] = value
    return out


def _checked(kind: str, key: str, value: Any, option: Option) -> Value:
    """`value`, or the text of one, as the option's type."""
    try:
        if option.type is str:
            if isinstance(value, str) and re.fullmatch(option.pattern, value):
                return value
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            number = int(value) if option.type is int else float(value)
            if option.low <= number <= option.high and (isinstance(value, str) or number == value):
                return number
    except ValueError:
        pass
    found = "is missing" if value is None else f"is {value!r:.60}"
    numbers = "" if option.type is str else f"a number in {option.low:g}..{option.high:g}: "
    raise ConfigError(f"field {kind}: {key} {found}, expected {numbers}{option.about}")


def _written(value: Value) -> str:
    return value if isinstance(value, str) else repr(value).removesuffix(".0")
