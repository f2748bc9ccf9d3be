"""What a detector costs: parameters, multiply-adds, activations by part, and how long a forward pass takes here.

One forward pass of a batch is counted as it runs (`models.cost_rules` says what counts). The work of sparse
convolutions and of the point encoders depends on the clouds of that batch, so a figure is of a detector and a cloud;
the dense part alone needs none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cache.errors import ConfigError
from models.build import build_detector
from models.centerpoint import CenterPoint
from models.cost_rules import Counter, Work
from models.detector import Batch, Detector

WARM_RUNS = 1
MOST_TIMED_S = 30.0


@dataclass(frozen=True)
class PartCost:
    """One part of a detector, a child module of it, or all of them ("all")."""

    name: str
    parameters: int
    work: Work


@dataclass(frozen=True)
class ModelCost:
    """parts: in the order of the network; frames: of the batch that was counted, which all work is of."""

    parts: tuple[PartCost, ...]
    frames: int = 1

    @property
    def total(self) -> PartCost:
        return _sum("all", self.parts)

    def to_dict(self) -> dict[str, Any]:
        """For scripts: by part, and `all`."""
        return {
            part.name: {
                "parameters": part.parameters,
                "multiply_adds": part.work.multiply_adds,
                "published_flops": part.work.published,
                "activations": part.work.activations,
            }
            for part in (*self.parts, self.total)
        }


def count_cost(model: Detector, batch: Batch) -> ModelCost:
    """The cost of one forward pass over `batch`, in evaluation mode, fp32, without gradients."""
    was_training = _set_mode(model, False)
    try:
        with torch.no_grad(), Counter(model) as counter:  # type: ignore[arg-type]  # a Detector is an nn.Module
            model(batch)
    finally:
        _set_mode(model, was_training)
    return ModelCost(_by_part(model, counter.work), len(batch))


def count_dense(config: Mapping[str, Any], without: Iterable[str] = ()) -> ModelCost:
    """Parameters of every part of a CenterPoint, and the work of what comes behind its canvas, for one frame.

    Nothing is computed: the network is built and run on the meta device, so any size is counted in a second. The
    encoder has parameters only. without: parts of module names that are left out, such as "vel". ConfigError for other
    kinds.
    """
    with torch.device("meta"):
        model: Any = build_detector(config)
        if not isinstance(model, CenterPoint):
            raise ConfigError(
                f"kind {model.config['kind']!r} has no canvas, expected a centerpoint; count a forward pass"
            )
        level = model.levels["canvas"]
        canvas = torch.empty(1, level.channels, *level.grid.shape)
        model.eval()
        with torch.no_grad(), Counter(model) as counter:
            model.head(model.backbone(canvas))
    return ModelCost(_by_part(model, counter.work, tuple(without)))


def latency_ms(model: Detector, batch: Batch, runs: int = 5, at_most_s: float = MOST_TIMED_S) -> float:
    """Median wall-clock time of a forward pass over `batch`, without decoding, on the device that both are on.

    Of `runs` passes behind one that warms up, fewer where these take longer than `at_most_s` in all, but of one at
    least: a pass of minutes needs no median, and no warming up.
    """
    device = next(iter(model.parameters())).device
    was_training = _set_mode(model, False)
    seconds: list[float] = []
    try:
        with torch.inference_mode():
            while (len(seconds) < WARM_RUNS + runs and sum(seconds) < at_most_s) or not seconds:
                start = time.perf_counter()
                model(batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(time.perf_counter() - start)
    finally:
        _set_mode(model, was_training)
    return 1e3 * statistics.median(seconds[WARM_RUNS:] or seconds)


def compression_performance(
    activations: tuple[float, float], scores: tuple[float, float], activations_power: float, score_power: float
) -> float:
    """SparseKD's cost-performance ratio of (student, teacher): the mean of what is saved and of what is kept, each to a
    power.

    A reconstruction: the paper's exact formula and powers were not at hand, so both powers are the caller's, and a
    figure is only comparable with others of the same powers.
    """
    (acts, acts_teacher), (score, score_teacher) = activations, scores
    if min(acts, acts_teacher, score_teacher) <= 0 or score < 0:
        raise ConfigError(f"activations {activations} and scores {scores} must be positive; a ratio is taken of each")
    saved = 1 - (acts / acts_teacher) ** activations_power
    return (saved + (score / score_teacher) ** score_power) / 2


def _by_part(model: Any, work: Mapping[str, Work], without: tuple[str, ...] = ()) -> tuple[PartCost, ...]:
    """By child module; "rest" is what runs outside of all, where anything does."""

    def kept(name: str) -> bool:
        return not set(name.split(".")) & set(without)

    parts = []
    for child, module in model.named_children():
        parameters = sum(p.numel() for name, p in module.named_parameters() if kept(name))
        mine = (part for name, part in work.items() if name.split(".")[0] == child and kept(name))
        parts.append(PartCost(child, parameters, sum(mine, Work())))
    own = sum(p.numel() for name, p in model.named_parameters() if "." not in name)
    outside = work.get("", Work())
    return (*parts, *([PartCost("rest", own, outside)] if own or outside != Work() else []))


def _sum(name: str, parts: Iterable[PartCost]) -> PartCost:
    parts = list(parts)
    return PartCost(name, sum(p.parameters for p in parts), sum((p.work for p in parts), Work()))


def _set_mode(model: Any, training: bool) -> bool:
    """Sets the mode; returns the one before."""
    before = bool(model.training) if isinstance(model, nn.Module) else False
    model.train(training)
    return before
