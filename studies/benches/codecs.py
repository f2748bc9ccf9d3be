"""Which dtype, codec and layout a teacher's feature is best stored in: every combination, in bytes, time and error.

Takes values (K, C) float32 per frame, of stored cells or of the whole map, from a trained teacher: a codec's ranking on
noise says nothing. Everything runs in memory on one thread. Cost: about a minute for 16 frames of 900 cells, several
for 4 dense maps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numcodecs
import numpy as np
from numcodecs.blosc import BITSHUFFLE, NOSHUFFLE, SHUFFLE, Blosc
from numcodecs.lz4 import LZ4
from numcodecs.zstd import Zstd

from cache.quantise import dequantise_u8, quantise_u8

LAYOUTS = ("cells", "channels")
DTYPES = ("float16", "bfloat16", "u8")


@dataclass(frozen=True)
class CodecRow:
    """One line of the table. ratio: raw dense fp16 bytes over bytes; MB/s count bytes of the stored dtype; decoding
    ends with values (K, C) in memory, as a loss reads them; error: RMS over the RMS deviation of the channels."""

    dtype: str
    codec: str
    layout: str
    bytes_per_frame: float
    ratio: float
    encode_mb_s: float
    decode_mb_s: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def codecs() -> dict[str, Any]:
    """The codecs by name; pcodec only where the package `pcodec` is installed."""
    out: dict[str, Any] = {"none": None}
    out |= {f"zstd-{level}": Zstd(level=level) for level in (1, 3, 9)}
    out["lz4"] = LZ4()
    for name, mode in (("noshuffle", NOSHUFFLE), ("shuffle", SHUFFLE), ("bitshuffle", BITSHUFFLE)):
        out[f"blosc-lz4 {name}"] = Blosc("lz4", clevel=5, shuffle=mode)
    for name, mode in (("noshuffle", NOSHUFFLE), ("shuffle", SHUFFLE), ("bitshuffle", BITSHUFFLE)):
        out[f"blosc-zstd-1 {name}"] = Blosc("zstd", clevel=1, shuffle=mode)
    try:
        from numcodecs.pcodec import PCodec
    except ImportError:
        return out
    return {**out, "pcodec-8": PCodec(level=8)}


def codec_table(
    values: Sequence[np.ndarray],
    dense_bytes: int,
    *,
    dtypes: Sequence[str] = DTYPES,
    only: Callable[[str], bool] = lambda name: True,
    repeats: int = 3,
) -> list[CodecRow]:
    """values: one (K, C) float32 array a frame; dense_bytes: of one raw dense fp16 map. Times are the best of
    `repeats` passes over all frames."""
    numcodecs.blosc.set_nthreads(1)
    rows = []
    for dtype in dtypes:
        coded = [to_stored(frame, dtype) for frame in values]
        extra = sum(side.nbytes for _, side in coded) / len(coded)
        error = spread_error(values, [from_stored(stored, side, dtype) for stored, side in coded])
        for layout in LAYOUTS:
            arrays = [np.ascontiguousarray(stored.T if layout == "channels" else stored) for stored, _ in coded]
            raw_mb = sum(array.nbytes for array in arrays) / 1e6
            for name, codec in codecs().items():
                if not only(name) or (name.startswith("pcodec") and dtype == "u8"):  # pcodec has no 8-bit numbers
                    continue
                packed, encode_s, decode_s = _measure(codec, arrays, layout, repeats)
                size = packed + extra
                speeds = raw_mb / encode_s, raw_mb / decode_s
                rows.append(CodecRow(dtype, name, layout, size, dense_bytes / size, *speeds, error))
    return rows


def to_stored(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (K, C) float32 -> what is stored, (K, C), and the side array of u8: (2, C) float32 offset and step."""
    if dtype == "float16":
        return values.astype(np.float16), np.empty(0, np.float32)
    if dtype == "bfloat16":
        return to_bfloat16(values), np.empty(0, np.float32)
    return quantise_u8(values, 1)


def from_stored(stored: np.ndarray, side: np.ndarray, dtype: str) -> np.ndarray:
    """Inverse of `to_stored` up to its rounding, (K, C) float32."""
    if dtype == "float16":
        return stored.astype(np.float32)
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return dequantise_u8(stored, side, 1)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of each float32, rounded to nearest, ties to even, as uint16; values must be finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def spread_error(values: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """RMS difference over the RMS deviation of the values from their channel's mean."""
    true, read = np.concatenate(list(values)).astype(np.float64), np.concatenate(list(found)).astype(np.float64)
    return float(np.sqrt(np.square(read - true).mean() / np.square(true - true.mean(axis=0)).mean()))


def _measure(codec: Any, arrays: Sequence[np.ndarray], layout: str, repeats: int) -> tuple[float, float, float]:
    """Bytes per array, and the best seconds of encoding and of decoding them all."""
    encode_s = decode_s = float("inf")
    packed: list[bytes] = []
    for _ in range(repeats):
        start = time.perf_counter()
        packed = [encoded(codec, array) for array in arrays]
        middle = time.perf_counter()
        for data, array in zip(packed, arrays, strict=True):
            decoded(codec, data, array, layout)
        end = time.perf_counter()
        encode_s, decode_s = min(encode_s, middle - start), min(decode_s, end - middle)
    return sum(len(data) for data in packed) / len(packed), max(encode_s, 1e-9), max(decode_s, 1e-9)


def encoded(codec: Any, array: np.ndarray) -> bytes:
    """The array's bytes under a codec of `codecs`."""
    return array.tobytes() if codec is None else bytes(codec.encode(array))


def decoded(codec: Any, data: bytes, like: np.ndarray, layout: str) -> np.ndarray:
    """Inverse of `encoded`: (K, C) in C order, a copy of its own, whatever codec and layout were."""
    array = np.frombuffer(data if codec is None else codec.decode(data), like.dtype).reshape(like.shape)
    if layout == "channels":
        return np.ascontiguousarray(array.T)
    return array.copy() if codec is None else array
