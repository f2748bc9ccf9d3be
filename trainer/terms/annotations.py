"""What terms share of annotations: which frames of a batch have them, and the boxes of all frames in one row."""

from __future__ import annotations

import torch
from torch import Tensor

from models.detector import Batch


def annotated_frames(batch: Batch, device: torch.device | str = "cpu") -> Tensor:
    """(B,) bool: the frames whose boxes and labels are annotations; all of them where the batch does not say."""
    if batch.labelled is None:
        return torch.ones(len(batch), dtype=torch.bool, device=device)
    return batch.labelled.to(device=device, dtype=torch.bool)


def annotated_boxes(batch: Batch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """sample (N,) int64, boxes (N, 9) float64 and labels (N,) int64 of all annotated frames, in order.

    As the batch has them: under its BEV augmentation.
    """
    counts = torch.tensor([len(boxes) for boxes in batch.boxes], dtype=torch.int64)
    samples = torch.repeat_interleave(torch.arange(len(counts)), counts).to(device)
    boxes = torch.cat([boxes.reshape(-1, 9).double() for boxes in batch.boxes]) if len(counts) else torch.zeros(0, 9)
    labels = torch.cat([labels.long() for labels in batch.labels]) if len(counts) else torch.zeros(0).long()
    kept = annotated_frames(batch, device)[samples]
    return samples[kept], boxes.to(device, torch.float64)[kept], labels.to(device)[kept]
