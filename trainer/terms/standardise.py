"""Teacher values brought to a common scale: mean and deviation by channel, or whitened; shared by all feature terms.

A LiDAR map's channels differ in scale by orders of magnitude and are correlated; a plain squared error then teaches a
handful of them. Statistics are taken once, over the cells that the term reads, and are part of the term's state.

    none       T
    channels   (T - mean) / deviation; a channel that never changes gets deviation 1
    whiten     W (T - mean), W = U diag(1 / sqrt(l + 1e-3 mean l)) U^T for the covariance U diag(l) U^T (ZCA: the
               nearest white coordinates to the old ones)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cache.store import TeacherStore
from trainer.terms.store_facts import evenly, nothing_there, teacher_cells

Standard = Literal["none", "channels", "whiten"]
_RIDGE = 1e-3  # of the mean eigenvalue: directions that the teacher hardly uses are not blown up to its main ones


class Standardise(nn.Module):
    """(K, C) as stored -> (K, C). scale: (C,) deviations, (C, C) the matrix W, or None."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor | None = None, scale: Tensor | None = None) -> None:
        super().__init__()
        self.kind: Standard = "none" if scale is None else "channels" if scale.ndim == 1 else "whiten"
        self.register_buffer("mean", torch.zeros(0) if mean is None else mean)
        self.register_buffer("scale", torch.ones(0) if scale is None else scale)

    def forward(self, values: Tensor) -> Tensor:
        if self.kind == "none":
            return values
        centred = values - self.mean
        return centred / self.scale if self.kind == "channels" else centred @ self.scale.T

    @classmethod
    def fit(
        cls, kind: Standard, teacher: TeacherStore, level: str, rows: Sequence[int], columns: Sequence[str] | None
    ) -> Standardise:
        """From some of `rows` (`evenly`) of the feature ("") or a level, over the cells that any of these
        columns of weights keeps (None: over all stored cells), each cell counted once. Deterministic. StoreError where
        there is no such cell."""
        if kind == "none":
            return cls()
        read = teacher_cells(teacher, level)
        kept = None if columns is None else [list(teacher.selectors).index(name) for name in columns]
        count, total, squares = 0, np.zeros(1), np.zeros(1)
        picked = evenly(rows)
        for row in picked:
            cells = read(row)
            chosen = slice(None) if kept is None else (cells.weights[:, kept] > 0).any(axis=1)
            values = cells.values[chosen].astype(np.float64)
            square = values.T @ values if kind == "whiten" else (values**2).sum(axis=0)
            count, total, squares = count + len(values), total + values.sum(axis=0), squares + square
        if not count:
            raise nothing_there(teacher.root, columns or ("any",), len(picked))
        mean = total / count
        return cls(*_moments(kind, mean, squares / count))


def _moments(kind: Standard, mean: np.ndarray, second: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and scale from E[T] and E[T^2] or E[T T^T]."""
    if kind == "channels":
        scale = np.sqrt(np.maximum(second - mean**2, 0))
        scale[scale < 1e-6] = 1.0
    else:
        covariance = second - np.outer(mean, mean)
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        values = np.maximum(values, 0)
        scale = (vectors / np.sqrt(values + max(_RIDGE * values.mean(), 1e-12))) @ vectors.T
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))
