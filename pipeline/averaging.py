"""A better teacher for free: one answer from several views of a cloud, and from several checkpoints.

A view is the cloud mirrored or turned by a quarter. What the model says of it is brought back, maps by mirroring and
transposing (exact: no cell is resampled), regressed values by the same geometry, and then averaged: features, peak
probabilities and regressed values each for themselves, headings as vectors. Costs one forward pass a view and model.
Double-flip averaging is CenterPoint's (Yin et al., CVPR 2021); here the features that students learn from are averaged
as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cache.errors import ConfigError
from cache.frame import Detections
from cache.grid import BevGrid
from models.center_head import BRANCHES
from models.detector import Batch, BevLevel, Detector, DetectorOutput


@dataclass(frozen=True)
class View:
    """x and y exchanged, then x mirrored, then y mirrored; of a square these are all mirrorings and quarter turns."""

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def of_points(self, points: Tensor) -> Tensor:
        """(P, 5) points as this view has them."""
        out = points.clone()
        if self.swap:
            out[:, [0, 1]] = out[:, [1, 0]]
        if self.flip_x:
            out[:, 0] = -out[:, 0]
        if self.flip_y:
            out[:, 1] = -out[:, 1]
        return out

    def undone(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H = y, W = x) of this view, cell for cell where they were."""
        if self.flip_y:
            maps = maps.flip(2)
        if self.flip_x:
            maps = maps.flip(3)
        return maps.transpose(2, 3) if self.swap else maps

    def undone_branch(self, name: str, maps: Tensor) -> Tensor:
        """A head's branch: its maps where they were, and their values in the canonical frame. center: fractions of a
        cell; rot: sin and cos of the heading; vel: x, y. ConfigError for a branch that is none of BRANCHES."""
        if self == View():
            return maps
        if name != "heatmap" and {**BRANCHES, "iou": 1}.get(name) != maps.shape[1]:
            known = ", ".join(f"{branch} ({count})" for branch, count in BRANCHES.items())
            raise ConfigError(
                f"--tta: what a view does to the head's branch {name} of {maps.shape[1]} channels is unknown, expected "
                f"heatmap, iou (1), {known}; leave --tta out"
            )
        maps = self.undone(maps)
        if name not in ("center", "rot", "vel"):
            return maps
        first, second = maps[:, 0], maps[:, 1]
        if name == "center":
            first, second = (1 - first if self.flip_x else first), (1 - second if self.flip_y else second)
        elif name == "rot":  # mirrored in x: yaw -> pi - yaw; in y: -yaw; exchanged: pi / 2 - yaw
            first, second = (-first if self.flip_y else first), (-second if self.flip_x else second)
        else:
            first, second = (-first if self.flip_x else first), (-second if self.flip_y else second)
        return torch.stack([second, first] if self.swap else [first, second], dim=1)


VIEWS = {
    "": (View(),),
    "flips": tuple(View(False, x, y) for x in (False, True) for y in (False, True)),
    "turns": tuple(View(swap, x, y) for swap in (False, True) for x in (False, True) for y in (False, True)),
}


_LAST_LOGIT = 104.0  # of the smallest positive float32 it is -103.3; the sigmoid of -104 is 0, and of 104 is 1


class Averaged(nn.Module):
    """A detector that says the mean of what `models` say of every view of VIEWS[tta]. For inference only.

    Raises ConfigError where the grid is not symmetric under the views, or models differ in grid, feature or head; and
    for models of cameras or of queries: there is no view of an image that turns the ground, and no mean of two lists.
    """

    modality: Literal["lidar", "camera"] = "lidar"

    def __init__(self, models: Sequence[Detector], tta: str = "") -> None:
        super().__init__()
        first = models[0]
        self.models = nn.ModuleList(models)  # type: ignore[arg-type]
        self.views = VIEWS[tta]
        self.grid, self.bev_channels, self.config = first.grid, first.bev_channels, getattr(first, "config", {})
        self.levels: Mapping[str, BevLevel] = getattr(first, "levels", {})
        self.heat_classes = tuple(getattr(first, "heat_classes", ()))
        if any(model.modality != "lidar" for model in models):
            raise ConfigError("--tta and --ensemble average LiDAR teachers, this one reads cameras; leave both out")
        for model in models[1:]:
            if (model.grid, model.bev_channels) != (first.grid, first.bev_channels):
                raise ConfigError(
                    f"an ensemble of {first.bev_channels} channels on {first.grid} and {model.bev_channels} on "
                    f"{model.grid}: expected checkpoints of one architecture"
                )
        _require_symmetric(first.grid, tta)

    def forward(self, batch: Batch) -> DetectorOutput:
        """The mean answer; heatmaps are logits again."""
        assert batch.points is not None
        total: DetectorOutput | None = None
        for view in self.views:
            seen = replace(batch, points=[view.of_points(points) for points in batch.points])
            for model in self.models:
                said = _summable(model(seen), view)
                total = said if total is None else _plus(total, said)
        assert total is not None
        count = len(self.views) * len(self.models)
        heads = [
            {name: _logit(maps / count) if name == "heatmap" else maps / count for name, maps in head.items()}
            for head in total.heads
        ]
        levels = {name: maps / count for name, maps in total.levels.items()}
        return DetectorOutput(total.bev / count, heads, levels=levels)

    @property
    def adaptor(self) -> nn.Sequential | None:
        """Of the one checkpoint; several have no common one."""
        return getattr(self.models[0], "adaptor", None) if len(self.models) == 1 else None

    def decode(self, output: DetectorOutput) -> list[Detections]:
        """As the first model decodes."""
        return self.models[0].decode(output)  # type: ignore[operator, no-any-return]


def _logit(probabilities: Tensor) -> Tensor:
    """Logits of float32 probabilities; those of 0 and 1, which are infinite, end where float32's others do."""
    return torch.logit(probabilities).clamp(-_LAST_LOGIT, _LAST_LOGIT)


def _summable(output: DetectorOutput, view: View) -> DetectorOutput:
    """The answer in the canonical frame, in fp32, heatmaps as probabilities."""
    if output.queries is not None:
        raise ConfigError("--tta and --ensemble average maps, this teacher answers with queries; leave both out")
    heads = []
    for head in output.heads:
        undone: dict[str, Tensor] = {}
        for name, maps in head.items():
            maps = maps.float()
            undone[name] = view.undone_branch(name, maps.sigmoid() if name == "heatmap" else maps)
        heads.append(undone)
    levels = {name: view.undone(maps.float()) for name, maps in output.levels.items()}
    return DetectorOutput(view.undone(output.bev.float()), heads, levels=levels)


def _plus(one: DetectorOutput, other: DetectorOutput) -> DetectorOutput:
    shapes: list[Any] = [[{name: maps.shape for name, maps in head.items()} for head in o.heads] for o in (one, other)]
    if shapes[0] != shapes[1]:
        raise ConfigError("an ensemble of models whose heads differ: expected checkpoints of one architecture")
    heads = [{name: maps + b[name] for name, maps in a.items()} for a, b in zip(one.heads, other.heads, strict=True)]
    levels = {name: maps + other.levels[name] for name, maps in one.levels.items() if name in other.levels}
    return DetectorOutput(one.bev + other.bev, heads, levels=levels)


def _require_symmetric(grid: BevGrid, tta: str) -> None:
    mirrored = grid.x_min == -grid.x_max and grid.y_min == -grid.y_max
    if (tta and not mirrored) or (tta == "turns" and grid.height != grid.width):
        wanted = "a square grid around the sensor" if tta == "turns" else "a grid that is symmetric around the sensor"
        raise ConfigError(f"--tta {tta} needs {wanted}, this teacher's is {grid}; leave --tta out")
