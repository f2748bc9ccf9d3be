"""Which frames of a batch have annotations: terms that read boxes or their masks leave the others out."""

from __future__ import annotations

import torch
from torch import Tensor

from models.detector import Batch


def annotated_frames(batch: Batch, device: torch.device) -> Tensor:
    """(B,) bool; all of them where the batch does not say."""
    labelled = getattr(batch, "labelled", None)
    if labelled is None:
        return torch.ones(len(batch), dtype=torch.bool, device=device)
    return labelled.to(device=device, dtype=torch.bool)
