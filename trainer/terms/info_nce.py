"""The contrastive loss between a teacher's and a student's features of the same places, and the heads before it.

    softmax (InfoNCE)  - log  e_ii / sum_j e_ij,                         e_ij = exp(t_i . s_j / tau)
    crd                - log h_ii - sum_(j /= i) log(1 - h_ij),          h_ij = e_ij / (e_ij + noise)

per place i, with the other places j of its own frame as negatives, so that no frame's loss depends on its batch. Places
nearer than `apart` say much the same and are no negatives of each other. What it costs, `bevdistill_contrast` says.
Sources: Chen et al. 2022 and its released code (softmax, tau 0.07); Tian et al. 2020 for the critic of crd, where noise
is the number of negatives over the number of frames of the data set.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.norms import is_synced

Norm = Literal["layer", "batch"]
Critic = Literal["softmax", "crd"]
_NEAR = 1e-6  # cells just `apart` from each other are apart, whichever way rounding goes


class ProjectionHead(nn.Module):
    """(M, in_channels) -> (M, width) of length 1: linear, then linear, norm, ReLU, linear.

    norm: batch as released, or layer, under which a place's feature does not depend on the others of its batch.
    """

    def __init__(self, in_channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(channels, width) for channels in (in_channels, width, width))
        self.norm: nn.Module = nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.second(self.first(values))
        if isinstance(self.norm, nn.BatchNorm1d) and len(hidden) < 2 and not is_synced(self.norm):
            n = self.norm
            hidden = F.batch_norm(hidden, n.running_mean, n.running_var, n.weight, n.bias, False, eps=n.eps)
        else:
            hidden = self.norm(hidden)
        return F.normalize(self.last(F.relu(hidden)), dim=1)


def contrast(
    teacher: Tensor,
    student: Tensor,
    samples: Tensor,
    points: Tensor,
    frames: int,
    *,
    tau: float,
    apart: float,
    symmetric: bool,
    critic: Critic = "softmax",
    noise: float = 1.0,
) -> Tensor:
    """(M,): the loss of each place. teacher, student: (M, D) of length 1; samples: (M,) ascending; points: (M, 2) m;
    apart: m; symmetric: half of it with the student's features as anchors."""
    if not len(samples):
        return (teacher * student).sum(dim=1)
    counts = torch.bincount(samples, minlength=frames)
    slot = torch.arange(len(samples), device=samples.device) - (counts.cumsum(0) - counts)[samples]
    most = int(counts.max())

    def padded(values: Tensor) -> Tensor:  # (B, most, ...)
        return values.new_zeros(frames, most, values.shape[1]).index_put((samples, slot), values)

    logits = padded(teacher) @ padded(student).transpose(1, 2) / tau  # (B, anchor, other)
    place = padded(points)
    near = (place[:, :, None] - place[:, None]).square().sum(dim=3) < (apart * (1 - _NEAR)) ** 2
    diagonal = torch.eye(most, dtype=torch.bool, device=near.device)
    there = torch.arange(most, device=near.device) < counts[:, None]
    left_out = (near | ~there[:, None]) & ~diagonal
    loss = _per_anchor(logits, left_out, critic, noise)
    if symmetric:
        loss = (loss + _per_anchor(logits.transpose(1, 2), left_out, critic, noise)) / 2
    return loss[samples, slot]


def _per_anchor(logits: Tensor, left_out: Tensor, critic: Critic, noise: float) -> Tensor:
    """(B, M) of logits (B, anchor, other)."""
    positive = logits.diagonal(dim1=1, dim2=2)
    if critic == "softmax":
        return logits.masked_fill(left_out, float("-inf")).logsumexp(dim=2) - positive
    shifted = logits - torch.tensor(noise, dtype=logits.dtype).log()
    negatives = F.softplus(shifted).masked_fill(left_out, 0.0).sum(dim=2)
    own = shifted.diagonal(dim1=1, dim2=2)
    return F.softplus(-own) + negatives - F.softplus(own)
