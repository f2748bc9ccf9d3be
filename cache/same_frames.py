"""Whether a teacher store speaks of the frames of the frame store beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cache.errors import FingerprintError, StoreError
from cache.store import FrameStore, TeacherStore


def require_same_frames(frames: FrameStore, teacher: TeacherStore, rows: Sequence[int]) -> list[int]:
    """The teacher store's rows of the frame store's `rows`.

    Raises FingerprintError where the identities differ (both values named) or a frame has other poses there, StoreError
    where frames are missing.
    """
    for key, expected in frames.manifest.identity.items():
        found = teacher.manifest.identity.get(key)
        if found != expected:
            raise FingerprintError(
                f"{teacher.root}: {key} = {found}, but {frames.root} has {expected}; "
                "cache the teacher again on these frames"
            )
    wanted = np.asarray(rows, np.int64)
    there = teacher.index.rows_of(frames.index.token[wanted])
    if (there < 0).any():
        missing = wanted[there < 0]
        raise StoreError(
            f"{teacher.root}: {len(missing)} of {len(rows)} frames are missing, the first "
            f"{frames.token(missing[0])}; run cache-teacher again on this cache"
        )
    differs = (frames.index.digest[wanted] != teacher.index.digest[there]).any(axis=1)
    if differs.any():
        row, other = wanted[differs][0], there[differs][0]
        raise FingerprintError(
            f"{teacher.root}: frame {frames.token(row)} has pose digest {teacher.entry(other).digest}, but "
            f"{frames.root} has {frames.entry(row).digest}; cache the teacher again on these frames"
        )
    return there.tolist()
