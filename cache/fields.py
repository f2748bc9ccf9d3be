"""Fields: the named arrays of a store, and how each becomes the bytes of a tar member and back.

Four plain encodings, told by the member's extension: `jpg` (bytes as they are), `json`, `npy`, and `npy.zstd` (an npy
compressed by numcodecs' Zstd). Decoding trusts nothing: dtype, shape and byte count are checked before an array is
made.
"""

from __future__ import annotations

import io
import json
import math
import re
import tokenize
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from cache.errors import CorruptError, StoreError

EXTENSIONS = ("jpg", "json", "npy", "npy.zstd")
TOKEN_PATTERN = re.compile(r"[0-9a-f]{32}")
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_]{0,47}")  # webdataset drops "_name"; a tar header holds 100 characters
_DTYPE_PATTERN = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
# What numpy's header parser lets escape beside its ValueError: header text is parsed as Python literals.
_HEADER_ERRORS = (
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
_ZSTD = Zstd(level=1)
MAX_ARRAY_BYTES = 2**30  # 20 times the largest field today; a few kB of zstd can otherwise ask for any amount of memory


@dataclass(frozen=True)
class FieldSpec:
    """One field: its name, extension, and for arrays dtype, shape (letters stand for sizes that vary) and unit."""

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
        if self.ext.startswith("npy") and not _DTYPE_PATTERN.fullmatch(self.dtype):
            raise StoreError(
                f"field {self.name}: dtype {self.dtype!r} is no plain number, expected one such as float32 or uint8"
            )

    @property
    def member(self) -> str:
        """What follows `<token>.` in the tar."""
        return f"{self.name}.{self.ext}"

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

    def check(self, array: np.ndarray, where: str) -> None:
        """Raises CorruptError where dtype, rank or a fixed size of `array` is not the declared one."""
        if array.dtype != np.dtype(self.dtype) or array.ndim != len(self.shape):
            raise CorruptError(
                f"{where}: found {array.dtype} of rank {array.ndim}, expected {self.dtype} of shape "
                f"{list(self.shape)}; the store is damaged, run verify"
            )
        for found, declared in zip(array.shape, self.shape, strict=True):
            if declared.isdecimal() and found != int(declared):
                raise CorruptError(f"{where}: found shape {list(array.shape)}, expected {list(self.shape)}; run verify")

    def encode(self, value: Any) -> bytes:
        """The member's bytes; deterministic. Arrays must match dtype and shape (StoreError otherwise)."""
        if self.ext == "jpg":
            return bytes(value)
        if self.ext == "json":
            try:
                return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
            except ValueError as error:
                raise StoreError(
                    f"field {self.name}: a value is not finite ({error}); check the data it comes from"
                ) from None
        try:
            self.check(value, f"field {self.name}")
        except CorruptError as error:
            raise StoreError(str(error)) from None
        raw = encode_npy(value)
        if len(raw) > MAX_ARRAY_BYTES:
            raise StoreError(
                f"field {self.name}: {len(raw)} bytes, the format allows {MAX_ARRAY_BYTES}; store a smaller array"
            )
        return bytes(_ZSTD.encode(raw)) if self.ext == "npy.zstd" else raw

    def decode(self, data: bytes, where: str) -> Any:
        """Inverse of `encode`; `where` names shard and member in the CorruptError of bytes that do not parse."""
        if self.ext == "jpg":
            return data
        if self.ext == "json":
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise CorruptError(f"{where}: not JSON ({error}); run verify") from None
        array = decode_npy(_decompress(data, where) if self.ext == "npy.zstd" else data, where)
        self.check(array, where)
        return array


def encode_npy(array: np.ndarray) -> bytes:
    """`array` as .npy version 1.0, C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _decompress(data: bytes, where: str) -> memoryview:
    """The content of one zstd frame, in a buffer of the size that its header claims, which MAX_ARRAY_BYTES bounds."""
    size = _zstd_content_size(data)
    if size is None or not 0 < size <= MAX_ARRAY_BYTES:
        raise CorruptError(
            f"{where}: zstd header claims {'no' if size is None else size} bytes, expected 1..{MAX_ARRAY_BYTES}; "
            "run verify"
        )
    content = np.empty(size, np.uint8)
    try:
        _ZSTD.decode(data, content)  # refuses further frames that would not fit
    except (RuntimeError, ValueError) as error:
        raise CorruptError(f"{where}: not a zstd frame ({error}); run verify") from None
    content.flags.writeable = False
    return content.data


def _zstd_content_size(data: bytes) -> int | None:
    """The content size in a zstd frame header, None where it is absent or this is no zstd frame (RFC 8878, 3.1.1.1)."""
    if len(data) < 5 or data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if not width or len(data) < start + width:
        return None
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)


def decode_npy(data: bytes | memoryview, where: str) -> np.ndarray:
    """A read-only array over `data` (no copy).

    numpy's own reader allocates what the header claims before it looks at the bytes, so the header is checked here
    first: plain numbers only, and exactly as many bytes as the shape needs. Raises CorruptError otherwise.
    """
    stream = io.BytesIO(data[:2048])  # a header of at most 1024 bytes lies in there
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=1024)  # type: ignore[call-arg]
    except _HEADER_ERRORS as error:
        raise CorruptError(f"{where}: not an npy array ({error}); run verify") from None
    if fortran or dtype.kind not in "biuf" or any(size < 0 for size in shape):
        raise CorruptError(
            f"{where}: found npy dtype {dtype} order {'F' if fortran else 'C'}, expected numbers in C order"
        )
    payload = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != payload:
        raise CorruptError(f"{where}: npy header claims shape {shape} {dtype}, but {payload} bytes follow; run verify")
    try:
        return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
    except (ValueError, OverflowError) as error:  # no bytes, yet more dimensions or a larger one than numpy has
        raise CorruptError(f"{where}: npy header claims a shape that no array has ({error}); run verify") from None
