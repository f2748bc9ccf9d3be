"""Which sweeps between key frames become unlabelled frames, and which image of a camera goes with one.

nuScenes labels 2 Hz of a recording that its LiDAR made at 20 Hz and its cameras at 12 Hz. Pure functions of timestamps
(microseconds), so that every run chooses the same frames, whatever was asked of the run before.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

# At 12 Hz the nearest image is at most 42 ms away: farther means that the recording lost one, and where the camera then
# looked, things that move have moved on by a metre at 60 km/h.
MAX_IMAGE_US = 60_000


@dataclass(frozen=True)
class Between:
    """What was found between key frames. asked: frames for each interval; intervals: pairs of consecutive key frames;
    frames: unlabelled frames chosen; short: intervals with fewer sweeps than asked; without_images: chosen sweeps that
    became no frame, because a camera took no image within MAX_IMAGE_US."""

    asked: int = 0
    intervals: int = 0
    frames: int = 0
    short: int = 0
    without_images: int = 0

    def __add__(self, other: Between) -> Between:
        return Between(
            max(self.asked, other.asked),
            self.intervals + other.intervals,
            self.frames + other.frames,
            self.short + other.short,
            self.without_images + other.without_images,
        )

    def __str__(self) -> str:
        """One line for a person: what there is, and why it is less than asked."""
        line = f"--between {self.asked}: {self.frames} unlabelled frames in {self.intervals} intervals of key frames"
        if not self.intervals:
            return f"{line}; no scene has two key frames, so nothing lies between"
        if self.short:
            line += f"; {self.short} intervals have fewer than {self.asked} sweeps"
        if self.without_images:
            line += (
                f"; {self.without_images} sweeps left out, a camera has no image within {MAX_IMAGE_US // 1000} ms of "
                "them (a simulated data set has such images with `simulate --between-images`)"
            )
        return line


def choose_evenly(times: Sequence[int], begin: int, end: int, count: int) -> list[int]:
    """Positions in `times` (rising, begin < t < end) of up to `count` sweeps, evenly spread over the interval in time.

    The k-th is the sweep nearest to begin + k (end - begin) / (count + 1), of two as near the earlier, among those that
    leave a sweep for each that is still to choose: rising, none twice. Of `count` sweeps or fewer all are chosen.
    """
    if len(times) <= count:
        return list(range(len(times)))
    chosen: list[int] = []
    for k in range(1, count + 1):
        first, last = (chosen[-1] + 1 if chosen else 0), len(times) - (count - k) - 1
        # whole numbers: times (count + 1), so that nothing is rounded
        moment = begin * (count + 1) + k * (end - begin)
        chosen.append(min(range(first, last + 1), key=lambda i: (abs(times[i] * (count + 1) - moment), i)))
    return chosen


def nearest(times: Sequence[int], moment: int) -> int | None:
    """Position in `times` (rising) of the one nearest to `moment`, of two as near the earlier; None where it is more
    than MAX_IMAGE_US away, or where there is none."""
    after = bisect.bisect_left(times, moment)
    near = [i for i in (after - 1, after) if 0 <= i < len(times)]
    best = min(near, key=lambda i: (abs(times[i] - moment), i), default=None)
    return best if best is not None and abs(times[best] - moment) <= MAX_IMAGE_US else None
