"""The transformer of Object-DGCNN: BEV maps and learned queries in, a feature and a place per query and layer out.

An encoder lets the tokens of all levels look at each other; each layer of the decoder lets the queries talk, by a
dynamic graph or by attention, look at the tokens around their reference points, and moves those points. Attention to
tokens is deformable, so cost is linear in tokens. Sources: Wang and Solomon 2021; Zhu et al. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.config import Config
from models.deformable import DeformableAttention

Shapes = Sequence[tuple[int, int]]


class TransformerConfig(Config):
    """encoder_layers, decoder_layers; queries: learned; heads, points: of the deformable attention; hidden: channels
    between the two linear layers after an attention.

    interaction: how queries talk: `graph`, edges to the `neighbours` nearest queries by feature, or `attention`, to
    all, as BEVDistill's teacher does. graph_order: `farthest` is what the released Object-DGCNN does in place of the
    paper's nearest, for its weights.
    """

    encoder_layers: int = Field(default=2, ge=0)
    decoder_layers: int = Field(default=6, ge=1)
    queries: int = Field(default=300, ge=1)
    heads: int = Field(default=8, ge=1)
    points: int = Field(default=4, ge=1)
    hidden: int = Field(default=512, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    interaction: Literal["graph", "attention"] = "graph"
    neighbours: int = Field(default=16, ge=1)
    graph_order: Literal["nearest", "farthest"] = "nearest"

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.interaction == "graph" and self.neighbours > self.queries:
            raise ValueError(f"{self.queries} queries have no {self.neighbours} neighbours")
        return self


class Transformer(nn.Module):
    """maps of `channels` at `shapes` -> the queries' features after every layer of the decoder.

    What turns a feature into a step of its reference point is the head's, so `forward` is given it. places: numbers of
    a reference point, 2 (x, y) or 3 (x, y, z); attention to the maps is by the first two.
    """

    positions: Tensor
    centres: Tensor

    def __init__(self, channels: int, shapes: Shapes, config: TransformerConfig, places: int = 2) -> None:
        super().__init__()
        self.shapes, self.places = tuple(shapes), places
        levels = len(self.shapes)
        self.encoder = nn.ModuleList(EncoderLayer(channels, levels, config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(channels, levels, config) for _ in range(config.decoder_layers))
        self.reference = nn.Linear(channels, places)
        for part in (self.encoder, self.decoder, self.reference):
            _initialise(part)
        nn.init.zeros_(self.reference.bias)
        self.level_embedding = nn.Parameter(torch.randn(levels, channels)) if config.encoder_layers else None
        self.query_position = nn.Parameter(torch.randn(config.queries, channels))
        self.query_content = nn.Parameter(torch.randn(config.queries, channels))
        told = self.shapes if config.encoder_layers else ()  # only an encoder asks where a token is
        self.register_buffer("positions", sine_positions(told, channels), persistent=False)  # (S, C)
        self.register_buffer("centres", cell_centres(told), persistent=False)  # (S, 2)

    def forward(self, maps: Sequence[Tensor], steps: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
        """maps: (B, C, H_i, W_i) at `shapes`; steps: per layer of the decoder, a feature (B, Q, C) to a vector whose
        first `places` numbers move the reference point, before the sigmoid.

        Returns per layer the feature (B, Q, C) and the reference point (B, Q, places), in 0..1, that it began from; but
        the first, without gradient.
        """
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # (B, S, C)
        if self.level_embedding is not None:
            sizes = torch.tensor([height * width for height, width in self.shapes], device=tokens.device)
            level_of = torch.repeat_interleave(self.level_embedding, sizes, dim=0, output_size=tokens.shape[1])
            position = self.positions + level_of
            centres = self.centres[None, :, None].expand(-1, -1, len(self.shapes), -1)
            for layer in self.encoder:
                tokens = layer(tokens, position, self.shapes, centres)
        batch = len(tokens)
        query = self.query_content.expand(batch, -1, -1)
        position = self.query_position.expand(batch, -1, -1)
        with torch.autocast(tokens.device.type, enabled=False):  # bf16 would round a place to 0.4 m
            point = self.reference(self.query_position).sigmoid().expand(batch, -1, -1)
        features, references = [], []
        for layer, step in zip(self.decoder, steps, strict=True):
            references.append(point)
            query = layer(query, position, tokens, self.shapes, point[..., :2])
            features.append(query)
            with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
                point = (inverse_sigmoid(point) + step(query.float())[..., : self.places]).sigmoid()
        return features, references


class EncoderLayer(nn.Module):
    """Tokens look at the tokens around their own place on every level."""

    def __init__(self, channels: int, levels: int, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, config.heads, levels, config.points)
        self.feed_forward = FeedForward(channels, config.hidden, config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, position: Tensor, shapes: Shapes, centres: Tensor) -> Tensor:
        """tokens: (B, S, C); position: (S, C); centres: (1, S, levels, 2)."""
        seen = self.attention(tokens + position, tokens, shapes, centres)
        tokens = self.norms[0](tokens + self.dropout(seen))
        return self.norms[1](self.feed_forward(tokens))


class DecoderLayer(nn.Module):
    """Queries talk to each other, then look at the tokens around their reference points."""

    def __init__(self, channels: int, levels: int, config: TransformerConfig) -> None:
        super().__init__()
        self.interaction: nn.Module
        if config.interaction == "graph":
            self.interaction = QueryGraph(channels, config.neighbours, config.graph_order == "farthest", config.dropout)
        else:
            self.interaction = QueryAttention(channels, config.heads, config.dropout)
        self.attention = DeformableAttention(channels, config.heads, levels, config.points)
        self.feed_forward = FeedForward(channels, config.hidden, config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query: Tensor, position: Tensor, tokens: Tensor, shapes: Shapes, point: Tensor) -> Tensor:
        """query, position: (B, Q, C); tokens: (B, S, C); point: (B, Q, 2)."""
        query = self.norms[0](self.interaction(query, position))
        references = point[:, :, None].expand(-1, -1, len(shapes), -1)
        seen = self.attention(query + position, tokens, shapes, references)
        query = self.norms[1](query + self.dropout(seen))
        return self.norms[2](self.feed_forward(query))


class QueryAttention(nn.Module):
    """Multi-head attention of every query to all; its residual included."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, position: Tensor) -> Tensor:
        """Both (B, Q, C)."""
        placed = query + position
        return query + self.dropout(self.attention(placed, placed, query, need_weights=False)[0])


class QueryGraph(nn.Module):
    """Object-DGCNN's block: two edge convolutions over the graph of the most alike queries; its residual included.

    The graph is built anew on the features of each convolution, by their Euclidean distance. A query is its own nearest
    neighbour.
    """

    def __init__(self, channels: int, neighbours: int, farthest: bool, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(EdgeConvolution(channels, neighbours, farthest) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, position: Tensor) -> Tensor:
        """Both (B, Q, C)."""
        first = self.convolutions[0](query + position)
        return query + self.dropout(first + self.convolutions[1](first))


class EdgeConvolution(nn.Module):
    """The maximum over a query's neighbours j of ReLU(norm(linear([q_j, q_i])))."""

    def __init__(self, channels: int, neighbours: int, farthest: bool) -> None:
        super().__init__()
        self.neighbours, self.farthest = neighbours, farthest
        self.linear = nn.Linear(2 * channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, query: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        batch, queries, channels = query.shape
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            distance = torch.cdist(query.float(), query.float(), compute_mode="donot_use_mm_for_euclid_dist")
            near = distance.topk(self.neighbours, dim=2, largest=self.farthest).indices  # (B, Q, K)
        # The layer is linear, so it is applied to queries and not to edges, of which there are K times as many.
        of_neighbour, of_self = (F.linear(query, weight) for weight in self.linear.weight.split(channels, dim=1))
        place = near + torch.arange(batch, device=near.device)[:, None, None] * queries
        edges = of_neighbour.flatten(0, 1).index_select(0, place.flatten()).view(batch, queries, -1, channels)
        edges = self.norm((edges + of_self[:, :, None]).flatten(0, 2)).view(batch, queries, -1, channels)
        return F.relu(edges.amax(dim=2))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between; its residual included."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.narrow(self.dropout(F.relu(self.widen(x)))))


def inverse_sigmoid(p: Tensor, eps: float = 1e-5) -> Tensor:
    """log(p / (1 - p)) in fp32, both sides no less than eps: fp16 would lose 1 - p near 1."""
    p = p.float().clamp(0, 1)
    return torch.log(p.clamp(min=eps) / (1 - p).clamp(min=eps))


def cell_centres(shapes: Shapes) -> Tensor:
    """(S, 2) x, y in 0..1 of every cell of all levels, row by row."""
    centres = [torch.zeros(0, 2)]
    for height, width in shapes:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(centres)


def sine_positions(shapes: Shapes, channels: int) -> Tensor:
    """(S, channels): for every cell of all levels, sines and cosines of its row, then of its column.

    A level's rows and columns run over one turn; frequencies fall from 1 to 1 / 10,000 (Carion et al. 2020).
    """
    half = channels // 2
    frequency = 10000.0 ** (-2 * (torch.arange(half) // 2) / half)
    angle = 2 * math.pi * cell_centres(shapes)[:, :, None] * frequency  # (S, 2, half)
    waves = torch.where(torch.arange(half) % 2 == 0, angle.sin(), angle.cos())
    return waves.flip(1).flatten(1)


def _initialise(part: nn.Module) -> None:
    """Xavier for every matrix, but for deformable attention, which starts out as a ring."""
    for parameter in part.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in part.modules():
        if isinstance(module, DeformableAttention):
            module.reset()
