"""BEVFormer, the camera detector of queries: images -> ResNet, pyramid -> BEV by attention -> decoder -> boxes.

Li et al. 2022. Of single frames, or temporal (BEVFormer-T): earlier moments of a batch's history are gone through in
time order without gradient, and what was seen last is looked at from where the vehicle is now. Presets bevformer-tiny,
-small and -base (the released sizes), -r50-128 (BEVDistill's student) and -demo. Students are distilled on the map of
the encoder, or after the heat head's first convolution (`adaptor`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from models.batch_checks import require_cameras, told
from models.bev_history import before, renewed, require_fit
from models.bevformer_encoder import BevFormerEncoder, BevFormerEncoderConfig
from models.config import Config, GridConfig
from models.detector import Batch, BevLevel, DetectorOutput, Memory, Past
from models.fpn import ImagePyramid
from models.heat_head import HeatHead, HeatHeadConfig
from models.pillar_views import pillar_points, pillar_views, project_pillars
from models.query_decoder import Transformer, TransformerConfig
from models.query_detector import QueryDetector
from models.query_head import QueryHead, QueryHeadConfig
from models.resnet import LEVELS, ResNet, ResNetConfig

PAD = 32  # images grow on the right and below to a multiple of this, the stride of C5


class BevFormerConfig(Config):
    """image_size: (width, height) in pixels, before padding; bev: the grid, one query a cell; z_range: metres, of the
    pillars and of the boxes' centres; channels: of all that follows the backbone; levels: of the image pyramid, those
    beyond the backbone's outputs by convolutions of stride 2.

    queue: moments of a window, the present one included; 1 is a detector of single frames. transformer: without an
    encoder of its own; heat: absent is without.
    """

    kind: Literal["bevformer"] = "bevformer"
    image_size: tuple[int, int]
    cameras: int = Field(default=6, ge=1)
    bev: GridConfig
    z_range: tuple[float, float] = (-5.0, 3.0)
    backbone: ResNetConfig
    channels: int = Field(default=256, ge=2)
    levels: int = Field(default=4, ge=1)
    encoder: BevFormerEncoderConfig = BevFormerEncoderConfig()
    queue: int = Field(default=1, ge=1)
    transformer: TransformerConfig = TransformerConfig(encoder_layers=0, queries=900, interaction="attention")
    head: QueryHeadConfig = QueryHeadConfig()
    heat: HeatHeadConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> BevFormerConfig:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size {self.image_size} must be whole, positive numbers of pixels")
        if self.z_range[1] - self.z_range[0] <= 1:
            raise ValueError(
                f"z_range {self.z_range} must rise by more than 1 m: pillars keep half a metre off its ends"
            )
        if LEVELS.index(self.backbone.outputs[-1]) >= len(self.backbone.layers):
            raise ValueError(f"output {self.backbone.outputs[-1]} needs more than {len(self.backbone.layers)} stages")
        if len(self.backbone.outputs) > self.levels:
            raise ValueError(f"{len(self.backbone.outputs)} outputs of the backbone are more than {self.levels} levels")
        for part, heads in (("encoder", self.encoder.heads), ("transformer", self.transformer.heads)):
            if self.channels % heads:
                raise ValueError(f"{self.channels} channels do not divide by the {part}'s {heads} heads")
        if self.transformer.encoder_layers:
            raise ValueError("transformer.encoder_layers must be 0: the BEV map has an encoder of its own")
        return self

    @property
    def padded_size(self) -> tuple[int, int]:
        """(width, height) of the images that the backbone sees."""
        width, height = (math.ceil(side / PAD) * PAD for side in self.image_size)
        return width, height


class BevFormer(QueryDetector):
    """A `models.detector.Detector` over images.

    adaptor: convolution, norm and ReLU that make level "adapted" of the output's `bev`; None without a heat head.
    """

    pillars: Tensor

    modality: Literal["lidar", "camera"] = "camera"

    def __init__(self, config: BevFormerConfig) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.model_dump(mode="json")
        self.settings = config
        self.grid = config.bev.grid()
        self.bev_channels = channels = config.channels
        self.backbone = ResNet(config.backbone)
        self.pyramid = ImagePyramid(config.backbone.channels, channels, config.levels)
        self.encoder = BevFormerEncoder(channels, self.grid, config.levels, config.cameras, config.encoder)
        self.transformer = Transformer(channels, [self.grid.shape], config.transformer, places=3)
        self.head = QueryHead(channels, config.transformer.decoder_layers, self.grid, config.head, config.z_range)
        self.heat = HeatHead(channels, self.grid, config.heat, detached=False) if config.heat else None
        self.gives = frozenset({"bev", "levels", "queries", *(("heads",) if config.heat else ())})
        self.heat_classes = tuple(DETECTION_CLASSES) if config.heat else ()
        self.levels = {"adapted": BevLevel(config.heat.channels, self.grid)} if config.heat else {}
        pillars = pillar_points(self.grid, config.z_range, config.encoder.heights)
        self.register_buffer("pillars", pillars, persistent=False)

    @property
    def adaptor(self) -> nn.Sequential | None:
        return self.heat.shared if self.heat is not None else None

    def forward(self, batch: Batch) -> DetectorOutput:
        """Reads batch.images, intrinsics and camera_to_lidar; where queue > 1, batch.history and memory too."""
        bev = self.look(batch, self.remember(batch))
        features, references = self.transformer([bev], list(self.head.boxes))
        queries = self.head(features, references)
        if self.heat is None:
            return DetectorOutput(bev, heads=[], queries=queries)
        adapted, heatmap = self.heat(bev)
        return DetectorOutput(bev, [{"heatmap": heatmap}], levels={"adapted": adapted}, queries=queries)

    def look(self, batch: Batch, memory: Memory | None = None) -> Tensor:
        """The map (B, C, H, W) of one moment, its history apart; `memory`: what was seen before, from this moment."""
        size, cameras = self.settings.image_size, self.settings.cameras
        images, intrinsics, to_lidar = require_cameras(batch, size, self.config, cameras)
        config, frames = self.settings, len(images)
        width, height = config.image_size
        padded = config.padded_size
        flat = F.pad(images.flatten(0, 1), (0, padded[0] - width, 0, padded[1] - height))
        maps = self.pyramid(self.backbone(flat.contiguous(memory_format=torch.channels_last)))
        places, visible = project_pillars(self.pillars, intrinsics, to_lidar, config.image_size, padded)
        views = pillar_views(places, visible)
        return self.encoder([level.unflatten(0, (frames, -1)) for level in maps], views, memory)

    @torch.no_grad()
    def remember(self, batch: Batch) -> Memory | None:
        """What is known of the past once batch.memory and then batch.history were gone through, in time order.

        Without gradient and in evaluation mode, as BEVFormer trains; frames without a moment keep what they had.
        """
        memory, queue = batch.memory, self.settings.queue
        if queue == 1 and (batch.history or memory is not None):
            raise DataError(
                f"{told(self.config)}: the batch has a past, but the model is of single frames (queue = 1); raise queue"
            )
        if len(batch.history) >= queue:
            raise DataError(
                f"{told(self.config)}: a history of {len(batch.history)} moments, a window (queue = {queue}) holds "
                f"{queue - 1} before the present one; shorten it, or raise queue"
            )
        self._require_fit(batch)
        with evaluating(self):
            for past in batch.history:
                rows = past.known.nonzero()[:, 0]
                if len(rows):
                    then = before(memory, past, rows) if memory is not None else None
                    seen = self.look(_rows_of(past, rows, self.config), then)
                    memory = renewed(memory, past, rows, seen)
        return memory

    def _require_fit(self, batch: Batch) -> None:
        """DataError where the batch's past is not of as many frames, or its memory not of this model's map."""
        for past in batch.history:
            require_fit(past, len(batch), self.config)
        if batch.memory is not None:
            require_fit(batch.memory, len(batch), self.config)
            found, wanted = tuple(batch.memory.bev.shape), (len(batch), self.bev_channels, *self.grid.shape)
            if found != wanted:
                raise DataError(
                    f"{told(self.config)}: Memory.bev has shape {found}, the model reads {wanted}; it is another's"
                )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; then every part as it was, so that norms frozen one by one stay so."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _rows_of(past: Past, rows: Tensor, config: dict[str, Any]) -> Batch:
    """The frames `rows` (R,) of an earlier moment: images and calibration. DataError, with the preset of the detector's
    config, where it has none."""
    frames = past.frames
    if frames.images is None or frames.intrinsics is None or frames.camera_to_lidar is None:
        raise DataError(
            f"{told(config)}: a moment of the history holds no images with calibration; give it all, or leave it out"
        )
    return Batch(
        images=frames.images[rows],
        intrinsics=frames.intrinsics[rows],
        camera_to_lidar=frames.camera_to_lidar[rows],
    )
