"""Fields: the named values of a frame, and how each becomes bytes and back.

Told by the extension: `jpg` (bytes as they are), `json`, `npy`, and `npy.CODEC` (compressed, see `cache.codecs`).
Arrays have a dtype and a shape in which letters stand for sizes that vary from frame to frame; the same letter in two
fields of a frame is the same size. A tar member holds a whole .npy, a Zarr chunk the bare values, padded to a capacity.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.codecs import CODECS, Scratch, compress, decompress
from cache.errors import CorruptError, StoreError
from cache.npy import HEADER_ROOM, decode_npy_as, encode_npy

EXTENSIONS = ("jpg", "json", *(f"npy.{codec}".rstrip(".") for codec in CODECS))
TOKEN_PATTERN = re.compile(r"[0-9a-f]{32}")
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_]{0,47}")  # webdataset drops "_name"; a tar header holds 100 characters
_DTYPE_PATTERN = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
_SIZE_PATTERN = re.compile(r"[0-9]{1,9}|[A-Z]")
MAX_ARRAY_BYTES = 2**30  # 20 times the largest field today; a few kB of zstd can otherwise ask for any amount of memory


@dataclass(frozen=True)
class FieldSpec:
    """One field: its name, extension, and for arrays dtype, shape (capital letters vary from frame to frame), unit."""

    name: str
    ext: str
    dtype: str = ""
    shape: tuple[str, ...] = ()
    unit: str = ""
    about: str = ""

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise StoreError(
                f"field name {self.name!r} is not 1 to 48 lower-case letters, digits and underscores, "
                "the first no underscore; rename it"
            )
        if self.ext not in EXTENSIONS:
            raise StoreError(f"field {self.name}: extension {self.ext!r} is unknown, expected one of {EXTENSIONS}")
        if self.is_array and not _DTYPE_PATTERN.fullmatch(self.dtype):
            raise StoreError(
                f"field {self.name}: dtype {self.dtype!r} is no plain number, expected one such as float32 or uint8"
            )
        if not all(_SIZE_PATTERN.fullmatch(size) for size in self.shape):
            raise StoreError(
                f"field {self.name}: shape {self.shape}, expected whole numbers and single capital letters"
            )

    @property
    def member(self) -> str:
        """What follows `<token>.` in the tar."""
        return f"{self.name}.{self.ext}"

    @property
    def is_array(self) -> bool:
        """Whether values are numpy arrays."""
        return self.ext.startswith("npy")

    @property
    def codec(self) -> str:
        """The compressor's name, "" for none."""
        return self.ext.partition(".")[2]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ext": self.ext,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "unit": self.unit,
            "about": self.about,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FieldSpec:
        return cls(
            str(values["name"]),
            str(values["ext"]),
            str(values["dtype"]),
            tuple(str(size) for size in values["shape"]),
            str(values["unit"]),
            str(values["about"]),
        )

    def sizes_of(self, array: np.ndarray, where: object) -> dict[str, int]:
        """The letters' sizes in `array`. CorruptError where dtype, rank or a fixed size is not the declared one."""
        if array.dtype != np.dtype(self.dtype) or array.ndim != len(self.shape):
            raise CorruptError(
                f"{where}: found {array.dtype} of rank {array.ndim}, expected {self.dtype} of shape "
                f"{list(self.shape)}; the store is damaged, run verify"
            )
        sizes: dict[str, int] = {}
        for found, declared in zip(array.shape, self.shape, strict=True):
            expected = int(declared) if declared.isdecimal() else sizes.setdefault(declared, found)
            if found != expected:
                raise CorruptError(f"{where}: found shape {list(array.shape)}, expected {list(self.shape)}; run verify")
        return sizes

    def shape_under(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with numbers for letters."""
        return tuple(int(size) if size.isdecimal() else sizes[size] for size in self.shape)

    def bytes_under(self, sizes: Mapping[str, int]) -> int:
        """Bytes of the values of an array whose letters have these sizes."""
        return math.prod(self.shape_under(sizes)) * np.dtype(self.dtype).itemsize

    def encode(self, value: Any) -> bytes:
        """The tar member's bytes; deterministic. Arrays must match dtype and shape (StoreError otherwise)."""
        if self.ext == "jpg":
            if not isinstance(value, bytes | bytearray | memoryview):
                raise StoreError(f"field {self.name}: found a {type(value).__name__}, expected the image file's bytes")
            return bytes(value)
        if self.ext == "json":
            try:
                return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
            except (ValueError, TypeError, RecursionError) as error:
                raise StoreError(
                    f"field {self.name}: a value is not finite or not JSON's ({error}); check the data it comes from"
                ) from None
        self.sizes_to_write(value)
        return compress(self.codec, encode_npy(value))

    def encode_padded(self, value: np.ndarray, capacity: Mapping[str, int]) -> bytes:
        """The Zarr chunk's bytes, before its checksum: bare little-endian values, zeros up to the letters' capacity."""
        sizes = self.sizes_to_write(value)
        for letter, size in sizes.items():
            if size > capacity[letter]:
                raise StoreError(
                    f"field {self.name}: {size} of {letter}, the store's arrays hold {capacity[letter]}; "
                    f"run the command again into a new store with --capacity {letter}={size}"
                )
        padded = np.zeros(self.shape_under(capacity), np.dtype(self.dtype).newbyteorder("<"))
        padded[tuple(slice(size) for size in value.shape)] = value
        return compress(self.codec, padded.tobytes())

    def sizes_to_write(self, value: Any) -> dict[str, int]:
        """The letters' sizes in an array that is to be stored; StoreError where it does not fit the declaration."""
        if not isinstance(value, np.ndarray):
            raise StoreError(f"field {self.name}: found a {type(value).__name__}, expected an array")
        try:
            sizes = self.sizes_of(value, f"field {self.name}")
        except CorruptError as error:
            raise StoreError(str(error)) from None
        if value.nbytes > MAX_ARRAY_BYTES:
            raise StoreError(
                f"field {self.name}: {value.nbytes} bytes, the format allows {MAX_ARRAY_BYTES}; store a smaller array"
            )
        return sizes

    def decode(self, data: bytes, sizes: Mapping[str, int], where: object, scratch: Scratch | None = None) -> Any:
        """Inverse of `encode`: read-only array, dict, or bytes. sizes: of the letters, from the index.

        `where` names file and member in the CorruptError of bytes that do not parse or have another shape. scratch:
        memory for the array, which is then valid until the scratch is used again.
        """
        if self.ext == "jpg":
            return data
        if self.ext == "json":
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise CorruptError(f"{where}: not JSON ({error}); run verify") from None
        shape = self.shape_under(sizes)
        limit = min(self.bytes_under(sizes), MAX_ARRAY_BYTES) + 2 * HEADER_ROOM
        array = decode_npy_as(decompress(self.codec, data, limit, where, scratch), self.dtype, shape, where)
        if array.shape != shape or array.dtype != self.dtype:
            self.sizes_of(array, where)
            raise CorruptError(f"{where}: found shape {list(array.shape)}, the index says {list(shape)}; run verify")
        return array

    def decode_padded(
        self,
        data: bytes,
        sizes: Mapping[str, int],
        capacity: Mapping[str, int],
        where: object,
        scratch: Scratch | None = None,
    ) -> Any:
        """Inverse of `encode_padded`; raises as `decode`."""
        shape, padded = self.shape_under(sizes), self.shape_under(capacity)
        expected = self.bytes_under(capacity)
        if expected > MAX_ARRAY_BYTES or any(size > room for size, room in zip(shape, padded, strict=True)):
            raise CorruptError(
                f"{where}: {list(shape)} in a capacity of {list(padded)}; the store is damaged, run verify"
            )
        raw = decompress(self.codec, data, expected, where, scratch)
        if len(raw) != expected:
            raise CorruptError(f"{where}: {len(raw)} bytes, expected {expected}; the store is damaged, run verify")
        dtype = np.dtype(self.dtype)
        array = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(padded)
        return array[tuple(slice(size) for size in shape)].astype(dtype, copy=False)


def letters_of(fields: Sequence[FieldSpec]) -> tuple[str, ...]:
    """The letters of all shapes, in the order in which they first come."""
    return tuple(dict.fromkeys(size for spec in fields for size in spec.shape if not size.isdecimal()))
