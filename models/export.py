"""A trained detector as a `torch.export` program: one file that runs, and compiles, without this project.

Inputs of one frame: images (1, cameras, 3, h, w) normalised as `models.pictures` does, intrinsics (1, cameras, 3, 3) of
the images as given, camera_to_lidar (1, cameras, 4, 4). Outputs by name: `boxes` (1, K, 9) x, y, z (gravity centre), l,
w, h, yaw, vx, vy in the canonical frame, `scores` (1, K), `labels` (1, K), each task group's best first, before any
threshold and suppression; and the head's maps, `heads.<group>.<name>` (1, channels, H, W). Only camera detectors of
single frames can be written so; `why_not` says why the others can't.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import BevcaskError, ConfigError, DataError
from cache.files import write_bytes
from models.detector import Batch, Detector
from models.lift_splat import LiftSplat

MAP_TOLERANCE = 1e-4  # of the largest value of a map: what the same kernels in another order may differ by
CAMERAS = 6
_YAWS_DEG = (145.0, 90.0, 35.0, -35.0, -90.0, -145.0)  # of a rig much like nuScenes'


class ExportError(BevcaskError):
    """An exported file does not say what the model says."""


@dataclass(frozen=True)
class Difference:
    """How far the program read back and the model are apart on one frame: the largest difference of any map over that
    map's largest value, its name, and the tolerance."""

    worst: float
    name: str
    tolerance: float = MAP_TOLERANCE


class ExportedDetector(nn.Module):
    """The traced forward pass: tensors in, tensors by name out."""

    def __init__(self, model: LiftSplat) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, intrinsics: Tensor, camera_to_lidar: Tensor) -> dict[str, Tensor]:
        batch = Batch(images=images, intrinsics=intrinsics, camera_to_lidar=camera_to_lidar)
        heads = self.model(batch).heads
        boxes, scores, labels = self.model.head.candidates(heads)
        maps = {f"heads.{group}.{name}": values for group, head in enumerate(heads) for name, values in head.items()}
        return {"boxes": boxes, "scores": scores, "labels": labels, **maps}


def why_not(model: Detector) -> str:
    """Why `model` cannot be a torch.export program; empty where it can."""
    kind = str(model.config.get("kind"))
    if isinstance(model, LiftSplat):
        return ""
    if model.modality == "lidar":
        return (
            f"a {kind} detector reads clouds: how many cells are filled differs from frame to frame and decides "
            "shapes, and sparse convolutions are spconv's own kernels, which torch.export does not trace"
        )
    if kind == "bevformer":
        return (
            "a bevformer detector reads earlier moments, and how many pillars a camera sees decides shapes, which "
            "torch.export does not trace"
        )
    return f"a model of kind {kind} is one of your own: call torch.export on it where it is made"


def require_exportable(model: Detector) -> None:
    """ConfigError with the reason and the remedy where `model` cannot be a torch.export program."""
    if reason := why_not(model):
        raise ConfigError(f"{reason}; --format safetensors writes its weights")


def export_program(model: Detector, path: Path, frame: Batch) -> Difference:
    """Writes `model`, in evaluation mode on the CPU, at `path` (.pt2), atomically, once what was written has been read
    back, run on `frame` (one frame) and found within the tolerance.

    Raises ConfigError for a model that can't be exported, ExportError where the program says something else: then
    nothing is written.
    """
    require_exportable(model)
    wrapped = ExportedDetector(cast(LiftSplat, model)).eval()
    inputs = inputs_of(frame)
    with torch.no_grad():
        program = torch.export.export(wrapped, inputs)
        program.example_inputs = None  # torch would pickle them into the file
        data = io.BytesIO()
        with warnings.catch_warnings():  # about weights in channels-last order, which `compare` finds to come back
            warnings.filterwarnings("ignore", "No complete tensor found in the group")
            torch.export.save(program, data)
        expected = wrapped(*inputs)
    difference = compare(data.getvalue(), inputs, expected)
    write_bytes(path, data.getvalue())
    return difference


def compare(data: bytes, inputs: tuple[Tensor, Tensor, Tensor], expected: dict[str, Tensor]) -> Difference:
    """Reads a program that this process has made and holds it against what the model said of the same inputs. Boxes
    are compared through the maps that they are made of. ExportError beyond the tolerance."""
    with torch.no_grad():
        found = torch.export.load(io.BytesIO(data)).module()(*inputs)
    if set(found) != set(expected):
        raise ExportError(
            f"the program read back gives {sorted(found)}, expected {sorted(expected)}; nothing is written"
        )
    worst, where = 0.0, "boxes"
    for name, values in expected.items():
        if name.startswith("heads.") or name == "scores":
            apart = float((found[name] - values).abs().max() / values.abs().max().clamp(min=1e-6))
            if not apart <= worst:
                worst, where = apart, name
    if not worst <= MAP_TOLERANCE:
        raise ExportError(
            f"the program read back differs from the model in {where} by {worst:.2e} of its largest value, more than "
            f"{MAP_TOLERANCE:.0e}; nothing is written"
        )
    return Difference(worst, where)


def inputs_of(frame: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the program reads of a batch of one frame."""
    images, intrinsics, camera_to_lidar = frame.images, frame.intrinsics, frame.camera_to_lidar
    if images is None or intrinsics is None or camera_to_lidar is None:
        raise DataError("the frame to check the program on has no images with calibration; give one that has")
    return images.contiguous(), intrinsics.contiguous(), camera_to_lidar.contiguous()


def made_up_frame(model: Detector) -> Batch:
    """One frame of noise through six level cameras 1.5 m above the road: where no store is at hand."""
    width, height = model.config["image_size"]
    images = torch.randn(1, CAMERAS, 3, height, width, generator=torch.Generator().manual_seed(0))
    focal = 0.8 * width
    intrinsic = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return Batch(
        images=images,
        intrinsics=intrinsic.expand(1, CAMERAS, 3, 3).clone(),
        camera_to_lidar=torch.stack([_looking(yaw) for yaw in _YAWS_DEG])[None],
        tokens=["made up"],
    )


def _looking(yaw_deg: float) -> Tensor:
    """(4, 4) camera (x right, y down, z forward) to LiDAR, level, looking along yaw."""
    yaw = np.deg2rad(yaw_deg)
    columns = [[np.sin(yaw), -np.cos(yaw), 0.0], [0.0, 0.0, -1.0], [np.cos(yaw), np.sin(yaw), 0.0]]
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(columns).T
    matrix[:3, 3] = [0.6 * np.cos(yaw), 0.6 * np.sin(yaw), -0.3]
    return torch.from_numpy(matrix).float()
