"""Teachers that could show that it is not the teacher, as `cache-teacher --teacher studies.ablation.controls:NAME`.

`annotated` answers with the annotated boxes: the heatmap is the loss's own target, the feature map is painted with it.
`another_frame` answers with all that the trained teacher says of a frame of another scene.
`another_frames_features` and `untrained_features` answer with the trained teacher's heads and objects, so that the same
cells are compared as hard, and with a feature map that knows nothing of the frame: the trained teacher's of a frame of
another scene, or an untrained network's of this one. An untrained network's own heads would be worse than nothing: its
heat is a tenth everywhere, its best fifty boxes are noise. All are told by a JSON file which frame store and weights
they stand on, and know a frame by its row, which the pass gives as its token. A whole untrained teacher is an ordinary
weights file, see `untrained_teacher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import DataError
from cache.files import read_json, write_json
from cache.frame import CAMERA_CHANNELS, Detections
from cache.store import FrameStore
from models.build import build_detector, load_weights, save_weights
from models.center_head import BRANCHES
from models.detector import Batch, BevLevel, Detector, DetectorOutput
from studies.settled_norms import settle_norms
from trainer.augment import no_augment
from trainer.batches import BatchBuilder, Needs

SURE = 1e-4  # the focal loss takes heat between this and 1 minus this
SETTLING_FRAMES = 16


def write_basis(path: Path, frames: FrameStore, weights: Path, untrained: Path | None = None) -> None:
    """What the callables are told: the frame store, and the weights files of the trained teacher and, for
    `untrained_features`, of the untrained one."""
    basis = {"frames": frames.root.url, "weights": str(weights.resolve())}
    write_json(path, basis | ({"untrained": str(untrained.resolve())} if untrained is not None else {}))


def annotated(path: Path) -> Annotations:
    """The callable."""
    told = _basis(path)
    return Annotations(FrameStore(told["frames"]), load_weights(Path(told["weights"])))


def another_frame(path: Path) -> AnotherFrame:
    """The callable."""
    told = _basis(path)
    return AnotherFrame(FrameStore(told["frames"]), load_weights(Path(told["weights"])))


def another_frames_features(path: Path) -> OtherFeatures:
    """The callable."""
    other = another_frame(path)
    return OtherFeatures(cast(Detector, other.teacher), cast(Detector, other))


def untrained_features(path: Path) -> OtherFeatures:
    """The callable."""
    told = _basis(path)
    return OtherFeatures(load_weights(Path(told["weights"])), load_weights(Path(told["untrained"])))


def _basis(path: Path) -> dict[str, str]:
    return dict(read_json(path, "what a control teacher stands on"))


def partners(frames: FrameStore) -> dict[int, int]:
    """For every row one of another scene, of its own split where that has two: the row half of them away, or the next
    that is of another scene. DataError where the whole store has one scene."""
    out = {}
    rows = range(len(frames.tokens))
    splits = {
        int(row): split
        for split in {scene.split for scene in frames.manifest.scenes}
        for row in frames.split_rows(split)
    }
    for row in rows:
        for among in ([r for r in rows if splits[r] == splits[row]], list(rows)):
            start = among.index(row) + len(among) // 2
            turned = (among[(start + step) % len(among)] for step in range(len(among)))
            other = next((r for r in turned if frames.scene_of(r) != frames.scene_of(row)), None)
            if other is not None:
                out[row] = other
                break
        else:
            raise DataError(f"{frames.root}: has one scene; another frame needs a second one")
    return out


def row_of(token: str, frames: FrameStore) -> int | None:
    """The row that a pass's token is; None for the tokens of the trial before a pass, which are of no frame."""
    return int(token) if len(token) < 32 and int(token) < len(frames.tokens) else None


class AnotherFrame(nn.Module):
    """A `models.detector.Detector` of LiDAR that looks at the wrong cloud."""

    modality: Literal["lidar", "camera"] = "lidar"

    def __init__(self, frames: FrameStore, teacher: Detector) -> None:
        super().__init__()
        self.frames, self.teacher, self.partner = frames, cast(nn.Module, teacher), partners(frames)
        self.grid, self.bev_channels = teacher.grid, teacher.bev_channels
        self.config, self.levels, self.heat_classes = teacher.config, teacher.levels, teacher.heat_classes

    def forward(self, batch: Batch) -> DetectorOutput:
        """The teacher on the partners of the batch's rows; on the very clouds of the trial before a pass."""
        given = batch.points or []
        rows = [row_of(token, self.frames) for token in batch.tokens]
        clouds = [
            cloud if row is None else torch.from_numpy(np.array(self.frames.points(self.partner[row])))
            for row, cloud in zip(rows, given, strict=True)
        ]
        return cast(DetectorOutput, self.teacher(Batch(points=clouds, tokens=batch.tokens)))

    def decode(self, output: DetectorOutput) -> list[Detections]:
        return cast(Detector, self.teacher).decode(output)


class OtherFeatures(nn.Module):
    """A `models.detector.Detector` of LiDAR with one network's heads and objects, and another's feature map."""

    modality: Literal["lidar", "camera"] = "lidar"

    def __init__(self, teacher: Detector, features: Detector) -> None:
        super().__init__()
        self.teacher, self.features = cast(nn.Module, teacher), cast(nn.Module, features)
        self.grid, self.bev_channels = teacher.grid, features.bev_channels
        self.config, self.heat_classes = teacher.config, teacher.heat_classes
        self.levels: dict[str, BevLevel] = {}

    def forward(self, batch: Batch) -> DetectorOutput:
        said, other = self.teacher(batch), self.features(batch)
        return DetectorOutput(other.bev, said.heads)

    def decode(self, output: DetectorOutput) -> list[Detections]:
        return cast(Detector, self.teacher).decode(output)


class Annotations(nn.Module):
    """A `models.detector.Detector` without weights that knows the answer, on the teacher's grid and in its groups.

    Its map holds, channel by channel, the class heatmaps and the regressed values at the objects' cells, 0 elsewhere.
    """

    modality: Literal["lidar", "camera"] = "lidar"

    def __init__(self, frames: FrameStore, teacher: Detector) -> None:
        super().__init__()
        self.frames, self.head = frames, cast(Any, teacher).head
        self.grid, self.heat_classes = teacher.grid, teacher.heat_classes
        self.bev_channels = sum(len(task) for task in self.head.config.tasks) + len(self.head.config.tasks) * sum(
            BRANCHES.values()
        )
        self.config: dict[str, Any] = dict(teacher.config)
        self.levels: dict[str, BevLevel] = {}
        self._said: list[Detections] = []

    def forward(self, batch: Batch) -> DetectorOutput:
        """Targets of the annotated boxes of the batch's rows; what no return hit is left out, as in training."""
        found = [self._boxes(row_of(token, self.frames)) for token in batch.tokens]
        targets = self.head.targets([boxes for boxes, _ in found], [labels for _, labels in found])
        heads, maps = [], []
        for target in targets:
            frames, _, height, width = target.heatmap.shape
            values = torch.zeros(frames, sum(BRANCHES.values()), height, width)
            values[target.sample, :, target.row, target.col] = target.values.nan_to_num()
            branches = dict(zip(BRANCHES, values.split(list(BRANCHES.values()), dim=1), strict=True))
            heads.append({**branches, "heatmap": torch.logit(target.heatmap.clamp(SURE, 1 - SURE))})
            maps += [target.heatmap, values]
        self._said = [_as_detections(boxes, labels) for boxes, labels in found]
        return DetectorOutput(torch.cat(maps, dim=1), heads)

    def decode(self, output: DetectorOutput) -> list[Detections]:
        """The annotated boxes of the last forward pass, with score 1."""
        return self._said

    def _boxes(self, row: int | None) -> tuple[Tensor, Tensor]:
        if row is None or not self.frames.is_labelled(row):
            return torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64)
        ids = self.frames.read(row, "gt_ids")
        seen = ids[:, 2] + ids[:, 3] > 0
        boxes = torch.from_numpy(np.array(self.frames.boxes_lidar(row)[seen], np.float32))
        return boxes, torch.from_numpy(ids[seen, 0].astype(np.int64))


def _as_detections(boxes: Tensor, labels: Tensor) -> Detections:
    return Detections(boxes.nan_to_num().numpy(), np.ones(len(boxes), np.float32), labels.numpy().astype(np.int32))


def untrained_teacher(config: dict[str, Any], frames: FrameStore, rows: Sequence[int], path: Path, seed: int) -> None:
    """Weights of a network that has learnt nothing, at `path`; its norms have the statistics of some clouds, so that
    its features are of a trained one's size."""
    torch.manual_seed(seed)
    model = build_detector(config)
    some = list(rows[:: max(1, len(rows) // SETTLING_FRAMES)])[:SETTLING_FRAMES]
    batch, _ = BatchBuilder(frames, Needs(points=True)).build(some, [no_augment(len(CAMERA_CHANNELS))] * len(some))
    settle_norms(cast(nn.Module, model), [batch])
    save_weights(model, path)
