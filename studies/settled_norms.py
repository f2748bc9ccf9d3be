"""Norms' statistics taken anew under the weights as they are: what a short training's running ones lag behind.

They follow with momentum 0.01 in half of the presets, and a weights' average holds them back further, so that after a
few hundred steps they are those of weights long gone. Cost: one forward pass a batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from models.detector import Batch


@torch.no_grad()
def settle_norms(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Gives every batch norm the mean statistics of `batches`; mode and momenta are as before afterwards."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the passes that follow
    model.train()
    for batch in batches:
        model(batch)
    model.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
