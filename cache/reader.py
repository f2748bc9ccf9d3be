"""Reading a store: any field of any frame by one ranged read, its crc32c checked on every read.

Needs numpy, numcodecs and google-crc32c only (fsspec where the root is remote). Safe to share between threads and cheap
to open: the index is memory-mapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from cache.codecs import Scratch, content_size
from cache.errors import CorruptError, StoreError
from cache.fields import FieldSpec
from cache.index import FrameIndex
from cache.local_cache import read_through
from cache.manifest import MANIFEST, Manifest, StoredFile
from cache.npy import npy_header
from cache.plan import FrameEntry
from cache.reads import read_observer
from cache.roots import open_root
from cache.spans import spans

_TRIES = 10  # to open a store that others write at the same time
_SCRATCH = Scratch()


class Store:
    """A committed store at a path, URL or Root. Rows are frames in shard order.

    Raises StoreError where there is none, CorruptError where manifest, index and shards do not agree.
    """

    kind = ""

    def __init__(self, place: Any) -> None:
        self.root = read_through(open_root(place))
        self.manifest, self.index = self._opened()
        self._fields = {spec.name: (position, spec) for position, spec in enumerate(self.manifest.fields)}
        self._letters = self.manifest.letters
        frames = [shard.frames for shard in self.manifest.shards]
        known = not (self.index.shard >= len(frames)).any()
        if not known or np.bincount(self.index.shard, minlength=len(frames)).tolist() != frames:
            raise CorruptError(
                f"{self.root}: the index and the shard table count frames differently; run the caching command again"
            )
        if (self.index.scene >= len(self.manifest.scenes)).any():
            raise CorruptError(f"{self.root}: the index names an unknown scene; run the caching command again")

    def _opened(self) -> tuple[Manifest, FrameIndex]:
        """Manifest and index of one moment: a store may grow, and be read, at the same time."""
        manifest = Manifest.read(self.root)
        failed: list[str] = []
        for _ in range(_TRIES):
            self.root.expect({file.name: (file.size, file.sha256) for file in manifest.files})
            if self.kind and manifest.kind != self.kind:
                raise StoreError(f"{self.root}: holds a {manifest.kind} store, expected a {self.kind} store")
            try:
                return manifest, FrameIndex.open(
                    self.root,
                    manifest.index,
                    num_fields=len(manifest.fields),
                    num_letters=len(manifest.letters),
                    num_classes=len(manifest.identity.get("classes", ())),
                )
            except CorruptError:
                self.root.discard(MANIFEST)
                failed.append(manifest.digest)
                manifest = Manifest.read(self.root)
                if failed.count(manifest.digest) == 2:  # nobody is changing it
                    raise
        raise StoreError(f"{self.root}: its manifest changed {_TRIES} times while it was opened; try again later")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def classes(self) -> list[str]:
        """The data set's class names; labels and class counts are positions in it."""
        return [str(name) for name in self.manifest.identity.get("classes", ())]

    @cached_property
    def tokens(self) -> list[str]:
        """Every frame's token, in row order."""
        return [row.tobytes().hex() for row in self.index.token]

    def token(self, row: int) -> str:
        """One frame's token."""
        return self.index.token[row].tobytes().hex()

    def row_of(self, token: str) -> int:
        """Row of a frame; StoreError where the store does not have it."""
        row = self.index.row_of(token)
        if row is None:
            raise StoreError(f"{self.root}: no frame {token!r} among its {len(self)}; inspect lists them")
        return row

    def entry(self, row: int) -> FrameEntry:
        """The frame's index entry, for another store of the same frames."""
        return self.index.entry(row, self._scene_tokens)

    @cached_property
    def _scene_tokens(self) -> list[str]:
        return [scene.token for scene in self.manifest.scenes]

    def has(self, row: int, field: str) -> bool:
        """Whether this frame carries the field."""
        return field in self._fields and int(self.index.length[row, self._fields[field][0]]) > 0

    def scene_of(self, row: int) -> str:
        """Name of the frame's scene."""
        return self.manifest.scenes[int(self.index.scene[row])].name

    def split_rows(self, split: str | None = None) -> list[int]:
        """Rows of a split, in order; of all splits for None. StoreError naming the splits the store has."""
        splits = [scene.split for scene in self.manifest.scenes]
        if split is not None and split not in splits:
            raise StoreError(f"{self.root}: no split {split!r}; it has {sorted(set(splits))}")
        wanted = np.array([split is None or name == split for name in splits], bool)
        return np.flatnonzero(wanted[np.asarray(self.index.scene)]).tolist() if len(wanted) else []

    def read_bytes(self, row: int, field: str) -> bytes:
        """The field's bytes, checked. StoreError where the frame lacks the field, CorruptError where bytes are bad."""
        position, spec = self._fields.get(field, (-1, None))
        if spec is None or not self.has(row, field):
            raise StoreError(
                f"{self.root}: frame {self.token(row)} has no field {field!r}; the store holds {sorted(self._fields)}"
            )
        file = self.manifest.shards[int(self.index.shard[row])].file_of(position)
        offset, length = int(self.index.offset[row, position]), int(self.index.length[row, position])
        checksum = int(self.index.crc32c[row, position])
        try:
            # a damaged index must not make us allocate what the file cannot hold
            whole = offset + length <= file.size
            data = self._ranged(row, field, file.name, offset, length) if whole else b""
            if google_crc32c.value(data) != checksum and self.root.discard(file.name):
                data = self._ranged(row, field, file.name, offset, length)  # a local copy had gone bad
        except FileNotFoundError:
            raise CorruptError(
                f"{self.root}/{file.name}: missing; restore it or run the caching command again"
            ) from None
        if len(data) != length or google_crc32c.value(data) != checksum:
            found = "checksum differs" if len(data) == length else f"{len(data)} of {length} bytes"
            raise CorruptError(
                f"{self._where(row, field)}: {found}; delete that file and run the caching command again"
            )
        return data

    def read_bytes_many(self, row: int, fields: Sequence[str]) -> list[bytes]:
        """Several fields' bytes of one frame, each as `read_bytes` gives it. Those that lie near each other in one file
        come by one ranged read: over a network that is one request in place of many."""
        places = [self._fields[field][0] if field in self._fields else -1 for field in fields]
        shard = self.manifest.shards[int(self.index.shard[row])]
        if len(fields) < 2 or len(shard.files) > 1 or -1 in places:
            return [self.read_bytes(row, field) for field in fields]
        offset, length = self.index.offset[row].tolist(), self.index.length[row].tolist()
        checksum = self.index.crc32c[row].tolist()
        members = [(offset[place], length[place], place) for place in places]
        out = self._sound(shard.files[0], members, checksum, lambda place: (row, self.manifest.fields[place].name))
        return [  # what is not as it should be is read by itself: that tells why, or reads it from elsewhere
            out[place] if place in out else self.read_bytes(row, field)
            for place, field in zip(places, fields, strict=True)
        ]

    def read_bytes_of(self, rows: Sequence[int] | np.ndarray, fields: Sequence[str]) -> list[list[bytes]]:
        """Several fields' bytes of several frames, [frame][field], each as `read_bytes` gives it. Neighbouring frames
        come by one ranged read too."""
        rows, width = np.asarray(rows, np.int64), len(fields)
        places = [self._fields[field][0] if field in self._fields else -1 for field in fields]
        if -1 in places:
            return [[self.read_bytes(int(row), field) for field in fields] for row in rows]
        columns = (self.index.offset, self.index.length, self.index.crc32c)
        offset, length, checksum = (column[rows][:, places].ravel().tolist() for column in columns)
        wanted: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for i, number in enumerate(self.index.shard[rows].tolist()):
            one_file = len(self.manifest.shards[number].files) == 1
            for j, place in enumerate(places):
                member = i * width + j
                where = number, 0 if one_file else place
                wanted.setdefault(where, []).append((offset[member], length[member], member))
        out: dict[int, bytes] = {}
        for (number, place), members in wanted.items():
            file = self.manifest.shards[number].file_of(place)
            out |= self._sound(file, members, checksum, lambda i: (int(rows[i // width]), fields[i % width]))
        return [
            [
                out[i * width + j] if i * width + j in out else self.read_bytes(int(row), field)
                for j, field in enumerate(fields)
            ]
            for i, row in enumerate(rows)
        ]

    def _sound(
        self,
        file: StoredFile,
        members: Iterable[tuple[int, int, int]],
        checksum: Sequence[int],
        whose: Callable[[int], tuple[int, str]],
    ) -> dict[int, bytes]:
        """Bytes of members (offset, length, number) of a file by number, without those that are not as they should be;
        checksum: by number; whose: the row and field of a number."""
        out: dict[int, bytes] = {}
        sizes = {number: (offset, length) for offset, length, number in members}
        for start, end, numbers in spans(members):
            try:
                data = self._ranged(*whose(numbers[0]), file.name, start, end - start) if end <= file.size else b""
            except FileNotFoundError:
                data = b""
            for number in numbers:
                offset, length = sizes[number]
                part = data[offset - start : offset - start + length]
                if part and len(part) == length and google_crc32c.value(part) == checksum[number]:
                    out[number] = part
        return out

    def _ranged(self, row: int, field: str, name: str, start: int, length: int) -> bytes:
        observer = read_observer()
        if observer is None:
            return self.root.read_range(name, start, length)
        observer.begins(Place(self, row, field))
        data = self.root.read_range(name, start, length)
        observer.ends()
        return data

    def read(self, row: int, field: str) -> Any:
        """The decoded field: a read-only array, a dict, or JPEG bytes. Raises as `read_bytes`."""
        return self._decode(row, field, self.read_bytes(row, field), self._sizes(row))

    def read_many(self, row: int, fields: Sequence[str]) -> list[Any]:
        """Several fields of one frame, each as `read` gives it, by as few ranged reads as `read_bytes_many` needs."""
        parts, sizes = self.read_bytes_many(row, fields), self._sizes(row)
        return [self._decode(row, field, data, sizes) for field, data in zip(fields, parts, strict=True)]

    def lengths(self, rows: Sequence[int] | np.ndarray, field: str) -> np.ndarray:
        """(len(rows),) int64: each frame's size along the first axis of an array field, from the index alone."""
        spec = self._fields[field][1] if field in self._fields else None
        if spec is None or not spec.is_array or not spec.shape:
            found = "is not in this store" if spec is None else "has no first axis"
            raise StoreError(f"{self.root}: field {field!r} {found}; the store holds {sorted(self._fields)}")
        first = spec.shape[0]
        if first.isdecimal():
            return np.full(len(rows), int(first), np.int64)
        return self.index.sizes[rows, self._letters.index(first)].astype(np.int64)

    def read_joined(self, rows: Sequence[int] | np.ndarray, fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Array fields of several frames, each joined along its first axis in the order of `rows`: what np.concatenate
        makes of `read`, decoded into place. How much of it is whose, `lengths` says.

        Raises as `read`, and StoreError for a field whose other axes vary from frame to frame.
        """
        fields = list(dict.fromkeys(fields))
        ends = {field: np.cumsum(self.lengths(rows, field)).tolist() for field in fields}
        specs = [self._fields[field][1] for field in fields]
        for spec in specs:
            if not all(map(str.isdecimal, spec.shape[1:])):
                raise StoreError(
                    f"{self.root}: field {spec.name} of shape {list(spec.shape)} cannot be joined; use read"
                )
        parts = self.read_bytes_of(rows, fields)
        for number, spec in enumerate(specs):
            per_item = math.prod(map(int, spec.shape[1:])) * np.dtype(spec.dtype).itemsize
            needs = (self.lengths(rows, spec.name) * per_item).tolist()
            for row, found, size in zip(rows, parts, needs, strict=True):
                if size > content_size(spec.codec, found[number]):  # before memory is taken for it
                    self._decode(int(row), spec.name, found[number], self._sizes(int(row)))
                    raise CorruptError(f"{self._where(int(row), spec.name)}: less than the index says; run verify")
        out = {}
        for number, spec in enumerate(specs):
            out[spec.name] = self._joined(spec, rows, [found[number] for found in parts], ends[spec.name])
        return out

    def _joined(
        self, spec: FieldSpec, rows: Sequence[int] | np.ndarray, parts: Sequence[bytes], ends: Sequence[int]
    ) -> np.ndarray:
        """One field of `rows` in one array; ends: where each row's part of the first axis ends."""
        others = tuple(map(int, spec.shape[1:]))
        out = np.empty((ends[-1] if len(ends) else 0, *others), spec.dtype)
        plain = spec.codec == "" and self.manifest.format.name != "zarr"
        width = math.prod(others) * out.itemsize
        raw = out.reshape(-1).view(np.uint8).data
        start = 0
        for row, data, end in zip(rows, parts, ends, strict=True):
            header = npy_header(spec.dtype, (end - start, *others)) if plain else b""
            if plain and len(data) == len(header) + (end - start) * width and data.startswith(header):
                raw[start * width : end * width] = memoryview(data)[len(header) :]
            else:
                out[start:end] = self._decode(int(row), spec.name, data, self._sizes(int(row)), _SCRATCH)
            start = end
        return out

    def _sizes(self, row: int) -> dict[str, int]:
        return dict(zip(self._letters, self.index.sizes[row].tolist(), strict=True))

    def _decode(self, row: int, field: str, data: bytes, sizes: dict[str, int], scratch: Scratch | None = None) -> Any:
        spec, where = self._fields[field][1], Place(self, row, field)
        if self.manifest.format.name == "zarr":
            return spec.decode_padded(data, sizes, self.manifest.format.capacity, where, scratch)
        return spec.decode(data, sizes, where, scratch)

    def close(self) -> None:
        """Lets go of open files; reading opens them again."""
        self.root.close()

    def _where(self, row: int, field: str) -> str:
        position, spec = self._fields[field]
        file = self.manifest.shards[int(self.index.shard[row])].file_of(position)
        return f"{self.root}/{file.name}: {self.token(row)}.{spec.member}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Opens the store anew where a process is handed one (a DataLoader's workers): open files do not travel."""
        return type(self), (self.root,)


class Place(NamedTuple):
    """A field of a frame, in words where something is wrong with it: made when it is written, not at every read."""

    store: Store
    row: int
    field: str

    @property
    def file(self) -> str:
        """The shard's file, a name of the store's root."""
        position, _ = self.store._fields[self.field]
        return self.store.manifest.shards[int(self.store.index.shard[self.row])].file_of(position).name

    def __str__(self) -> str:
        return self.store._where(self.row, self.field)
