"""What one evaluation says: the seven figures of the table, AP and TP errors by class, and what the filters left.

Plain records without the devkit behind them, so that tables and reports load fast; both evaluators fill them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SUMMARY_KEYS = ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
TP_ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
# Errors that the metric does not define: a cone has no heading, and neither it nor a barrier moves or has attributes.
UNDEFINED_ERRORS = {"traffic_cone": ("attr_err", "vel_err", "orient_err"), "barrier": ("attr_err", "vel_err")}


@dataclass(frozen=True)
class FilterCounts:
    """Boxes before and after each filter of the metric, in its order: range, points inside, bicycle racks."""

    given: int
    in_range: int
    with_points: int
    outside_racks: int


@dataclass(frozen=True)
class Metrics:
    """One evaluation. ap: class -> distance threshold (m) -> average precision; tp_errors: class -> trans_err (m),
    scale_err (1 - IoU), orient_err (rad), vel_err (m/s), attr_err (1 - accuracy), NaN where the metric defines none."""

    mAP: float
    NDS: float
    mATE: float
    mASE: float
    mAOE: float
    mAVE: float
    mAAE: float
    ap: Mapping[str, Mapping[float, float]]
    tp_errors: Mapping[str, Mapping[str, float]]
    truth_counts: FilterCounts
    detection_counts: FilterCounts

    def summary(self) -> dict[str, float]:
        """The seven figures of the table: mAP, NDS, and the TP errors, the last clipped to 1 as the metric's scores
        count them, so that every value lies in 0..1. Without the errors that none of a subset's classes has."""
        # a perfect class has AP 1.0000000000000004 in the devkit's arithmetic
        figures = {key: float(getattr(self, key)) for key in SUMMARY_KEYS}
        return {key: min(1.0, max(0.0, value)) for key, value in figures.items() if not math.isnan(value)}

    def class_ap(self, name: str) -> float:
        """AP of a class, mean over the four distance thresholds."""
        return float(np.mean(list(self.ap[name].values())))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; NaN becomes null."""
        return {
            **{key: _or_null(getattr(self, key)) for key in SUMMARY_KEYS},
            "ap": {name: {str(threshold): value for threshold, value in row.items()} for name, row in self.ap.items()},
            "tp_errors": {
                name: {key: _or_null(value) for key, value in row.items()} for name, row in self.tp_errors.items()
            },
            "truth_counts": vars(self.truth_counts).copy(),
            "detection_counts": vars(self.detection_counts).copy(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metrics:
        """Inverse of `to_dict`."""
        return cls(
            **{key: _or_nan(values[key]) for key in SUMMARY_KEYS},
            ap={name: {float(t): float(v) for t, v in row.items()} for name, row in values["ap"].items()},
            tp_errors={
                name: {key: _or_nan(value) for key, value in row.items()} for name, row in values["tp_errors"].items()
            },
            truth_counts=FilterCounts(**values["truth_counts"]),
            detection_counts=FilterCounts(**values["detection_counts"]),
        )


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
