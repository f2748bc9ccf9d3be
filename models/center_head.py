"""CenterPoint's head: boxes as peaks of class heatmaps on the BEV grid, the rest of each box regressed at its peak.

One file for the module, its targets, its loss and its decoding, because they share one layout of the maps. Targets are
drawn for the whole batch at once on the CPU (1 ms for 8 frames of 30 boxes); losses are computed in fp32.
Source: Yin et al. 2021, with the constants of the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.frame import Detections
from cache.grid import BevGrid
from models.batch_checks import require_annotations
from models.config import Config, NotNegative
from models.detector import LossPart
from models.gaussian import centre_cells, draw_gaussians, has_size
from models.suppress import circle_suppress, rotated_suppress
from models.width import narrowed

SIX_TASKS: tuple[tuple[str, ...], ...] = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)

# Map -> channels. center: fraction of the cell (x, y); height: z of the gravity centre, m; dim: log of l, w, h (m);
# rot: sin, cos of the yaw; vel: m/s. The target vector (10) is these in this order.
BRANCHES: dict[str, int] = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
HEAD_WIDTHS = ("shared_channels", "branch_channels")
LOG_SIZE_LIMIT = 5.0  # an untrained head must not decode to infinite boxes


class CenterHeadConfig(Config):
    """tasks: groups of class names, each with its own branches. Weights as CenterPoint's.

    headless: classes without front and back, whose heading is learned up to half a turn. peaks: which cells may be
    objects: those that no cell of their 3 x 3 neighbourhood exceeds (hard); all (all); all, with scores times
    (score / best of the neighbourhood)^2 (soft), which spares objects in adjacent cells: on 1.6 m cells half of the
    barriers and cones are. circle_nms_m: per class, the centre distance below which the weaker box goes (metres, not
    squared as in mmdetection3d); absent = none. rotated_nms_iou: per class, the overlap seen from above beyond which
    the weaker box goes, in place of circle_nms_m for that class. bias_before_norm: convolutions have a bias that the
    norm after them makes needless, as OpenPCDet's do.
    """

    tasks: tuple[tuple[str, ...], ...] = SIX_TASKS
    shared_channels: int = Field(default=64, ge=1)
    branch_channels: int = Field(default=64, ge=1)
    bias_before_norm: bool = False
    min_overlap: float = Field(default=0.1, gt=0, lt=1)
    min_radius: int = Field(default=2, ge=0)
    box_weight: float = Field(default=0.25, ge=0)
    velocity_weight: float = Field(default=0.2, ge=0)
    velocity_smooth: float = Field(default=0.0, ge=0)
    headless: tuple[str, ...] = ()
    peaks: Literal["hard", "soft", "all"] = "hard"
    max_boxes: int = Field(default=300, ge=1)
    score_threshold: float = Field(default=0.03, ge=0, le=1)
    circle_nms_m: dict[str, NotNegative] = Field(default_factory=dict)
    rotated_nms_iou: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)

    @field_validator("tasks")
    @classmethod
    def _classes_once(cls, tasks: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        names = [name for task in tasks for name in task]
        unknown = sorted(set(names) - set(DETECTION_CLASSES))
        if unknown or len(set(names)) != len(names) or not tasks or not all(tasks):
            raise ValueError(
                f"groups hold classes, and each of {', '.join(DETECTION_CLASSES)} may stand in one group, once; "
                f"unknown: {unknown}"
            )
        return tasks

    @field_validator("circle_nms_m", "rotated_nms_iou", "headless")
    @classmethod
    def _known_classes(cls, names: Any) -> Any:
        if unknown := sorted(set(names) - set(DETECTION_CLASSES)):
            raise ValueError(f"unknown classes {unknown}; known: {', '.join(DETECTION_CLASSES)}")
        return names

    def at_width(self, factor: float) -> CenterHeadConfig:
        """With shared and branch channels times `factor`; ValueError where they are no whole numbers."""
        widths = {name: narrowed(getattr(self, name), factor, f"head.{name}") for name in HEAD_WIDTHS}
        return self.model_copy(update=widths)


@dataclass(frozen=True)
class GroupTargets:
    """Targets of one task group for a batch of B frames that holds K of its objects on the grid.

    heatmap: (B, classes, H, W) float32, exactly 1 at object cells; sample, row, col: (K,) int64;
    values: (K, 10) float32 in the order of `BRANCHES`, NaN where unknown; headless: (K,) bool, of classes without one.
    """

    heatmap: Tensor
    sample: Tensor
    row: Tensor
    col: Tensor
    values: Tensor
    headless: Tensor


class TaskHead(nn.ModuleDict):
    """The branches of one task group; each map from one hidden convolution."""

    def __init__(self, in_channels: int, hidden: int, classes: int, bias: bool) -> None:
        super().__init__()
        for name, channels in {**BRANCHES, "heatmap": classes}.items():
            last = nn.Conv2d(hidden, channels, 3, padding=1)
            self[name] = nn.Sequential(*_conv_norm_relu(in_channels, hidden, bias), last)
            if name == "heatmap":
                nn.init.constant_(last.bias, -2.19)  # type: ignore[arg-type]  # p = 0.1: empty cells else drown the rest

    def forward(self, shared: Tensor) -> dict[str, Tensor]:
        return {name: branch(shared) for name, branch in self.items()}


class CenterHead(nn.Module):
    """(B, C, H, W) on `grid` -> one dict of maps per task group: heatmap logits and the maps of `BRANCHES`."""

    nms_radius_m: Tensor
    nms_iou: Tensor

    def __init__(self, in_channels: int, grid: BevGrid, config: CenterHeadConfig) -> None:
        super().__init__()
        self.grid, self.config = grid, config
        self.headless_ids = [DETECTION_CLASSES.index(name) for name in config.headless]
        self.heat_classes = tuple(name for task in config.tasks for name in task)
        self.class_ids = [[DETECTION_CLASSES.index(name) for name in task] for task in config.tasks]
        overlaps = [config.rotated_nms_iou.get(name, 0.0) for name in DETECTION_CLASSES]
        radii = [config.circle_nms_m.get(name, 0.0) for name in DETECTION_CLASSES]
        radii = [0.0 if overlap else radius for radius, overlap in zip(radii, overlaps, strict=True)]
        self.register_buffer("nms_radius_m", torch.tensor(radii), persistent=False)
        self.register_buffer("nms_iou", torch.tensor(overlaps), persistent=False)
        self.shared = _conv_norm_relu(in_channels, config.shared_channels, config.bias_before_norm)
        self.tasks = nn.ModuleList(
            TaskHead(config.shared_channels, config.branch_channels, len(task), config.bias_before_norm)
            for task in config.tasks
        )

    def forward(self, bev: Tensor) -> list[dict[str, Tensor]]:
        shared = self.shared(bev)
        return [task(shared) for task in self.tasks]

    def targets(
        self, boxes: list[Tensor], labels: list[Tensor], device: torch.device | str = "cpu"
    ) -> list[GroupTargets]:
        """boxes: B tensors (N, 9); labels: B tensors (N,) class ids. Boxes off the grid or of no group are left out."""
        require_annotations(boxes, labels)
        sizes = [len(sample) for sample in labels]
        sample = np.repeat(np.arange(len(sizes)), sizes)
        flat_boxes = torch.cat([b.detach().cpu().float().reshape(-1, 9) for b in boxes]).numpy()
        flat_labels = torch.cat([label.detach().cpu().long() for label in labels]).numpy()
        row, col, inside = centre_cells(flat_boxes, self.grid)
        inside &= has_size(flat_boxes)
        out = []
        for class_ids in self.class_ids:
            lookup = np.full(len(DETECTION_CLASSES) + 1, -1)
            lookup[class_ids] = np.arange(len(class_ids))
            keep = inside & (lookup[flat_labels] >= 0)
            channel = sample[keep] * len(class_ids) + lookup[flat_labels[keep]]
            heatmap = draw_gaussians(
                flat_boxes[keep],
                channel,
                len(sizes) * len(class_ids),
                self.grid,
                min_overlap=self.config.min_overlap,
                min_radius=self.config.min_radius,
            ).reshape(len(sizes), len(class_ids), *self.grid.shape)
            values = _encode(flat_boxes[keep], row[keep], col[keep], self.grid)
            headless = np.isin(flat_labels[keep], self.headless_ids)
            arrays = (heatmap, sample[keep], row[keep], col[keep], values, headless)
            out.append(GroupTargets(*(torch.from_numpy(array).to(device) for array in arrays)))
        return out

    def loss_parts(
        self, heads: list[dict[str, Tensor]], targets: list[GroupTargets], labelled: Tensor | None = None
    ) -> dict[str, LossPart]:
        """Focal loss of the heatmaps per object cell, and L1 of every branch at the centre cells per object (fp32).

        labelled: as `Batch.labelled`; a frame without annotations has no object, and its heatmap is not judged. Unknown
        (NaN) values add nothing to their numerator; the normaliser counts objects, as in the released code.
        """
        config = self.config
        focal, objects = [], []
        regression: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
        with torch.autocast(heads[0]["heatmap"].device.type, enabled=False):
            for maps, target in zip(heads, targets, strict=True):
                heat, wanted_heat = maps["heatmap"], target.heatmap
                if labelled is not None:
                    heat, wanted_heat = heat[labelled], wanted_heat[labelled]
                focal.append(focal_numerator(heat, wanted_heat))
                objects.append(torch.tensor([float((target.heatmap == 1).sum()), float(len(target.sample))]))
                for name, wanted in zip(BRANCHES, target.values.split(list(BRANCHES.values()), dim=1), strict=True):
                    found = maps[name][target.sample, :, target.row, target.col].float()  # (K, channels)
                    known = torch.isfinite(wanted)
                    error = (found - torch.where(known, wanted, 0.0)).abs()
                    if name == "vel":
                        error = smooth(error, config.velocity_smooth)
                    error = (error * known).sum(dim=1)
                    if name == "rot":  # for a headless box the opposite heading is as right
                        error = torch.where(target.headless, torch.minimum(error, (found + wanted).abs().sum(1)), error)
                    regression[name].append(error.sum())
        peaks, boxes = torch.stack(objects).to(focal[0].device).unbind(dim=1)
        parts = {"heatmap": LossPart(torch.stack(focal), peaks, 1.0)}
        for name, numerators in regression.items():
            weight = config.box_weight * (config.velocity_weight if name == "vel" else 1.0)
            parts[name] = LossPart(torch.stack(numerators), boxes, weight)
        return parts

    @torch.no_grad()
    def decode(self, heads: list[dict[str, Tensor]]) -> list[Detections]:
        """Best boxes of every frame: peaks of each heatmap, best first, then suppression per class."""
        config = self.config
        boxes, scores, labels = self.candidates(heads)
        out = []
        for b, s, c in zip(boxes, scores, labels, strict=True):
            keep = (s >= config.score_threshold) & torch.isfinite(b).all(dim=1)  # fp16 may overflow in a branch
            b, s, c = b[keep], s[keep], c[keep]
            order = torch.argsort(s, descending=True, stable=True)
            b, s, c = b[order], s[order], c[order]
            if config.circle_nms_m:
                keep = circle_suppress(b[:, :2], c, self.nms_radius_m)
                b, s, c = b[keep], s[keep], c[keep]
            if config.rotated_nms_iou:
                keep = rotated_suppress(b, c, self.nms_iou)
                b, s, c = b[keep], s[keep], c[keep]
            b, s, c = (part[: config.max_boxes].cpu().numpy() for part in (b, s, c))
            out.append(Detections(b.astype(np.float32), s.astype(np.float32), c.astype(np.int32)))
        return out

    def candidates(self, heads: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """What `decode` chooses from: of every task group the k best peaks, best first, k = min(max_boxes, cells times
        classes). Boxes (B, K, 9), scores (B, K), class ids (B, K), K of all groups, before threshold and suppression.
        """
        groups = [self._decode_group(maps, ids) for maps, ids in zip(heads, self.class_ids, strict=True)]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*groups, strict=True))
        return boxes, scores, labels

    def _decode_group(self, maps: dict[str, Tensor], class_ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The k best cells of one group: boxes (B, k, 9), scores (B, k), class ids (B, k)."""
        heat = maps["heatmap"].float().sigmoid()  # (B, classes, H, W)
        height, width = heat.shape[2:]
        if self.config.peaks != "all":
            best = F.max_pool2d(heat, 3, stride=1, padding=1)
            share = heat / best.clamp(min=torch.finfo(best.dtype).tiny)  # where all underflowed: 0, not 0 / 0
            heat = heat * (heat == best if self.config.peaks == "hard" else share.square())
        scores, flat = heat.flatten(1).topk(min(self.config.max_boxes, heat[0].numel()), dim=1)
        cell = flat % (height * width)
        labels = torch.tensor(class_ids, device=heat.device)[flat // (height * width)]
        code = torch.cat([maps[name].float() for name in BRANCHES], dim=1).flatten(2)  # (B, 10, H * W)
        code = code.gather(2, cell[:, None].expand(-1, code.shape[1], -1)).transpose(1, 2)  # (B, k, 10)
        grid = self.grid
        x = grid.x_min + (cell % width + code[..., 0]) * grid.cell_m
        y = grid.y_min + (cell // width + code[..., 1]) * grid.cell_m
        size = code[..., 3:6].clamp(-LOG_SIZE_LIMIT, LOG_SIZE_LIMIT).exp()
        yaw = torch.atan2(code[..., 6], code[..., 7])
        boxes = torch.cat([torch.stack([x, y, code[..., 2]], -1), size, yaw[..., None], code[..., 8:10]], dim=-1)
        return boxes, scores, labels


def focal_numerator(logits: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Sum over all cells of CornerNet's penalty-reduced focal loss; both (B, classes, H, W). In fp32, or fp64."""
    p = (logits if logits.dtype == torch.float64 else logits.float()).sigmoid().clamp(1e-4, 1 - 1e-4)
    at_objects = (1 - p).pow(alpha) * p.log()
    elsewhere = (1 - target).pow(beta) * p.pow(alpha) * (1 - p).log()
    return -torch.where(target == 1, at_objects, elsewhere).sum()


def smooth(error: Tensor, beta: float) -> Tensor:
    """Absolute errors with a quadratic foot below `beta` (smooth L1, up to its constant factor); 0 leaves them alone.

    With most objects at rest plain L1 can hold every velocity at its median, 0, for a thousand steps: those at rest
    pull as hard as those that move. With the foot their pull fades near 0.
    """
    return torch.where(error < beta, error.square() / (2 * beta), error - beta / 2) if beta > 0 else error


def _encode(boxes: np.ndarray, row: np.ndarray, col: np.ndarray, grid: BevGrid) -> np.ndarray:
    """Boxes (K, 9) as the ten regressed values (K, 10) float32, in the order of `BRANCHES`."""
    boxes = boxes.astype(np.float64)
    x = (boxes[:, 0] - grid.x_min) / grid.cell_m - col
    y = (boxes[:, 1] - grid.y_min) / grid.cell_m - row
    yaw = boxes[:, 6]
    columns = [x, y, boxes[:, 2], *np.log(boxes[:, 3:6]).T, np.sin(yaw), np.cos(yaw), boxes[:, 7], boxes[:, 8]]
    return np.stack(columns, axis=1).astype(np.float32)


def _conv_norm_relu(in_channels: int, out_channels: int, bias: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
