"""The head of a detector of queries: features to classes and boxes, their loss against a set of objects, and decoding.

One file, because module, loss and decoding share one code of a box. Every layer of the decoder is supervised; no boxes
are suppressed: the loss makes one query answer for one object. Losses are computed in fp32.
Sources: Wang et al. 2021 (DETR3D), Wang and Solomon 2021 (Object-DGCNN), with the constants of the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.frame import Detections
from cache.grid import BevGrid
from models.batch_checks import require_annotations
from models.center_head import LOG_SIZE_LIMIT, smooth
from models.config import Config
from models.detector import LossPart, QueryOutput
from models.gaussian import centre_cells, has_size
from models.matching import FOCAL_ALPHA, FOCAL_GAMMA, SetTargets, match_queries
from models.query_decoder import inverse_sigmoid

BOX_NUMBERS = 10  # x, y, z, log l, log w, log h, sin yaw, cos yaw, vx, vy
PRIOR = 0.01  # of a class, before training


class QueryHeadConfig(Config):
    """class_weight and box_weight: of the losses and of the costs of matching, where velocities count for nothing.

    velocity_weight: a further factor of vx and vy in the loss; velocity_smooth: their errors below this (m/s) count by
    their square, 0 for none: most objects rest, and under plain L1 they hold the others at 0 as well; velocity_unit:
    the m/s that a 1 of the box branch says. centre_range: x, y, z low, then high (m), of the boxes that decoding keeps.
    """

    class_weight: float = Field(default=2.0, ge=0)
    box_weight: float = Field(default=0.25, ge=0)
    velocity_weight: float = Field(default=0.2, ge=0)
    velocity_smooth: float = Field(default=0.0, ge=0)
    velocity_unit: float = Field(default=1.0, gt=0)
    max_boxes: int = Field(default=300, ge=1)
    score_threshold: float = Field(default=0.0, ge=0, le=1)
    centre_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)

    @field_validator("centre_range")
    @classmethod
    def _rises(cls, ends: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in zip(ends[:3], ends[3:], strict=True)):
            raise ValueError("x, y, z low must lie below x, y, z high")
        return ends


class QueryHead(nn.Module):
    """Per layer of the decoder a class branch and a box branch of three linear layers each.

    A box branch says x and y as a step from the query's reference point before a sigmoid over the grid's range; z and
    the rest it says outright. With a `z_range` (m) reference points have a z, and z is said as x and y are.
    """

    code_weights: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        channels: int,
        layers: int,
        grid: BevGrid,
        config: QueryHeadConfig,
        z_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.config, self.channels = grid, config, channels
        self.classes = nn.ModuleList(_class_branch(channels) for _ in range(layers))
        self.boxes = nn.ModuleList(_box_branch(channels) for _ in range(layers))
        weights = torch.tensor([1.0] * (BOX_NUMBERS - 2) + [config.velocity_weight] * 2)
        self.register_buffer("code_weights", weights, persistent=False)
        z_low, z_high = z_range or (0.0, 0.0)
        places = 3 if z_range else 2
        self.register_buffer("low", torch.tensor([grid.x_min, grid.y_min, z_low][:places]), persistent=False)
        self.register_buffer("high", torch.tensor([grid.x_max, grid.y_max, z_high][:places]), persistent=False)

    def forward(self, features: Sequence[Tensor], references: Sequence[Tensor]) -> QueryOutput:
        """features: per layer (B, Q, C); references: per layer (B, Q, 2 or 3) x, y and, with a z_range, z in
        0..1."""
        logits = torch.stack([branch(x) for branch, x in zip(self.classes, features, strict=True)])
        with torch.autocast(logits.device.type, enabled=False):  # in bf16 a size is known to 0.4 %, a speed likewise
            codes = torch.stack([branch(x.float()) for branch, x in zip(self.boxes, features, strict=True)])
        points = torch.stack(list(references))
        places = len(self.low)
        centres = self._metres((codes[..., :places] + inverse_sigmoid(points)).sigmoid())
        boxes = torch.cat([centres, codes[..., places:-2], codes[..., -2:] * self.config.velocity_unit], dim=-1)
        return QueryOutput(logits, boxes, self._metres(points.detach())[..., :2], features[-1])

    def _metres(self, points: Tensor) -> Tensor:
        """(..., places) in 0..1 of the ranges, to metres."""
        return self.low + points * (self.high - self.low)

    def targets(
        self, boxes: Sequence[Tensor], labels: Sequence[Tensor], device: torch.device | str = "cpu"
    ) -> SetTargets:
        """boxes: B tensors (N, 9); labels: B tensors (N,) class ids. Boxes off the grid or without a size are left out:
        no query can say them."""
        require_annotations(boxes, labels)
        sizes = [len(sample) for sample in labels]
        sample = np.repeat(np.arange(len(sizes)), sizes)
        flat = torch.cat([b.detach().cpu().double().reshape(-1, 9) for b in boxes]).numpy()
        _, _, inside = centre_cells(flat, self.grid)
        inside &= has_size(flat)
        flat, sample = flat[inside], sample[inside]
        yaw, size = flat[:, 6], np.log(flat[:, 3:6])
        columns = [*flat[:, :3].T, *size.T, np.sin(yaw), np.cos(yaw), *flat[:, 7:].T]
        return SetTargets(
            sample=torch.from_numpy(sample).to(device),
            labels=torch.cat([label.detach().cpu().long() for label in labels])[torch.from_numpy(inside)].to(device),
            boxes=torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)).to(device),
            counts=tuple(np.bincount(sample, minlength=len(sizes)).tolist()),
        )

    def loss_parts(
        self, output: QueryOutput, targets: SetTargets, labelled: Tensor | None = None
    ) -> dict[str, LossPart]:
        """Focal loss of every query's classes, and L1 of the matched boxes; per layer, each over the objects matched.

        labelled: as `Batch.labelled`; a frame without annotations has no object, and its classes are not judged.
        Unknown (NaN) numbers, velocities, add nothing to their numerator.
        """
        config = self.config
        with torch.autocast(output.logits.device.type, enabled=False):
            logits, boxes = output.logits.float(), output.boxes.float()
            found = match_queries(
                logits, boxes, targets, class_weight=config.class_weight, box_weight=config.box_weight
            )
            layer, item = (found >= 0).nonzero(as_tuple=True)
            sample, query = targets.sample[item], found[layer, item]
            wanted_class = torch.zeros_like(logits)
            wanted_class[layer, sample, query, targets.labels[item]] = 1.0
            judged = (logits, wanted_class) if labelled is None else (logits[:, labelled], wanted_class[:, labelled])
            focal = sigmoid_focal(*judged).sum(dim=(1, 2, 3))  # (layers,)
            wanted = targets.boxes[item]
            known = torch.isfinite(wanted)
            error = (boxes[layer, sample, query] - torch.where(known, wanted, 0.0)).abs()
            if config.velocity_smooth:
                error = torch.cat([error[:, :-2], smooth(error[:, -2:], config.velocity_smooth)], dim=1)
            error = error * known * self.code_weights
            matched = (found >= 0).sum(dim=1).float()
            distance = torch.zeros_like(matched).index_add(0, layer, error.sum(dim=1))
        return {
            "class": LossPart(focal, matched, config.class_weight),
            "box": LossPart(distance, matched, config.box_weight),
        }

    @torch.no_grad()
    def decode(self, output: QueryOutput) -> list[Detections]:
        """The best pairs of query and class of the last layer, best first, with their centre in range."""
        config = self.config
        scores = output.logits[-1].float().sigmoid()  # (B, Q, classes)
        classes = scores.shape[2]
        scores, flat = scores.flatten(1).topk(min(config.max_boxes, scores[0].numel()), dim=1)
        code = output.boxes[-1].float()
        code = code.gather(1, (flat // classes)[..., None].expand(-1, -1, BOX_NUMBERS))
        size = code[..., 3:6].clamp(-LOG_SIZE_LIMIT, LOG_SIZE_LIMIT).exp()
        yaw = torch.atan2(code[..., 6], code[..., 7])[..., None]
        boxes = torch.cat([code[..., :3], size, yaw, code[..., 8:]], dim=-1)
        low, high = boxes.new_tensor(config.centre_range).split(3)
        keep = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(dim=-1) & (scores >= config.score_threshold)
        keep &= torch.isfinite(boxes).all(dim=-1)
        out = []
        for b, s, c, k in zip(boxes, scores, flat % classes, keep, strict=True):
            b, s, c = (part[k].cpu().numpy() for part in (b, s, c))
            out.append(Detections(b.astype(np.float32), s.astype(np.float32), c.astype(np.int32)))
        return out


def sigmoid_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of every logit (Lin et al. 2017), target 0 or 1, alpha 0.25, gamma 2; same shape, not summed."""
    p = logits.sigmoid()
    wrong = torch.where(target > 0, 1 - p, p)
    alpha = torch.where(target > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return alpha * wrong**FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _class_branch(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
    last = nn.Linear(channels, len(DETECTION_CLASSES))
    nn.init.constant_(last.bias, -math.log((1 - PRIOR) / PRIOR))
    return nn.Sequential(*layers, last)


def _box_branch(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(channels, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(channels, BOX_NUMBERS))
