"""A short digest of what a step trains on, so that two runs, or a run and its resumption, are compared by their logs.

Every frame has one of its own, so that ranks digest what they hold and the step's follows from all of them in global
order, whatever the number of ranks. A frame takes 10 us, and 2 ms per MB of input bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from models.pictures import ImageAugment
from trainer.augment import BevAugment, FrameAugment

FRAME_BYTES = 16


def frame_digest(token: str, augment: FrameAugment, inputs: Iterable[bytes | memoryview] = ()) -> bytes:
    """FRAME_BYTES bytes of a frame's token, every augmentation parameter to its last bit, and its inputs' bytes.

    inputs: contiguous buffers, such as `memoryview(array)`; only bytes and their number are looked at.
    """
    digest = hashlib.blake2b(digest_size=FRAME_BYTES)
    _add(digest, token.encode())
    _add(digest, _numbers(augment.bev))
    for image in augment.images:
        _add(digest, _numbers(image))
    for buffer in inputs:
        _add(digest, buffer)
    return digest.digest()


def step_digest(frames: Iterable[bytes]) -> str:
    """32 hex digits of a global batch: `frame_digest` of its entries in order, without any of weight 0."""
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        if len(frame) != FRAME_BYTES:
            raise ValueError(f"a frame's digest of {len(frame)} bytes, expected {FRAME_BYTES}")
        digest.update(frame)
    return digest.hexdigest()


def _numbers(parameters: BevAugment | ImageAugment) -> bytes:
    """Every field's value in order, as float64, which all of them fit: floats, flags and tuples of floats."""
    values: list[float] = []
    for value in vars(parameters).values():
        values += value if isinstance(value, tuple) else (value,)
    return struct.pack(f"<{len(values)}d", *values)


def _add(digest: hashlib.blake2b, part: bytes | memoryview) -> None:
    """The part behind its length: so that no two lists of parts run together into the same bytes."""
    view = memoryview(part)
    digest.update(struct.pack("<Q", view.nbytes))
    digest.update(view)
