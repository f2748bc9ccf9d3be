"""BEVFormer's encoder: image features and the past map in, a map of the bird's-eye view out.

Every cell of the grid is a learned query. Layer by layer it looks at the past and present map around itself, then into
the cameras that see its pillar, then passes two linear layers; a norm after each. (B, N, T, C) -> (B, C, H, W).
Source: Li et al. 2022, with the sizes of the released code; ego motion comes from poses, not from a CAN bus.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cache.grid import BevGrid
from models.bev_history import MOTION_NUMBERS, motion_numbers, resample, sound
from models.bevformer_attention import SpatialCrossAttention, TemporalSelfAttention
from models.config import Config
from models.detector import Memory
from models.pillar_views import PillarViews
from models.query_decoder import FeedForward, cell_centres


class BevFormerEncoderConfig(Config):
    """temporal_points: samples per head of the past and of the present map; spatial_points: per head and image level,
    dealt to `heights` points of a cell's pillar; hidden: channels between the two linear layers."""

    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=8, ge=1)
    temporal_points: int = Field(default=4, ge=1)
    spatial_points: int = Field(default=8, ge=1)
    heights: int = Field(default=4, ge=1)
    hidden: int = Field(default=512, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> BevFormerEncoderConfig:
        if self.spatial_points % self.heights:
            raise ValueError(f"spatial_points {self.spatial_points} do not divide by {self.heights} heights")
        return self


class BevFormerEncoder(nn.Module):
    """levels: of the image features; cameras: N."""

    centres: Tensor

    def __init__(self, channels: int, grid: BevGrid, levels: int, cameras: int, config: BevFormerEncoderConfig) -> None:
        super().__init__()
        self.grid = grid
        height, width = grid.shape
        self.query = nn.Parameter(torch.randn(height * width, channels))
        self.of_row = nn.Parameter(torch.rand(height, channels - channels // 2))
        self.of_column = nn.Parameter(torch.rand(width, channels // 2))
        self.motion = nn.Sequential(
            nn.Linear(MOTION_NUMBERS, channels // 2),
            nn.ReLU(inplace=True),
            nn.Linear(channels // 2, channels),
            nn.ReLU(inplace=True),
            nn.LayerNorm(channels),
        )
        self.camera_embedding = nn.Parameter(torch.randn(cameras, channels))
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList(EncoderLayer(channels, levels, config) for _ in range(config.layers))
        self.register_buffer("centres", cell_centres([grid.shape]), persistent=False)  # (S, 2)

    def forward(self, maps: Sequence[Tensor], views: PillarViews, memory: Memory | None) -> Tensor:
        """maps: of each level (B, N, C, h_i, w_i); views: of the same frames and cameras. Returns (B, C, H, W)."""
        batch = len(maps[0])
        height, width = self.grid.shape
        levels = zip(maps, self.level_embedding, strict=True)
        tokens = torch.cat([level.flatten(3).transpose(2, 3) + told for level, told in levels], dim=2)
        tokens = tokens + self.camera_embedding[:, None]  # (B, N, T, C)
        shapes = [(level.shape[3], level.shape[4]) for level in maps]
        columns, rows = self.of_column.expand(height, -1, -1), self.of_row[:, None].expand(-1, width, -1)
        position = torch.cat([columns, rows], dim=-1).flatten(0, 1)  # (S, C)
        if memory is None:
            told = self.motion(self.query.new_zeros(batch, MOTION_NUMBERS))
        else:
            memory = sound(memory)
            told = self.motion(motion_numbers(memory).to(self.query.dtype))
            then = resample(memory.bev, memory.past_to_now, self.grid).flatten(2).transpose(1, 2)  # (B, S, C)
        query = self.query + told[:, None]  # (B, S, C)
        for layer in self.layers:
            past = query if memory is None else torch.where(memory.known[:, None, None], then.to(query.dtype), query)
            query = layer(query, position, past, self.grid.shape, self.centres, tokens, shapes, views)
        return query.transpose(1, 2).unflatten(2, (height, width))


class EncoderLayer(nn.Module):
    """Temporal attention, norm, spatial attention, norm, two linear layers, norm."""

    def __init__(self, channels: int, levels: int, config: BevFormerEncoderConfig) -> None:
        super().__init__()
        self.temporal = TemporalSelfAttention(channels, config.heads, config.temporal_points)
        self.spatial = SpatialCrossAttention(channels, config.heads, levels, config.spatial_points, config.heights)
        self.feed_forward = FeedForward(channels, config.hidden, config.dropout)
        for linear in (self.feed_forward.widen, self.feed_forward.narrow):
            nn.init.xavier_uniform_(linear.weight)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        past: Tensor,
        shape: tuple[int, int],
        centres: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        views: PillarViews,
    ) -> Tensor:
        """As the two attentions have them."""
        query = self.norms[0](query + self.dropout(self.temporal(query, position, past, shape, centres)))
        query = self.norms[1](query + self.dropout(self.spatial(query, tokens, shapes, views)))
        return self.norms[2](self.feed_forward(query))
