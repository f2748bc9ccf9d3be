"""What fixes a store before its first byte is written: settings, scenes, and each shard's frames in order.

Two runs with equal plans write equal bytes. A shard depends on the store's settings and its own frames only, so shards
keep their bytes when a store grows or is merged with another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.errors import CorruptError, StoreError
from cache.fields import TOKEN_PATTERN, FieldSpec, letters_of
from cache.files import digest_of

FORMATS = ("webdataset", "zarr")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{16}")
_BESIDE = re.compile(r"valid|token|timestamp_us|size_[a-z]")  # `cache.shard_files.side_fields`


@dataclass(frozen=True)
class Format:
    """How frames lie in files. webdataset: one tar a shard. zarr: one array a field, of which a shard owns `rows` rows,
    with sizes that vary padded to `capacity` {letter: size}.
    """

    name: str = "webdataset"
    rows: int = 0
    capacity: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # sorted as it reads back: a run that goes on by the plan's file names a shard's files in the same order
        object.__setattr__(self, "capacity", dict(sorted(self.capacity.items())))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "rows": self.rows, "capacity": dict(self.capacity)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Format:
        out = cls(
            str(values["name"]), int(values["rows"]), {str(key): int(size) for key, size in values["capacity"].items()}
        )
        if out.name not in FORMATS or out.rows < 0 or any(size < 0 for size in out.capacity.values()):
            raise CorruptError(f"store format {dict(values)} is unknown, expected one of {', '.join(FORMATS)}")
        return out


@dataclass(frozen=True)
class Scene:
    """One recording: its token, name, split of the data set and description."""

    token: str
    name: str
    split: str
    description: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"token": self.token, "name": self.name, "split": self.split, "description": self.description}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        return cls(*(str(values[key]) for key in ("token", "name", "split", "description")))


@dataclass(frozen=True)
class FrameEntry:
    """What the index says of a frame beside its fields. token: 32 hex digits; scene: the scene's token; kind: see
    `cache.index`; class_counts: annotated boxes by class of the store's list; digest: 16 hex digits over token, time
    and poses, equal in all stores that hold this frame. StoreError for what the index cannot hold.
    """

    token: str
    scene: str
    timestamp_us: int
    kind: int
    class_counts: tuple[int, ...]
    digest: str

    def __post_init__(self) -> None:
        if not TOKEN_PATTERN.fullmatch(self.token):
            raise StoreError(f"frame token {self.token!r} is not 32 lower-case hex digits")
        fits = self.kind in (0, 1) and abs(self.timestamp_us) < 2**63 and DIGEST_PATTERN.fullmatch(self.digest)
        if not fits or any(not 0 <= count < 2**16 for count in self.class_counts):
            raise StoreError(
                f"frame {self.token}: kind {self.kind}, time {self.timestamp_us}, digest {self.digest!r} or class "
                f"counts {self.class_counts} do not fit the index; see docs/format.md, 4"
            )

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "class_counts": list(self.class_counts)}


@dataclass(frozen=True)
class ShardPlan:
    """One shard of a plan, all that the task needs which writes it. settings: digest of the store's settings."""

    number: int
    format: Format
    fields: tuple[FieldSpec, ...]
    tokens: tuple[str, ...]
    settings: str

    @property
    def digest(self) -> str:
        """What the shard's record is bound to."""
        return digest_of([self.settings, list(self.tokens)])

    @property
    def record(self) -> str:
        """Name of the commit record."""
        return f"records/{self.number:05d}.json"


@dataclass(frozen=True)
class StorePlan:
    """kind and identity (see `cache.manifest`), header, fields, scenes, frame tokens by shard, format."""

    kind: str
    identity: Mapping[str, Any]
    header: Mapping[str, Any]
    fields: tuple[FieldSpec, ...]
    scenes: tuple[Scene, ...]
    shards: tuple[tuple[str, ...], ...]
    format: Format = Format()

    def __post_init__(self) -> None:
        planned = Counter(token for tokens in self.shards for token in tokens)
        twice, times = planned.most_common(1)[0] if planned else ("", 0)
        if times > 1:
            raise StoreError(
                f"frame {twice} is planned twice; a store holds a frame once, check the tables for doubles"
            )
        names, scenes = [spec.name for spec in self.fields], [scene.token for scene in self.scenes]
        if not self.shards or len(set(names)) < len(names) or len(set(scenes)) < len(scenes):
            raise StoreError(
                f"a store with {len(self.shards)} shards, fields {names} and {len(scenes)} scenes; expected one shard "
                "or more, and no field or scene twice"
            )
        if self.format.name == "zarr":
            self._check_zarr()

    def _check_zarr(self) -> None:
        others = [spec.name for spec in self.fields if not spec.is_array or "0" in spec.shape]
        short = [letter for letter in letters_of(self.fields) if self.format.capacity.get(letter, 0) < 1]
        if others or short or not all(len(tokens) <= self.format.rows for tokens in self.shards):
            raise StoreError(
                f"zarr: fields {others} are no arrays with values, letters {short} have no capacity, or a shard has "
                f"more than {self.format.rows} frames; write such a store as webdataset"
            )
        taken = [spec.name for spec in self.fields if _BESIDE.fullmatch(spec.name)]
        if taken or self.format.rows < 1:
            raise StoreError(
                f"zarr: {self.format.rows} rows a shard, fields named {taken}; expected 1 row or more, and names that "
                "the arrays beside the fields do not have"
            )

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the fields' shapes, in the order of the index's `sizes`."""
        return letters_of(self.fields)

    def settings(self) -> dict[str, Any]:
        """All that every shard depends on."""
        return {
            "kind": self.kind,
            "format": self.format.to_dict(),
            "identity": dict(self.identity),
            "header": dict(self.header),
            "fields": [spec.to_dict() for spec in self.fields],
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings(),
            "scenes": [scene.to_dict() for scene in self.scenes],
            "shards": [list(tokens) for tokens in self.shards],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StorePlan:
        settings = values["settings"]
        return cls(
            kind=str(settings["kind"]),
            identity=dict(settings["identity"]),
            header=dict(settings["header"]),
            fields=tuple(FieldSpec.from_dict(row) for row in settings["fields"]),
            scenes=tuple(Scene.from_dict(row) for row in values["scenes"]),
            shards=tuple(tuple(str(token) for token in tokens) for tokens in values["shards"]),
            format=Format.from_dict(settings["format"]),
        )

    def shard_plans(self) -> list[ShardPlan]:
        """One plan a shard."""
        settings = digest_of(self.settings())
        return [
            ShardPlan(number, self.format, self.fields, tokens, settings) for number, tokens in enumerate(self.shards)
        ]
