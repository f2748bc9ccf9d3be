"""Whether a student gives what a term reads of it: told before training where the model shows it, else at its first
answer."""

from __future__ import annotations

from cache.errors import ConfigError
from models.center_head import CenterHead
from models.detector import Detector, DetectorOutput, QueryOutput


def require_queries(name: str, model: Detector) -> None:
    """ConfigError for the term `name` where the student is known to be one of heatmaps."""
    if _has_center_head(model):
        raise ConfigError(
            f"term {name}: reads the student's queries, but {_kind(model)} answers with heatmaps; use "
            "bevdistill_instance in its place, or a student of queries"
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


def _has_center_head(model: Detector) -> bool:
    return any(isinstance(module, CenterHead) for module in model.modules())


def _kind(model: Detector) -> str:
    return str(model.config.get("kind", type(model).__name__))
