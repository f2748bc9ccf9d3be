"""Arrays as .npy bytes and back, trusting nothing: dtype, shape and byte count are checked before an array is made."""

from __future__ import annotations

import io
import math
import tokenize

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


def decode_npy(data: bytes | memoryview, where: str) -> np.ndarray:
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
