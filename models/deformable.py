"""Multi-scale deformable attention: each query looks at a few learned places of several maps (Zhu et al. 2021).

Plain torch: one `grid_sample` per level, bilinear, zeros outside, align_corners False. Places and their weights are
computed in fp32 whatever the autocast: in bf16 a place on a map of 128 cells is known to half a cell only. Memory
follows queries x heads x points x channels of one level (89 MB for 21,760 queries of 256 channels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def deformable_sum(values: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples.

    values: (B, S, heads, d), the tokens of all levels one after another, each level row by row; shapes: (H, W) of each
    level; locations: (B, Q, heads, levels, points, 2) x, y in 0..1 of a level's width and height, cell centres at
    (i + 0.5) / N; weights: (B, Q, heads, levels, points). Returns (B, Q, heads * d). What lies outside a map counts as
    zero.
    """
    batch, queries, heads = locations.shape[:3]
    flat = values.permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, d, S)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, levels, points, 2)
    shares = weights.transpose(1, 2).flatten(0, 1)  # (B * heads, Q, levels, points)
    total = flat.new_zeros(batch * heads, flat.shape[1], queries)
    maps = flat.split([height * width for height, width in shapes], dim=2)
    for level, ((height, width), tokens) in enumerate(zip(shapes, maps, strict=True)):
        seen = F.grid_sample(tokens.unflatten(2, (height, width)), grid[:, :, level], align_corners=False)
        total = total + (seen * shares[:, None, :, level]).sum(dim=-1)  # (B * heads, d, Q)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def ring_of_offsets(heads: int, levels: int, points: int) -> Tensor:
    """(heads, levels, points, 2) x, y in cells: each head in a direction of its own, its k-th point k + 1 cells away
    (measured along the sides of a square)."""
    angle = torch.arange(heads) * (2 * math.pi / heads)
    ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
    ring = ring / ring.abs().amax(dim=-1, keepdim=True)  # onto the border of a square
    steps = torch.arange(1, points + 1)
    return ring[:, None, None] * steps[:, None].expand(levels, -1, 1)


class DeformableAttention(nn.Module):
    """Attention of queries (B, Q, C) to the tokens (B, S, C) of several maps.

    A head adds up `points` places of every level, at learned offsets in cells from the query's reference point, with
    weights that are a softmax over all of them. No residual and no dropout: they are the caller's.
    """

    def __init__(self, channels: int, heads: int = 8, levels: int = 4, points: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide by {heads} heads; choose other heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reset()

    def reset(self) -> None:
        """Every head starts out in a direction of its own, its k-th point k + 1 cells away, all weights equal."""
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(ring_of_offsets(self.heads, self.levels, self.points).flatten())
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]], references: Tensor) -> Tensor:
        """query: (B, Q, C), its position added by the caller; tokens: (B, S, C); shapes: (H, W) of each level;
        references: (B, Q, levels, 2) x, y in 0..1, or (B, Q, levels, points, 2) where points have their own, as heights
        of a pillar do. Batch axes of 1 are broadcast. Returns (B, Q, C)."""
        if len(shapes) != self.levels or sum(h * w for h, w in shapes) != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens of levels {list(shapes)}, expected {self.levels} levels")
        values = self.value(tokens).unflatten(2, (self.heads, -1))
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(self.offsets.weight.dtype)
            offsets = self.offsets(query).unflatten(2, (self.heads, self.levels, self.points, 2))
            weights = self.weights(query).unflatten(2, (self.heads, -1)).softmax(dim=-1)
            sides = offsets.new_tensor([(width, height) for height, width in shapes])[:, None]  # (levels, 1, 2)
            if references.dim() == 4:
                references = references[:, :, :, None]
            locations = references[:, :, None].to(offsets) + offsets / sides
            weights = weights.unflatten(3, (self.levels, self.points))
            summed = deformable_sum(values.to(offsets), shapes, locations, weights)
        return self.output(summed)
