"""A student's class maps and regressed maps by class, however its head groups them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from models.detector import Detector, DetectorOutput


@dataclass(frozen=True)
class HeadClasses:
    """classes: id of `DETECTION_CLASSES` of each heat channel, task groups one after another; groups: of each channel,
    which of the output's heads it is in."""

    classes: tuple[int, ...]
    groups: tuple[int, ...]

    @property
    def count(self) -> int:
        """Heads."""
        return max(self.groups) + 1

    def group_of_class(self) -> Tensor:
        """(10,) int64: the head of each class id, -1 where no head has it."""
        out = torch.full((len(DETECTION_CLASSES),), -1)
        out[list(self.classes)] = torch.tensor(self.groups)
        return out


def head_classes(name: str, model: Detector, sizes: Sequence[int] | None = None) -> HeadClasses:
    """Of a student; sizes: heat channels of each head (None: as its config's `head.tasks` says, else one head).

    ConfigError, naming the term, where the student has no heatmaps.
    """
    names = tuple(model.heat_classes)
    if not names:
        raise ConfigError(
            f"term {name}: the student has no heatmaps, which the term compares with the teacher's; drop the term, or "
            "train a student with a centre head"
        )
    if sizes is None:
        tasks = (model.config.get("head") or {}).get("tasks") or [names]
        sizes = [len(task) for task in tasks]
    groups = tuple(group for group, size in enumerate(sizes) for _ in range(size))
    if len(groups) != len(names):
        raise ConfigError(f"term {name}: heads of {list(sizes)} classes, the student says it has {len(names)}")
    return HeadClasses(tuple(DETECTION_CLASSES.index(each) for each in names), groups)


def at_least_fp32(values: Tensor) -> Tensor:
    """bf16 and fp16 as fp32; fp32 and fp64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


def heat_probabilities(output: DetectorOutput) -> Tensor:
    """(B, classes, H, W), the sigmoid of the raw heatmaps, once; task groups one after another."""
    return torch.cat([at_least_fp32(maps["heatmap"]) for maps in output.heads], dim=1).sigmoid()
