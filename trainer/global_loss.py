"""The loss of a global batch from the parts that ranks and micro-batches hold of it, and whose gradient is whose.

A part of the loss is weight * sum_g N_g / max(D_g, 1), numerators N and normalisers D summed over the whole batch. Once
the sums are known, each piece's share of the gradient is that of weight * sum_g n_g / D_g, and, where a normaliser
depends on the student too, - weight * sum_g d_g * N_g / D_g^2: added up over pieces and ranks, they are the gradient of
a single process that holds the whole batch. Fp64 sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.detector import LossPart

Parts = Mapping[str, LossPart]
Counts = Mapping[str, int]


def layout_of(parts: Parts, counts: Counts) -> bytes:
    """8 bytes that are equal where names and groups are: what ranks must agree on before they add up."""
    names = [(name, part.numerator.numel()) for name, part in parts.items()]
    return hashlib.blake2b(repr((names, list(counts))).encode(), digest_size=8).digest()


def packed(parts: Parts, counts: Counts, weight: float) -> Tensor:
    """(n,) float64 without gradient: numerators, normalisers and counts, each times `weight`, to be added up. A piece
    of weight 0 adds exactly nothing."""
    sides = [(part.numerator, part.normaliser) for part in parts.values()]
    flat = [side.detach().reshape(-1).double() for pair in sides for side in pair]
    device = flat[0].device if flat else torch.device("cpu")
    flat.append(torch.tensor(list(counts.values()), dtype=torch.float64, device=device))
    whole = torch.cat(flat)
    return whole * weight if weight else torch.zeros_like(whole)


@dataclass(frozen=True)
class GlobalParts:
    """Sums over a global batch: by part its (G,) numerators and normalisers, fp32; counts of labels."""

    numerators: Mapping[str, Tensor]
    normalisers: Mapping[str, Tensor]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, whole: Tensor, parts: Parts, counts: Counts) -> GlobalParts:
        """From `packed` sums; parts and counts: any piece's, for names and shapes."""
        numerators, normalisers = dict[str, Tensor](), dict[str, Tensor]()
        at = 0
        for name, part in parts.items():
            for sums in (numerators, normalisers):
                sums[name] = whole[at : at + part.numerator.numel()].float().view_as(part.numerator)
                at += part.numerator.numel()
        told = [int(value) for value in whole[at:].tolist()]
        return cls(numerators, normalisers, dict(zip(counts, told, strict=True)))

    def values(self, parts: Parts) -> dict[str, Tensor]:
        """Weighted scalars by name, those of the global batch; parts: any piece's, for the weights."""
        return {
            name: LossPart(self.numerators[name], self.normalisers[name], part.weight).value()
            for name, part in parts.items()
        }

    def share(self, parts: Parts, weight: float) -> Tensor:
        """A scalar whose gradient is the piece's share of the global loss's; `weight` as in `packed`."""
        terms = []
        for name, part in parts.items():
            whole, divisor = self.normalisers[name], self.normalisers[name].clamp(min=1.0)
            terms.append(part.weight * weight * (part.numerator / divisor).sum())
            if part.normaliser.requires_grad:
                slope = torch.where(whole >= 1.0, self.numerators[name] / divisor**2, 0.0)
                terms.append(-part.weight * weight * (slope * part.normaliser).sum())
        return torch.stack(terms).sum()
