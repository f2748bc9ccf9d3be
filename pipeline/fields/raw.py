"""What a detector's output holds for further fields, taken off the device: whole maps in float32, batch first.

Nothing is chosen or rounded here; `pipeline.fields.stored` does that, frame by frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.field_list import FieldList
from cache.further import Branch
from models.center_head import BRANCHES
from models.detector import Detector, DetectorOutput


def heat_classes_of(model: Detector) -> tuple[str, ...]:
    """The class of each channel of the heatmaps, empty where the detector does not say."""
    return tuple(getattr(model, "heat_classes", ()))


def regressed(heads: Sequence[dict[str, Tensor]]) -> list[Branch]:
    """The regressed branches of all groups: group by group, those of `BRANCHES` in its order, then others by name."""
    order = [*BRANCHES]

    def place(name: str) -> tuple[int, str]:
        return (order.index(name) if name in order else len(order)), name

    return [
        Branch(group, name, int(head[name].shape[1]))
        for group, head in enumerate(heads)
        for name in sorted(head, key=place)
        if name != "heatmap"
    ]


def level_names(asked: FieldList) -> list[str]:
    """The maps of `DetectorOutput.levels` that a list reads."""
    named = {item["name"] for item in asked.of("level")} | {item["level"] for item in asked.of("samples")}
    return sorted(named - {""})


def raw_of(output: DetectorOutput, model: Detector, asked: FieldList, frames: int) -> dict[str, np.ndarray]:
    """By name, each (B, ...) float32: logits (classes by id, H, W); regression (R, H, W); level_<name> (C, h, w);
    query_logits (Q, classes) and query_boxes (Q, 10) of the last layer; depth (cameras, D, h, w), probabilities.

    frames: B. What is asked for must be there, see `pipeline.fields.offer`.
    """
    out: dict[str, Tensor] = {}
    if "logits" in asked:
        logits = torch.cat([maps["heatmap"].float() for maps in output.heads], dim=1)
        out["logits"] = logits[:, [heat_classes_of(model).index(name) for name in DETECTION_CLASSES]]
    if "regression" in asked:
        branches = regressed(output.heads)
        out["regression"] = torch.cat([output.heads[branch.group][branch.name].float() for branch in branches], dim=1)
    for name in level_names(asked):
        out[f"level_{name}"] = output.levels[name].float()
    if "queries" in asked:
        assert output.queries is not None
        out["query_logits"], out["query_boxes"] = output.queries.logits[-1].float(), output.queries.boxes[-1].float()
    if "depth" in asked:
        assert output.depth_logits is not None
        out["depth"] = output.depth_logits.float().softmax(dim=1).unflatten(0, (frames, -1))
    return {name: values.detach().cpu().numpy() for name, values in out.items()}
