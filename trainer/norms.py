"""Batch norms of a run: frozen ones, ones whose statistics are of the global batch, and running statistics of the rest.

`sync_norms` gives every batch norm the mean and variance over all ranks, without the frame that only keeps a rank
without part in step; it works on CPUs and cards alike (torch's own needs cards), holds the module, its class and its
parameters as they are, and costs an exchange a norm in either direction, of two fp64 numbers a channel (forward: of the
widest norm's channels).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cache.errors import ConfigError
from trainer.distributed import PeerError, Ranks


def batch_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Every batch norm of a module by name."""
    for name, each in module.named_modules():
        if isinstance(each, _BatchNorm):
            yield name, each


def freeze_stages(model: nn.Module, stages: Sequence[str]) -> list[nn.Module]:
    """Takes the named parts of a model out of training; returns them: they must be held in evaluation mode.

    Raises ConfigError for a name that the model does not have.
    """
    parts = dict(model.named_modules())
    for stage in stages:
        if not stage or stage not in parts:
            near = ", ".join(name for name, _ in model.named_children())
            inner = stage.rpartition(".")[0]
            if inner in parts and inner:
                near = ", ".join(f"{inner}.{name}" for name, _ in parts[inner].named_children())
            raise ConfigError(f"[train] frozen: the model has no part {stage!r}; there are {near}")
        parts[stage].requires_grad_(False)
    return [parts[stage] for stage in stages]


def frozen_norms(model: nn.Module, which: str) -> list[nn.Module]:
    """The batch norms that `freeze_bn` holds in evaluation mode: of the backbone, or all of the model."""
    prefix = "backbone." if which == "backbone" else ""
    found: list[nn.Module] = [norm for name, norm in batch_norms(model) if name.startswith(prefix)]
    if not found:
        raise ConfigError(f"[train] freeze_bn = {which!r}: the model has no batch norm there; set it to none")
    return found


def average_statistics(module: nn.Module, ranks: Ranks, share: float) -> None:
    """Running statistics that differ by rank become their mean, each weighted by the rank's `share` of the frames, so
    that every rank holds the same and none of a frame of weight 0. One exchange of all of them."""
    buffers = [
        buffer
        for _, norm in batch_norms(module)
        if norm.training and not is_synced(norm)
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    if ranks.alone or not buffers:
        return
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    whole = ranks.sum_(flat * share if share else torch.zeros_like(flat))
    for buffer, mean in zip(buffers, whole.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


@dataclass
class NormSync:
    """What the synchronised norms of a run share. weight: of this rank's frames in the pass at hand, 1 or 0."""

    ranks: Ranks
    weight: float = 1.0
    norms: list[str] = field(default_factory=list)
    widest: int = 0  # channels of the widest one


def sync_norms(module: nn.Module, ranks: Ranks) -> NormSync:
    """Makes every batch norm of `module` one over all ranks, whatever its kind; those in evaluation mode stay as they
    are. Every rank must then call every norm in the same order."""
    # here: it loads the compiler, two seconds and more
    forward = torch.compiler.disable(_synced_forward)
    sync = NormSync(ranks)
    for name, norm in batch_norms(module):
        # on the instance: its class may have a forward of its own, and what reads its class must still find it
        norm.forward = functools.partial(forward, norm, norm.forward, sync, len(sync.norms))  # type: ignore[method-assign]
        sync.norms.append(name)
        sync.widest = max(sync.widest, norm.num_features)
    return sync


def is_synced(norm: nn.Module) -> bool:
    """Whether a norm's statistics are of all ranks."""
    return "forward" in vars(norm)


def _synced_forward(norm: _BatchNorm, plain: Any, sync: NormSync, number: int, x: Tensor) -> Tensor:
    if not norm.training:
        return plain(x)  # type: ignore[no-any-return]
    count, mean, variance = _statistics_over_ranks(sync, number, x)
    if count < 2:  # too few for statistics, on every rank
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), momentum)
    y: Tensor = _OverRanks.apply(x, norm.weight, norm.bias, mean, variance, count, norm.eps, sync, sync.weight)  # type: ignore[no-untyped-call]
    return y


@torch.no_grad()
def _statistics_over_ranks(sync: NormSync, number: int, x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Rows of all ranks, and their mean and variance (C,) fp32; the parallel form of Chan et al. 1979, in fp64."""
    rows = x.numel() // x.shape[1] if sync.weight else 0
    # as long at every norm: ranks at different ones must still meet, to notice it
    own = torch.zeros(2 + 2 * sync.widest, dtype=torch.float64, device=x.device)
    own[0], own[1] = number, rows
    if rows:
        dims = _but_channels(x)
        mean = x.sum(dims, dtype=torch.float64) / rows
        centred = x.float() - _broad(mean.float(), x)
        variance = (centred * centred).sum(dims, dtype=torch.float64) / rows - (mean - mean.float()) ** 2
        own[2 : 2 + 2 * x.shape[1]] = torch.cat([mean, variance])
    every = sync.ranks.stack(own, sync.ranks.norms) if not sync.ranks.alone else own[None]
    numbers = {int(value) for value in every[:, 0].tolist()}
    if len(numbers) > 1:
        names = " and ".join(sync.norms[place] for place in sorted(numbers))
        raise PeerError(f"sync_bn: ranks are at different norms, {names}: a frame takes another way; set it to false")
    counts = every[:, 1:2]
    total = counts.sum()
    means, variances = every[:, 2 : 2 + 2 * x.shape[1]].chunk(2, dim=1)
    mean = (counts * means).sum(dim=0) / total.clamp(min=1)
    variance = (counts * (variances + (means - mean) ** 2)).sum(dim=0) / total.clamp(min=1)
    return int(total), mean.float(), variance.float()


class _OverRanks(torch.autograd.Function):
    """Normalisation by given statistics, with the gradient that flows through them on all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: int,
        eps: float,
        sync: NormSync,
        share: float,
    ) -> Tensor:
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.count, ctx.sync, ctx.share, ctx.biased = count, sync, share, bias is not None
        y = (x.float() - _broad(mean, x)) * _broad(inverse, x)
        if weight is not None:
            y = y * _broad(weight, x)
        if bias is not None:
            y = y + _broad(bias, x)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, inverse = ctx.saved_tensors
        dy, dims = gradient.float(), _but_channels(x)
        normal = (x.float() - _broad(mean, x)) * _broad(inverse, x)
        own = torch.stack([dy.sum(dims, dtype=torch.float64), (dy * normal).sum(dims, dtype=torch.float64)])
        sums = ctx.sync.ranks.stack(own, ctx.sync.ranks.norms).sum(dim=0) if not ctx.sync.ranks.alone else own
        first, second = (sums / ctx.count).float()
        through = _broad(first, x) + normal * _broad(second, x)
        dx = (dy - ctx.share * through) * _broad(inverse if weight is None else inverse * weight, x)
        of_bias, of_weight = own.float()
        affine = (of_weight if weight is not None else None, of_bias if ctx.biased else None)
        return dx.to(x.dtype), *affine, None, None, None, None, None, None


def _but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _broad(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *([1] * (x.ndim - 2)))
