"""What a run of the detection metric is fixed by: ranges, thresholds, clips. `CVPR_2019` is the official one.

The same fields as the devkit's `DetectionConfig`, with its checks in our words, and without loading the devkit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError

_FIELDS = (
    "class_range",
    "dist_fcn",
    "dist_ths",
    "dist_th_tp",
    "min_recall",
    "min_precision",
    "max_boxes_per_sample",
    "mean_ap_weight",
)


def _official_range() -> dict[str, float]:
    near = {"pedestrian": 40, "motorcycle": 40, "bicycle": 40, "traffic_cone": 30, "barrier": 30}
    return {name: near.get(name, 50) for name in DETECTION_CLASSES}


@dataclass(frozen=True)
class MetricConfig:
    """class_range: class -> metres from the ego vehicle, in the order of the means; dist_ths: matching thresholds (m);
    dist_th_tp: the one whose matches give the TP errors; min_recall, min_precision: what AP clips, 0..1;
    max_boxes_per_sample; mean_ap_weight: how often mAP counts in NDS beside the five TP scores."""

    class_range: Mapping[str, float] = field(default_factory=_official_range)
    dist_fcn: str = "center_distance"
    dist_ths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    dist_th_tp: float = 2.0
    min_recall: float = 0.1
    min_precision: float = 0.1
    max_boxes_per_sample: int = 500
    mean_ap_weight: float = 5

    def __post_init__(self) -> None:
        given = (*self.class_range.values(), *self.dist_ths, self.dist_th_tp, self.min_recall, self.min_precision)
        wrong = [one for one in (*given, self.mean_ap_weight, self.max_boxes_per_sample) if not _is_finite(one)]
        if wrong or not self.dist_ths:
            raise ConfigError(f"metric: {wrong[0]!r} is no finite number" if wrong else "metric: dist_ths is empty")
        if self.mean_ap_weight < 0 or self.max_boxes_per_sample < 0:
            raise ConfigError(
                f"metric: mean_ap_weight {self.mean_ap_weight} and max_boxes_per_sample {self.max_boxes_per_sample}, "
                "expected 0 or more"
            )
        if set(self.class_range) != set(DETECTION_CLASSES):
            raise ConfigError(
                f"metric: class_range has {', '.join(self.class_range)}; expected the ten classes "
                f"{', '.join(DETECTION_CLASSES)}"
            )
        if self.dist_fcn != "center_distance":
            raise ConfigError(f"metric: dist_fcn {self.dist_fcn!r}, the only one there is is 'center_distance'")
        if self.dist_th_tp not in self.dist_ths:
            raise ConfigError(f"metric: dist_th_tp {self.dist_th_tp} is none of dist_ths {list(self.dist_ths)}")
        if len(set(self.dist_ths)) != len(self.dist_ths) or not min(self.dist_ths) > 0:
            raise ConfigError(f"metric: dist_ths {list(self.dist_ths)}, expected different distances above 0")
        if not (0 <= self.min_precision < 1 and 0 <= self.min_recall < 1):
            raise ConfigError(
                f"metric: min_recall {self.min_recall} and min_precision {self.min_precision}, expected 0 to below 1"
            )

    def ranges(self) -> np.ndarray:
        """(10,) float64 range in metres by class id."""
        return np.array([self.class_range[name] for name in DETECTION_CLASSES], np.float64)

    def to_dict(self) -> dict[str, Any]:
        """As the devkit's config files have it."""
        return {**asdict(self), "dist_ths": list(self.dist_ths), "class_range": dict(self.class_range)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetricConfig:
        """From the content of a devkit config file. ConfigError where a field is missing, foreign or wrong."""
        if set(values) != set(_FIELDS):
            raise ConfigError(f"metric: fields {', '.join(sorted(values))}; expected {', '.join(sorted(_FIELDS))}")
        if not isinstance(values["dist_ths"], list | tuple) or not isinstance(values["class_range"], Mapping):
            raise ConfigError("metric: expected a list of dist_ths and an object of class_range")
        return cls(**{**values, "dist_ths": tuple(values["dist_ths"])})


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


CVPR_2019 = MetricConfig()
