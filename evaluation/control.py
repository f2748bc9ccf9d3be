"""The control every score is held against: the same predictions, handed to frames they were not made for.

A model that had only learnt where objects usually are would score as well on the wrong frames as on the right ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cache.errors import DataError
from cache.frame import Detections


def shuffled_over_frames(
    detections: Mapping[str, Detections],
    tokens: Sequence[str],
    seed: int,
    scene_of: Mapping[str, str] | None = None,
) -> dict[str, Detections]:
    """Every frame gets the predictions of another one: a derangement, each prediction used once, fixed by the seed.

    tokens: the frames' tokens. scene_of: token -> scene; where given, no frame gets a prediction of its own scene, in
    which half a second later almost the same boxes are right. Raises DataError where there is no such exchange (one
    frame, or one scene with more than half of all frames).
    """
    random = np.random.default_rng(seed)
    groups: dict[str, list[str]] = {}
    for token in (tokens[i] for i in random.permutation(len(tokens))):
        groups.setdefault(scene_of[token] if scene_of is not None else token, []).append(token)
    shift = max((len(group) for group in groups.values()), default=0)
    if len(tokens) < 2 or 2 * shift > len(tokens):
        raise DataError(
            f"shuffling {len(tokens)} frames of {len(groups)} scenes: no exchange leaves every frame with another's "
            "predictions; use more frames or more scenes"
        )
    # Groups stand in random order, each in one piece; a turn by the longest takes every frame out of its own group.
    ordered = [token for group in groups.values() for token in group]
    return {token: detections[ordered[(i + shift) % len(ordered)]] for i, token in enumerate(ordered)}
