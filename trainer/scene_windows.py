"""Windows of a temporal student: each frame with the moments before it in its scene, never of another scene.

An entry stays one frame, the present one, so every frame ends exactly one window, and orders, batches and ranks are
those of single frames. A table of N x k rows, made once (a million frames, k = 3: 0.2 s, 24 MB).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

ABSENT = -1
SceneStart = Literal["absent", "repeat"]


def scene_windows(
    scene: np.ndarray,
    timestamp_us: np.ndarray,
    past: int,
    *,
    spacing: int = 1,
    start: SceneStart = "absent",
    may_be_past: np.ndarray | None = None,
) -> np.ndarray:
    """The `past` moments before each of N frames, oldest first: (N, past) int64, positions among these N.

    scene (N,), timestamp_us (N,): in any order; frames of one time go by position. may_be_past: (N,) bool, which of
    them may be a past; None: all. spacing: 1 takes each moment before, 2 every other one. start: what stands where the
    scene had not begun: `absent` is ABSENT (as BEVFormer begins, `Past.known` false), `repeat` the oldest moment of the
    window there is, the frame itself where it has none before it (as BEVDet4D begins).
    """
    n = len(scene)
    may = np.ones(n, bool) if may_be_past is None else np.asarray(may_be_past, bool)
    by_time = np.lexsort((np.arange(n), timestamp_us, scene))
    pasts = by_time[may[by_time]]
    before = np.empty(n, np.int64)  # of each frame, how many of `pasts` come before it, in its scene or an earlier one
    before[by_time] = np.cumsum(may[by_time]) - may[by_time]
    begins = np.searchsorted(np.asarray(scene)[pasts], scene)  # of each frame's scene, in `pasts`
    back = spacing * np.arange(past, 0, -1)
    at = before[:, None] - back
    known = at >= begins[:, None]
    found = pasts[np.where(known, at, 0)] if len(pasts) else np.zeros_like(at)
    if start == "absent":
        return np.where(known, found, ABSENT)
    steps = np.minimum((before - begins) // spacing, past)
    oldest = np.where(steps > 0, before - spacing * steps, -1)
    first = np.where(oldest >= 0, pasts[oldest] if len(pasts) else 0, np.arange(n))
    return np.where(known, found, first[:, None])
