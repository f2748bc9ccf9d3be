"""Convolutions of 3 x 3 at some cells of a map, and what is read between those cells: no more than is asked for.

At a cell that is computed the convolution is the whole map's, with zeros around the map, and so are its gradients (to
rounding); what is not asked for, and its neighbours, is not touched. Norms take their statistics from the computed
cells: those of the whole map cannot be had without computing it.

Cost of n cells of B * H * W: n / (B * H * W) of the products of the whole convolution, and 9 n C values gathered, kept
for the backward pass (n = 20,000, C = 256: 184 MB). Worth it below about half of the cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.terms.sampling import corners


@dataclass(frozen=True)
class SomeCells:
    """Cells of maps (B, H, W). index: (N,) int64 flat, rising, each once."""

    index: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, index: Tensor, shape: tuple[int, int, int]) -> SomeCells:
        """Those of `index`, in any order and number."""
        return cls(index.unique(), shape)

    def neighbours(self) -> Tensor:
        """(N, 9) int64: flat cells of the 3 x 3 around each, row by row, -1 off the map."""
        _, height, width = self.shape
        row, col = self.index // width % height, self.index % width
        step = torch.arange(-1, 2, device=self.index.device)
        i, j = (part.flatten() for part in torch.meshgrid(step, step, indexing="ij"))
        inside = ((row[:, None] + i) >= 0) & ((row[:, None] + i) < height)
        inside &= ((col[:, None] + j) >= 0) & ((col[:, None] + j) < width)
        return torch.where(inside, self.index[:, None] + i * width + j, -1)

    def grown(self) -> SomeCells:
        """With every neighbour on the map."""
        around = self.neighbours()
        return SomeCells.of(around[around >= 0], self.shape)

    def positions(self, cells: Tensor) -> Tensor:
        """Positions in `index` of flat `cells` (...,), -1 where a cell is not among them, or is -1 itself."""
        batch, height, width = self.shape
        table = torch.full((batch * height * width + 1,), -1, dtype=torch.int64, device=cells.device)
        table[self.index] = torch.arange(len(self.index), device=cells.device)
        return table[cells]  # -1 is the last, which no cell has


def rows_of(bev: Tensor) -> Tensor:
    """(B * H * W, C): the cells of maps (B, C, H, W)."""
    return bev.permute(0, 2, 3, 1).reshape(-1, bev.shape[1])


def conv_at(conv: nn.Conv2d, rows: Tensor, positions: Tensor) -> Tensor:
    """(N, O): a 3 x 3 convolution at N cells. rows: (M, C) cells' values; positions: (N, 9) of each cell's 3 x 3 among
    them, -1 where it is 0."""
    bias = rows.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    out = bias.expand(len(positions), -1)
    bordered = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # -1 is the last
    for position, kernel in zip(positions.unbind(1), conv.weight.flatten(2).unbind(2), strict=True):
        # index_select, whose gradient adds whole rows: that of [] goes value by value
        out = torch.addmm(out, bordered.index_select(0, position % len(bordered)), kernel.T)
    return out


def layer_at(layer: nn.Module, rows: Tensor, positions: Tensor) -> Tensor:
    """`conv_at` of a convolution, or of one with what stands behind it: norm, ReLU."""
    if isinstance(layer, nn.Conv2d):
        return conv_at(layer, rows, positions)
    first, *rest = layer.children()
    assert isinstance(first, nn.Conv2d)
    out = conv_at(first, rows, positions)
    for part in rest:
        out = _normed(part, out) if isinstance(part, nn.modules.batchnorm._BatchNorm) else part(out)
    return out


def _normed(norm: nn.modules.batchnorm._BatchNorm, rows: Tensor) -> Tensor:
    """A norm's statistics over rows (N, C); one row alone has none, so the running ones serve it."""
    if len(rows) > 1 or not norm.training:
        # cells as a batch; as columns of one map, a view, torch 2.13's norm gives a wrong gradient
        return norm(rows[:, :, None, None])[:, :, 0, 0]  # type: ignore[no-any-return]
    return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def between(rows: Tensor, cells: SomeCells, samples: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """(K, C): values of `cells` read bilinearly at places (K,), whose corners are all among them. rows: (N, C)."""
    index, weights = corners(samples, row, col, cells.shape[1:])
    return F.embedding_bag(cells.positions(index), rows, mode="sum", per_sample_weights=weights.to(rows.dtype))
