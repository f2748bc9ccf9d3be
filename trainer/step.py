"""One optimiser step: the loss of a global batch, its gradient, clipping, the update, and what the log says of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cache.errors import BevcaskError
from models.detector import Batch, total_of
from trainer.checkpoint import Training
from trainer.plan import Plan
from trainer.said import TeachersSaid


class DivergedError(BevcaskError):
    """A loss or gradient is no longer finite."""


def train_step(training: Training, batch: Batch, said: TeachersSaid | None, plan: Plan, step: int) -> dict[str, float]:
    """One optimiser step. Returns the total loss, every weighted part, the gradient's norm before clipping, and what
    changes of labels counted.

    Raises DivergedError, before the weights are touched, where loss or gradient is not finite.
    """
    config = plan.recipe.train
    # randomness inside the model is a function of the step too, so that no generator state needs to be kept
    torch.manual_seed((config.seed * 1_000_003 + step) % 2**63)
    parts, counts = training.objective(batch, said, step)
    values = total_of(parts)
    loss = torch.stack(list(values.values())).sum()
    training.optimiser.zero_grad(set_to_none=True)
    if bool(torch.isfinite(loss)):
        loss.backward()  # type: ignore[no-untyped-call]
    scalars = {"loss": float(loss.detach()), **{name: float(value.detach()) for name, value in values.items()}}
    norm = _clip(training, config.clip) if bool(torch.isfinite(loss)) else loss
    if not bool(torch.isfinite(norm)):
        bad = {name: value for name, value in scalars.items() if value - value != 0} or "the gradient"
        raise DivergedError(
            f"step {step + 1}: not finite: {bad}; frames {', '.join(batch.tokens)}; lower [train] lr, or precision = "
            '"fp32"'
        )
    training.optimiser.step()
    if training.average is not None:
        training.average.update(training.model, step)
    return {**scalars, "gradient_norm": float(norm), **counts}


def _clip(training: Training, limit: float) -> Tensor:
    """Gradient norm over all parameters, clipped to `limit` where that is above 0."""
    parameters = [p for group in training.optimiser.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))
