"""Whether a student gives what a term reads of it: told before training where the model shows it, else at its first
answer."""

from __future__ import annotations

import torch
from torch import Tensor

from cache.errors import ConfigError
from models.center_head import CenterHead
from models.detector import Detector, DetectorOutput, QueryOutput
from trainer.terms.precision import at_least_fp32


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
            f"term {name}: reads the student's regressed maps, but {_kind(model)} has no centre head; use "
            "bevdistill_sparse in its place, or set the term's box_weight = 0"
        )


def queries_of(name: str, output: DetectorOutput) -> QueryOutput:
    """The student's queries; ConfigError where it gives none."""
    if output.queries is None:
        raise ConfigError(
            f"term {name}: reads the student's queries, its answer has none; drop the term, or train a student of "
            "queries"
        )
    return output.queries


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
    return any(isinstance(module, CenterHead) for module in model.modules())


def _kind(model: Detector) -> str:
    return str(model.config.get("kind", type(model).__name__))
