"""Figures as the devkit's `metrics_summary.json` has them, so that both files can be laid side by side.

The same keys in the same order, floats in full, NaN where the metric defines no error; only `eval_time` is another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.files import write_bytes
from evaluation.metric_config import CVPR_2019, MetricConfig
from evaluation.metrics import TP_ERRORS, Metrics

_MEANS = dict(zip(TP_ERRORS, ("mATE", "mASE", "mAOE", "mAVE", "mAAE"), strict=True))


def devkit_summary(
    metrics: Metrics, meta: Mapping[str, Any], seconds: float, config: MetricConfig = CVPR_2019
) -> dict[str, Any]:
    """The content of that file. metrics: of all classes, under `config`; meta: of the submission; seconds: what the
    evaluation took."""
    errors = {key: float(getattr(metrics, mean)) for key, mean in _MEANS.items()}
    names = list(config.class_range)
    return {
        "label_aps": {name: {str(float(t)): float(ap) for t, ap in metrics.ap[name].items()} for name in names},
        "mean_dist_aps": {name: metrics.class_ap(name) for name in names},
        "mean_ap": metrics.mAP,
        "label_tp_errors": {name: {key: float(metrics.tp_errors[name][key]) for key in TP_ERRORS} for name in names},
        "tp_errors": errors,
        "tp_scores": {key: max(0.0, 1.0 - value) for key, value in errors.items()},
        "nd_score": metrics.NDS,
        "eval_time": seconds,
        "cfg": config.to_dict(),
        "meta": dict(meta),
    }


def write_devkit_summary(path: Path, content: Mapping[str, Any]) -> None:
    """Writes it as the devkit does, NaN literals included, atomically."""
    write_bytes(path, json.dumps(content, indent=2).encode())
