"""What terms read of a student, its maps, class heat, task groups and queries: refused before training where the model
shows that it does not give them, else at its first answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from cache.grid import BevGrid
from models.center_head import CenterHead
from models.detector import Detector, DetectorOutput, QueryOutput
from models.query_head import QueryHead
from trainer.terms.precision import at_least_fp32


@dataclass(frozen=True)
class MapFacts:
    """One BEV map: its channels and grid."""

    channels: int
    grid: BevGrid


@dataclass(frozen=True)
class HeadClasses:
    """names: of the classes of each of the student's task groups, in the order of `DetectorOutput.heads`."""

    names: tuple[tuple[str, ...], ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """Id of `DETECTION_CLASSES` of each heat channel, task groups one after another."""
        return tuple(DETECTION_CLASSES.index(name) for group in self.names for name in group)

    @property
    def groups(self) -> tuple[int, ...]:
        """Of each heat channel, which of the output's heads it is in."""
        return tuple(head for head, group in enumerate(self.names) for _ in group)

    def group_of_class(self) -> Tensor:
        """(10,) int64: the head of each class id, -1 where no head has it."""
        out = torch.full((len(DETECTION_CLASSES),), -1)
        out[list(self.classes)] = torch.tensor(self.groups)
        return out


def student_map(name: str, model: Detector, level: str) -> MapFacts:
    """The student's main map ("") or one of its levels. ConfigError naming those there are."""
    if not level:
        return MapFacts(model.bev_channels, model.grid)
    if level not in model.levels:
        raise ConfigError(
            f"term {name}: the student gives no level {level!r}, it gives {', '.join(model.levels) or 'none'}; set "
            "student_level to one of them, or leave it out for the main map"
        )
    return MapFacts(model.levels[level].channels, model.levels[level].grid)


def map_of(output: DetectorOutput, level: str = "") -> Tensor:
    """(B, C, H, W) at least fp32: the student's main map ("") or one of its levels."""
    return at_least_fp32(output.levels[level] if level else output.bev)


def head_classes(name: str, model: Detector) -> HeadClasses:
    """The classes of each of the student's heads: `head.tasks` of its config, else one head. ConfigError for a student
    without heatmaps."""
    require_heat(name, model)
    tasks = (model.config.get("head") or {}).get("tasks") or [model.heat_classes]
    found = HeadClasses(tuple(tuple(task) for task in tasks))
    if sum(map(len, found.names)) != len(model.heat_classes):
        sizes = [len(group) for group in found.names]
        raise ConfigError(f"term {name}: heads of {sizes} classes, the student says it has {len(model.heat_classes)}")
    return found


def require_queries(name: str, model: Detector) -> None:
    """ConfigError for the term `name` where the student is known to be one of heatmaps."""
    if _has_center_head(model):
        raise ConfigError(
            f"term {name}: reads the student's queries, but {_kind(model)} answers with heatmaps; use "
            "bevdistill_instance in its place, or a student of queries"
        )


def require_heat(name: str, model: Detector) -> None:
    """ConfigError for the term `name` where the student says no classes on a map."""
    if not model.heat_classes:
        raise ConfigError(
            f"term {name}: reads the student's class heat, but {_kind(model)} has no heatmap; drop that part of the "
            "term, or give the student a heatmap head"
        )


def require_box_maps(name: str, model: Detector) -> None:
    """ConfigError for the term `name` where no head of the student is known to regress boxes on maps."""
    if not _has_center_head(model):
        raise ConfigError(
            f"term {name}: reads the student's regressed maps, but {_kind(model)} has no centre head; drop the term, "
            "or leave its boxes out where it has an option for that (box_weight, branches, regression); for a student "
            "of queries use bevdistill_sparse"
        )


def queries_of(name: str, output: DetectorOutput) -> QueryOutput:
    """The student's queries; ConfigError where it gives none."""
    if output.queries is None:
        raise ConfigError(
            f"term {name}: reads the student's queries, its answer has none; drop the term, or train a student of "
            "queries"
        )
    if (classes := output.queries.logits.shape[-1]) != len(DETECTION_CLASSES):
        raise ConfigError(
            f"term {name}: the student's queries say {classes} classes each, expected {len(DETECTION_CLASSES)}, by id "
            "of cache.classes.DETECTION_CLASSES; give those that it does not know a low logit"
        )
    return output.queries


def require_embeddings(name: str, model: Detector, channels: int) -> None:
    """ConfigError for the term `name` where the student's queries are known to have another width."""
    for module in model.modules():
        if isinstance(module, QueryHead):
            _require_width(name, module.channels, channels)


def embeddings_of(name: str, output: DetectorOutput, channels: int) -> Tensor:
    """(B, Q, C) of the student's last layer; ConfigError where there are not so many `channels`."""
    found = queries_of(name, output).embeddings
    _require_width(name, found.shape[-1], channels)
    return found


def _require_width(name: str, found: int, channels: int) -> None:
    if found != channels:
        raise ConfigError(
            f"term {name}: embedding_channels is {channels}, the student's queries have {found}; set "
            f"embedding_channels = {found}"
        )


def heat_logits_of(name: str, output: DetectorOutput) -> Tensor:
    """(B, classes, H, W) at least fp32: the student's heatmaps before the sigmoid, task groups one after another;
    ConfigError where it gives none."""
    if not output.heads:
        raise ConfigError(
            f"term {name}: reads the student's class heat, its answer has none; drop that part of the term, or give "
            "the student a heatmap head"
        )
    return torch.cat([at_least_fp32(maps["heatmap"]) for maps in output.heads], dim=1)


def _has_center_head(model: Detector) -> bool:
    """By its config, or by what it is made of."""
    tasks = (model.config.get("head") or {}).get("tasks")
    return bool(tasks) or any(isinstance(module, CenterHead) for module in model.modules())


def _kind(model: Detector) -> str:
    return str(model.config.get("kind", type(model).__name__))
