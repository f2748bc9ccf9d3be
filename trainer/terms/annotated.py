"""Which frames of a batch carry annotations: terms that read annotated boxes leave the others out.

An unlabelled frame has no boxes for want of an annotator, not of objects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.detector import Batch


def labelled_frames(batch: Batch, device: torch.device | str = "cpu") -> Tensor:
    """(B,) bool; all of them where the batch does not say."""
    said = getattr(batch, "labelled", None)
    if said is None:
        return torch.ones(len(batch), dtype=torch.bool, device=device)
    return torch.as_tensor(said, dtype=torch.bool, device=device)
