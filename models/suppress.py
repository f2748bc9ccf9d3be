"""Circle suppression: of two boxes of one class whose centres are closer than the class's radius, the weaker one goes.

Greedy in score order like any NMS, but computed on the whole distance matrix at once; cost K^2 for K boxes of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor


def circle_suppress(centres: Tensor, labels: Tensor, radius_m: Tensor) -> Tensor:
    """Which boxes (K,) bool stay.

    centres: (K, 2) x, y in metres, sorted by score, best first; labels: (K,) class ids; radius_m: (classes,) metres,
    0 keeps all of a class.
    """
    close = torch.cdist(centres.float(), centres.float(), compute_mode="donot_use_mm_for_euclid_dist")
    rivals = (close < radius_m.to(centres.device)[labels][:, None]) & (labels[:, None] == labels)
    rivals = rivals.triu(diagonal=1)  # rivals[i, j]: i is better than j and close to it
    # A box stays iff no better box that stays is close. Repeating that rule from "all stay" settles box i after at most
    # i rounds, at the greedy answer; in practice after two or three.
    stays = torch.ones(len(centres), dtype=torch.bool, device=centres.device)
    while True:
        settled = ~(rivals & stays[:, None]).any(dim=0)
        if torch.equal(settled, stays):
            return stays
        stays = settled
