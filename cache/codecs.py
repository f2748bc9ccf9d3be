"""Compressors of array members, by name: the last part of a member's extension, and a codec of the Zarr chain.

All are numcodecs'. Decoding never takes more memory than the caller allows: the size a frame claims is read first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numcodecs.zstd import Zstd

from cache.errors import CorruptError

_ZSTD = Zstd(level=1)
_SCRATCH_BYTES = 16 << 20


def compress(codec: str, data: bytes) -> bytes:
    """`data` under the codec; as it is for the codec ""."""
    return _ENCODERS[codec](data)


def decompress(
    codec: str, data: bytes, limit: int, where: object, scratch: Scratch | None = None
) -> bytes | memoryview:
    """Inverse of `compress`, at most `limit` bytes. CorruptError where the bytes do not decode or claim more.

    scratch: where the content may be put; it is then valid until the scratch is used again.
    """
    return _DECODERS[codec](data, limit, where, scratch)


def content_size(codec: str, data: bytes) -> int:
    """Bytes that `decompress` gives, as the data itself says; 0 where it says nothing."""
    return (_zstd_content_size(data) or 0) if codec == "zstd" else len(data)


class Scratch(threading.local):
    """Memory that each thread uses again and again: fresh memory for 100 kB costs as many page faults as decoding them
    costs microseconds."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def room(self, size: int) -> np.ndarray:
        """(size,) uint8, with whatever was left in it."""
        if size > _SCRATCH_BYTES:
            return np.empty(size, np.uint8)
        if size > len(self._buffer):
            self._buffer = np.empty(min(2 * size, _SCRATCH_BYTES), np.uint8)
        return self._buffer[:size]


def _plain(data: bytes, limit: int, where: object, scratch: Scratch | None) -> bytes:
    if len(data) > limit:
        raise CorruptError(f"{where}: {len(data)} bytes, expected at most {limit}; run verify")
    return data


def _decode_zstd(data: bytes, limit: int, where: object, scratch: Scratch | None) -> memoryview:
    """The content of one zstd frame, in a buffer of the size that its header claims."""
    size = _zstd_content_size(data)
    if size is None or not 0 < size <= limit:
        claims = "no" if size is None else size
        raise CorruptError(f"{where}: zstd header claims {claims} bytes, expected 1..{limit}; run verify")
    content = np.empty(size, np.uint8) if scratch is None else scratch.room(size)
    try:
        _ZSTD.decode(data, content)  # refuses further frames that would not fit
    except (RuntimeError, ValueError) as error:
        raise CorruptError(f"{where}: not a zstd frame ({error}); run verify") from None
    return content.data.toreadonly()


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


_ENCODERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, "zstd": lambda data: bytes(_ZSTD.encode(data))}
_DECODERS: dict[str, Callable[[bytes, int, object, Scratch | None], bytes | memoryview]] = {
    "": _plain,
    "zstd": _decode_zstd,
}
CODECS = tuple(_ENCODERS)
