"""BEVFormer's two attentions, by which cells of the bird's-eye view look at the past map and into the cameras.

Both are deformable: a cell adds up bilinear samples at a few learned places around where it lies. Residual and dropout
are the layer's. Every index is per frame of the batch, so frames never mix. Source: Li et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.deformable import DeformableAttention, deformable_sum, ring_of_offsets
from models.pillar_views import PillarViews

MOMENTS = 2  # the past map and the present one


class TemporalSelfAttention(nn.Module):
    """Cells (B, S, C) look around their own place in the past map and in the present one; the mean of both.

    Offsets and weights are said by the past and the present feature of a cell together; weights are a softmax within
    each moment. The past map has been brought to where the vehicle is now, so both moments have the same places.
    """

    def __init__(self, channels: int, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide by {heads} heads; choose other heads")
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(2 * channels, heads * MOMENTS * points * 2)
        self.weights = nn.Linear(2 * channels, heads * MOMENTS * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(ring_of_offsets(heads, MOMENTS, points).flatten())
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, position: Tensor, past: Tensor, shape: tuple[int, int], centres: Tensor) -> Tensor:
        """query: (B, S, C), S = H * W; position: (S, C) or (B, S, C); past: (B, S, C), the query itself where there is
        no past; shape: (H, W); centres: (S, 2) x, y in 0..1. Returns (B, S, C)."""
        values = self.value(torch.cat([past, query], dim=1)).unflatten(2, (self.heads, -1))  # (B, 2 S, heads, d)
        with torch.autocast(query.device.type, enabled=False):
            said = torch.cat([past, query + position], dim=-1).to(self.offsets.weight.dtype)
            offsets = self.offsets(said).unflatten(2, (self.heads, MOMENTS, self.points, 2))
            weights = self.weights(said).unflatten(2, (self.heads, MOMENTS, self.points)).softmax(dim=-1) / MOMENTS
            side = offsets.new_tensor([shape[1], shape[0]])
            locations = centres[:, None, None, None].to(offsets) + offsets / side
            summed = deformable_sum(values.to(offsets), [shape] * MOMENTS, locations, weights)
        return self.output(summed)


class SpatialCrossAttention(nn.Module):
    """Cells look into the cameras that see them, around the places of their pillar's points; the mean of these cameras.

    `points` samples per head and level are dealt to the heights in turn: sample p belongs to height p % heights. A cell
    that no camera sees gets zeros.
    """

    def __init__(self, channels: int, heads: int = 8, levels: int = 4, points: int = 8, heights: int = 4) -> None:
        super().__init__()
        if points % heights:
            raise ValueError(f"{points} points do not divide by {heights} heights; choose a multiple")
        self.repeats = points // heights
        self.attention = DeformableAttention(channels, heads, levels, points)

    def forward(self, query: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]], views: PillarViews) -> Tensor:
        """query: (B, S, C); tokens: (B, N, T, C) of the N cameras' levels, one after another; shapes: (h, w) of each
        level; views: of the same frames and cameras. Returns (B, S, C)."""
        batch, cells, channels = query.shape
        frame = torch.arange(batch, device=query.device).repeat_interleave(tokens.shape[1])
        row = views.cells + frame[:, None] * cells  # (B * N, K) of query.flatten(0, 1)
        asking = query.flatten(0, 1).index_select(0, row.flatten()).view(*row.shape, channels)
        places = views.places.repeat(1, 1, self.repeats, 1)[:, :, None]  # (B * N, K, 1, points, 2)
        seen = self.attention(asking, tokens.flatten(0, 1), shapes, places) * views.valid[..., None]
        total = query.new_zeros(batch * cells, channels)
        total = total.index_add(0, row.flatten(), seen.flatten(0, 1).to(query.dtype)).view_as(query)
        return total / views.cameras.clamp(min=1)[..., None]
