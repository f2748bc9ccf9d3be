"""The manifest: a store's commit point.

`manifest.json` holds header, scenes, shard table and digests, nothing per frame.

A store without a manifest is not a store yet: readers refuse it, and the run that was writing it resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec
from cache.files import canonical_json, is_sealed, read_json, seal, sha256, write_bytes

FORMAT_NAME = "bevcask"
FORMAT_VERSION = 1
KINDS = ("frames", "teacher")


@dataclass(frozen=True)
class Scene:
    """One recording: its token, name, split of the data set and description."""

    token: str
    name: str
    split: str
    description: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"token": self.token, "name": self.name, "split": self.split, "description": self.description}


@dataclass(frozen=True)
class Shard:
    """One committed shard: file name relative to the store, bytes, sha256, and its number of frames."""

    name: str
    size: int
    sha256: str
    frames: int

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "sha256": self.sha256, "frames": self.frames}


@dataclass(frozen=True)
class Manifest:
    """Header and tables of a store.

    identity: what must agree between stores that are joined (data set version, frames digest, class list, box
    convention). header: everything else that the run fixed (grid, coverage, teacher digest, config). quarantined:
    frames that could not be read, with the reason; a later run retries them.
    """

    kind: str
    identity: dict[str, Any]
    header: dict[str, Any]
    fields: tuple[FieldSpec, ...]
    scenes: tuple[Scene, ...]
    shards: tuple[Shard, ...]
    index: dict[str, dict[str, Any]]
    quarantined: tuple[dict[str, str], ...] = ()
    digest: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "kind": self.kind,
            "identity": self.identity,
            "header": self.header,
            "fields": [spec.to_dict() for spec in self.fields],
            "scenes": [scene.to_dict() for scene in self.scenes],
            "shards": [shard.to_dict() for shard in self.shards],
            "index": self.index,
            "quarantined": list(self.quarantined),
        }

    def write(self, root: Path) -> Manifest:
        """Commits the store; returns the manifest with its digest (sha256 of the file's bytes)."""
        data = canonical_json(seal(self.to_dict()))
        write_bytes(root / "manifest.json", data)
        return Manifest(**{**self.__dict__, "digest": sha256(data)})

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Raises StoreError where there is no committed store, CorruptError where the manifest does not make sense."""
        path = root / "manifest.json"
        if not path.is_file():
            state = "an unfinished caching run" if (root / "plan.json").is_file() else "no store"
            raise StoreError(f"{root}: {state} (no manifest.json); run cache-frames or cache-teacher into it first")
        try:
            values = read_json(path, "a bevcask manifest")
        except StoreError as error:
            raise CorruptError(f"{error}; run the caching command again") from None
        try:
            if values["format"] != FORMAT_NAME or values["version"] != FORMAT_VERSION:
                raise StoreError(
                    f"{path}: format {values['format']} version {values['version']}, this reader knows {FORMAT_NAME} "
                    f"version {FORMAT_VERSION}; install the release that wrote it"
                )
            if not is_sealed(values):
                raise CorruptError(
                    f"{path}: does not match its own digest, it was damaged or edited; run the caching command again"
                )
            if not isinstance(values["kind"], str) or values["kind"] not in KINDS:
                raise CorruptError(f"{path}: kind {values['kind']!r}, expected one of {KINDS}")
            shards = tuple(
                Shard(_safe_name(str(s["name"]), path), int(s["size"]), str(s["sha256"]), int(s["frames"]))
                for s in values["shards"]
            )
            return cls(
                kind=values["kind"],
                identity=_object(values["identity"]),
                header=_object(values["header"]),
                fields=_fields(values["fields"], path),
                scenes=tuple(Scene(**{key: str(value) for key, value in scene.items()}) for scene in values["scenes"]),
                shards=shards,
                index={
                    name: {"size": int(row["size"]), "sha256": str(row["sha256"])}
                    for name, row in values["index"].items()
                },
                quarantined=tuple(_object(row) for row in values["quarantined"]),
                digest=sha256(path.read_bytes()),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(f"{path}: not a valid manifest ({type(error).__name__}: {error})") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"found {value!r:.40}, expected an object")
    return value


def _fields(rows: list[dict[str, Any]], path: Path) -> tuple[FieldSpec, ...]:
    try:
        fields = tuple(FieldSpec.from_dict(row) for row in rows)
    except StoreError as error:
        raise CorruptError(f"{path}: {error}") from None
    if len({spec.name for spec in fields}) != len(fields):
        raise CorruptError(f"{path}: a field is declared twice; the manifest is damaged or forged")
    return fields


def _safe_name(name: str, path: Path) -> str:
    """`name` where it is a plain file under shards/; names come from a file and are never trusted as paths."""
    parts = PurePosixPath(name).parts
    if len(parts) != 2 or parts[0] != "shards" or parts[1] in ("..", ".") or "\\" in name or "\0" in name:
        raise CorruptError(
            f"{path}: shard name {name!r} is not of the form shards/NAME; the manifest is damaged or forged"
        )
    return name
