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
    scene: np.ndarray, timestamp_us: np.ndarray, past: int, *, spacing: int = 1, start: SceneStart = "absent"
) -> np.ndarray:
    """The `past` moments before each of N frames, oldest first: (N, past) int64, positions among these N.

    scene (N,), timestamp_us (N,): of the frames that may be a past, in any order; frames of one time go by position.
    spacing: 1 takes each moment before, 2 every other one. start: what stands where the scene had not begun: `absent`
    is ABSENT (as BEVFormer begins, `Past.known` false), `repeat` the oldest moment of the window there is, the frame
    itself where it has none before it (as BEVDet4D begins).
    """
    n = len(scene)
    by_time = np.lexsort((np.arange(n), timestamp_us, scene))
    place = np.empty(n, np.int64)  # of each frame in `by_time`
    place[by_time] = np.arange(n)
    begins = np.searchsorted(np.asarray(scene)[by_time], scene)  # of each frame's scene, in `by_time`
    back = spacing * np.arange(past, 0, -1)
    at = place[:, None] - back
    known = at >= begins[:, None]
    if start == "repeat":
        oldest = place - spacing * np.minimum((place - begins) // spacing, past)
        return by_time[np.where(known, at, oldest[:, None])]
    return np.where(known, by_time[np.where(known, at, 0)] if n else at, ABSENT)
