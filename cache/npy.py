"""Arrays as .npy bytes and back, trusting nothing: dtype, shape and byte count are checked before an array is made."""

from __future__ import annotations

import io
import math
import tokenize
from functools import lru_cache

import numpy as np

from cache.errors import CorruptError

HEADER_ROOM = 1024  # bytes that magic and header may take; numpy writes 128 for every array of ours
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


def encode_npy(array: np.ndarray) -> bytes:
    """`array` as .npy version 1.0, C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


@lru_cache(1 << 16)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What `encode_npy` writes before the values of such an array."""
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def decode_npy_as(data: bytes | memoryview, dtype: str, shape: tuple[int, ...], where: object) -> np.ndarray:
    """`decode_npy` where the caller knows what it should be: quick where the header is the one that we write, and the
    array that is there, of whatever dtype and shape, where it is another."""
    header = npy_header(dtype, shape)
    start, size = len(header), math.prod(shape)
    kind = np.dtype(dtype)
    if (size or len(shape) < 3) and len(data) == start + size * kind.itemsize and data[:start] == header:
        return np.frombuffer(data, kind, size, start).reshape(shape)
    return decode_npy(data, where)


def decode_npy(data: bytes | memoryview, where: object) -> np.ndarray:
    """A read-only array over `data` (no copy).

    numpy's own reader allocates what the header claims before it looks at the bytes, so the header is checked here
    first: plain numbers only, and exactly as many bytes as the shape needs. Raises CorruptError otherwise.
    """
    stream = io.BytesIO(data[: 2 * HEADER_ROOM])
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=HEADER_ROOM)  # type: ignore[call-arg]
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
