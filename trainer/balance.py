"""Class-balanced resampling (CBGS): an epoch's list in which every class is drawn for equally often.

Zhu et al. 2019, "Class-balanced Grouping and Sampling for Point Cloud 3D Object Detection", as its released code has
it: a frame counts for every class that it shows, at least once; with D such counts in all and K classes, D / K frames
are drawn for each class, with replacement, from those that show it. 28,130 nuScenes key frames become some 120,000.
Different here: the draw is anew every epoch, not once a run, by seed and epoch alone, and rounding is exact.
"""

from __future__ import annotations

import numpy as np

from cache.errors import ConfigError

_BALANCE = 6  # this stream apart from those of `trainer.order`


def balanced_length(class_counts: np.ndarray) -> int:
    """How many entries `balanced_list` has, the same in every epoch. Raises ConfigError where no frame shows anything.

    class_counts: (N, classes), boxes of each class in each frame, as the index of a frame store has them.
    """
    shows = np.asarray(class_counts) > 0
    total, classes = int(shows.sum()), int(shows.any(axis=0).sum())
    if not classes:
        raise ConfigError(
            f"balance = cbgs: none of {len(shows)} frames has a box of any class to balance; set it to none"
        )
    return total // classes * classes


def balanced_list(class_counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Frames (L,) int64, class by class in the order of ids, frames repeated. Pure.

    Classes that no frame shows are not among the K. Frames that show none are never drawn, as in the released code.
    Raises as `balanced_length`.
    """
    shows = np.asarray(class_counts) > 0
    balanced_length(shows)
    classes = np.flatnonzero(shows.any(axis=0))
    each = int(shows.sum()) // len(classes)
    parts = []
    for class_id in classes.tolist():
        # a stream a class: another class list changes no other class's draw
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_BALANCE, seed, epoch, class_id))))
        of_class = np.flatnonzero(shows[:, class_id])
        parts.append(of_class[generator.integers(0, len(of_class), each)])
    return np.concatenate(parts)
