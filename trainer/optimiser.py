"""Optimisation: AdamW with parameter groups, the learning rate as a pure function of the step, and the weights'
average.

The learning rate needs no state, so a resumed run has none to restore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.recipe import TrainConfig

ONE_CYCLE_PEAK = 0.4  # share of the run at which the one-cycle rate peaks, as CenterPoint trains
ONE_CYCLE_START = 0.1  # of the peak


def lr_at(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of step 0 <= step < total. Pure."""
    if config.schedule == "one_cycle":
        peak = ONE_CYCLE_PEAK * total
        if step < peak:
            return config.lr * _cosine(ONE_CYCLE_START, 1.0, step / peak)
        return config.lr * _cosine(1.0, config.min_lr_factor, (step - peak) / max(total - peak, 1))
    warmup = min(config.warmup_steps, total // 2)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return config.lr * _cosine(1.0, config.min_lr_factor, (step - warmup) / max(total - warmup, 1))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def parameter_groups(named: Mapping[str, nn.Parameter], config: TrainConfig) -> list[dict[str, object]]:
    """AdamW groups with their names: norms and biases (rank < 2) without decay, `model.backbone.*` at its own rate;
    frozen parameters are in none."""
    groups: dict[tuple[bool, bool], dict[str, Tensor]] = {}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        key = (parameter.ndim >= 2, name.startswith("model.backbone."))
        groups.setdefault(key, {})[name] = parameter
    return [
        {
            "params": list(members.values()),
            "names": list(members),
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_factor": config.backbone_lr_factor if backbone else 1.0,
        }
        for (decays, backbone), members in sorted(groups.items(), reverse=True)
    ]


def make_optimiser(named: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the groups; fused, which on CPU takes under half the time of the plain loop."""
    return torch.optim.AdamW(parameter_groups(named, config), lr=config.lr, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group `lr` times its own factor."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]


class Average:
    """Exponential moving average of a model's parameters and float buffers; whole-number buffers are copied.

    decay rises as (1 + t) / (10 + t) up to its value, so that the first steps do not hold on to the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After optimiser step number `step` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, weight)
            else:
                self.tensors[name].copy_(tensor)
