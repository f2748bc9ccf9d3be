"""The manifest: a store's commit point.

`manifest.json` holds header, scenes, shard table and digests, nothing per frame.

A store without a manifest is not a store yet: readers refuse it, and the run that was writing it resumes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec, letters_of
from cache.files import canonical_json, has_valid_seal, parse_json, seal, sha256
from cache.plan import Format, Scene
from cache.roots import Root, checked_name

FORMAT_NAME = "bevcask"
FORMAT_VERSION = 1
KINDS = ("frames", "teacher")
MANIFEST, PLAN = "manifest.json", "plan.json"
T = TypeVar("T")
MAX_DOCUMENT_BYTES = 256 << 20  # several times a plan of a million frames


@dataclass(frozen=True)
class StoredFile:
    """One file of a store: name relative to it, bytes, sha256."""

    name: str
    size: int
    sha256: str

    def to_list(self) -> list[Any]:
        return [self.name, self.size, self.sha256]

    @classmethod
    def from_list(cls, values: list[Any]) -> StoredFile:
        name, size, digest = values
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"size {size!r}")
        return cls(checked_name(str(name)), size, str(digest))


@dataclass(frozen=True)
class Shard:
    """One committed shard: its number of frames and its files; one in all, or one for each field and then some."""

    frames: int
    files: tuple[StoredFile, ...]

    def file_of(self, field_position: int) -> StoredFile:
        """The file that holds a field."""
        return self.files[0] if len(self.files) == 1 else self.files[field_position]

    def to_dict(self) -> dict[str, Any]:
        return {"frames": self.frames, "files": [file.to_list() for file in self.files]}


@dataclass(frozen=True)
class Manifest:
    """Header and tables of a store.

    identity: what must agree between stores that are joined (data set version, class list, box convention; frames agree
    by the digests in the index). header: everything else that the run fixed (grid, coverage, teacher digest, config).
    plan: the file that a rerun goes by. extra: files that only other readers need (Zarr's metadata). quarantined:
    frames that could not be read, with the reason; a later run retries them.
    """

    kind: str
    format: Format
    identity: dict[str, Any]
    header: dict[str, Any]
    fields: tuple[FieldSpec, ...]
    scenes: tuple[Scene, ...]
    shards: tuple[Shard, ...]
    index: dict[str, dict[str, Any]]
    plan: StoredFile
    extra: tuple[StoredFile, ...] = ()
    quarantined: tuple[dict[str, str], ...] = ()
    digest: str = field(default="", compare=False)

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of the fields' shapes, in the order of the index's `sizes`."""
        return letters_of(self.fields)

    @property
    def files(self) -> list[StoredFile]:
        """Every file that the manifest vouches for, itself and the records aside."""
        index = [StoredFile(f"index/{name}", row["size"], row["sha256"]) for name, row in self.index.items()]
        return [self.plan, *self.extra, *index, *(file for shard in self.shards for file in shard.files)]

    def settings(self) -> dict[str, Any]:
        """As `StorePlan.settings`."""
        return {
            "kind": self.kind,
            "format": self.format.to_dict(),
            "identity": self.identity,
            "header": self.header,
            "fields": [spec.to_dict() for spec in self.fields],
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "kind": self.kind,
            "layout": self.format.to_dict(),
            "identity": self.identity,
            "header": self.header,
            "fields": [spec.to_dict() for spec in self.fields],
            "scenes": [scene.to_dict() for scene in self.scenes],
            "shards": [shard.to_dict() for shard in self.shards],
            "index": self.index,
            "plan": self.plan.to_list(),
            "extra": [file.to_list() for file in self.extra],
            "quarantined": list(self.quarantined),
        }

    def write(self, root: Root) -> Manifest:
        """Commits the store; returns the manifest with its digest (sha256 of the file's bytes)."""
        data = canonical_json(seal(self.to_dict()))
        with root.write(MANIFEST) as file:
            file.write(data)
        return dataclasses.replace(self, digest=sha256(data))

    @classmethod
    def read(cls, root: Root) -> Manifest:
        """Raises StoreError where there is no committed store, CorruptError where the manifest does not make sense."""
        try:
            return read_parsed(root, MANIFEST, lambda data: cls._parse(data, f"{root}/{MANIFEST}"))
        except FileNotFoundError:
            state = "an unfinished caching run" if root.size(PLAN) is not None else "no store"
            raise StoreError(
                f"{root}: {state} (no {MANIFEST}); run cache-frames or cache-teacher into it first"
            ) from None

    @classmethod
    def _parse(cls, data: bytes, where: str) -> Manifest:
        try:
            values = parse_json(data, where, "a bevcask manifest")
        except StoreError as error:
            raise CorruptError(f"{error}; run the caching command again") from None
        try:
            known = (values["format"], values["version"]) == (FORMAT_NAME, FORMAT_VERSION)
            found = f"{values['format']!s:.40} version {values['version']!s:.40}"
        except (KeyError, TypeError) as error:
            raise CorruptError(f"{where}: not a valid manifest ({type(error).__name__}: {error})") from None
        if not known:
            raise StoreError(
                f"{where}: {found}, expected {FORMAT_NAME} version {FORMAT_VERSION}; read it with the release that "
                "wrote it, or cache again"
            )
        try:
            if not has_valid_seal(data):
                raise CorruptError(f"{where}: its content does not match its own digest; run the caching command again")
            if values["kind"] not in KINDS:
                raise ValueError(f"kind {values['kind']!r}, expected one of {KINDS}")
            return cls._from_dict(values, sha256(data))
        except CorruptError:
            raise
        except StoreError as error:  # of a name or field that no writer makes
            raise CorruptError(f"{where}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CorruptError(f"{where}: not a valid manifest ({type(error).__name__}: {error})") from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any], digest: str) -> Manifest:
        fields = tuple(FieldSpec.from_dict(row) for row in values["fields"])
        if len({spec.name for spec in fields}) != len(fields):
            raise ValueError("a field is declared twice")
        shards = tuple(
            Shard(int(row["frames"]), tuple(StoredFile.from_list(file) for file in row["files"]))
            for row in values["shards"]
        )
        if not all(shard.files for shard in shards):
            raise ValueError("a shard has no file")
        layout = Format.from_dict(values["layout"])
        if layout.name == "zarr" and any(len(shard.files) < len(fields) for shard in shards):
            raise ValueError("a Zarr shard has fewer files than the store has fields")
        if layout.name == "webdataset" and any(len(shard.files) > 1 for shard in shards):
            raise ValueError("a WebDataset shard has more than one file")
        if layout.name == "zarr" and any(letter not in layout.capacity for letter in letters_of(fields)):
            raise ValueError("a letter without a capacity")
        return cls(
            kind=values["kind"],
            format=layout,
            identity=_identity(values["identity"]),
            header=_object(values["header"]),
            fields=fields,
            scenes=tuple(Scene.from_dict(row) for row in values["scenes"]),
            shards=shards,
            index={
                checked_name(str(name)): {"size": int(row["size"]), "sha256": str(row["sha256"])}
                for name, row in values["index"].items()
            },
            plan=StoredFile.from_list(values["plan"]),
            extra=tuple(StoredFile.from_list(file) for file in values["extra"]),
            quarantined=tuple(_object(row) for row in values["quarantined"]),
            digest=digest,
        )


def read_parsed(root: Root, name: str, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a JSON file of a store. Where it raises and the root keeps a copy of its own, that may have
    gone bad: it is dropped, and the file read and parsed once more. Raises as `parse` and `read_document`.
    """
    data = read_document(root, name)
    try:
        return parse(data)
    except Exception:
        if not root.discard(name):
            raise
    return parse(read_document(root, name))


def read_document(root: Root, name: str) -> bytes:
    """A JSON file of a store, whole. FileNotFoundError where it is missing, CorruptError where it is absurdly large."""
    size = root.size(name)
    if size is None:
        raise FileNotFoundError(name)
    if size > MAX_DOCUMENT_BYTES:
        raise CorruptError(
            f"{root}/{name}: {size} bytes, no store has more than {MAX_DOCUMENT_BYTES}; delete it and run the caching "
            "command again"
        )
    return root.read(name)


def _identity(value: Any) -> dict[str, Any]:
    classes = _object(value)["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"found classes {classes!r:.40}, expected a list of names")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"found {value!r:.40}, expected an object")
    return value
