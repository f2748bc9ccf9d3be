"""What every contender of the stream benchmark delivers: the same arrays of the same frames, as torch tensors.

A sample is a dict of arrays of one frame; a batch is a dict of tensors of several: what varies from frame to frame is
joined along its first axis, with offsets beside it, and pictures are stacked. All contenders draw pictures with the
trainer's own function, `draw_pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from cache.frame import CAMERA_CHANNELS
from models.pictures import ImageAugment, PictureGeometry, draw_picture, picture_geometry

# offsets' name -> the arrays that share them, joined along their first axis
CELLS = ("bev_index", "bev_values", "bev_weights")
DETECTIONS = ("boxes", "scores", "labels")
TRUTH = ("gt_boxes", "gt_labels")
TRUTH_FIELDS = ("gt_lidar", "gt_ids")  # of the frame store: the boxes, and ids whose first column is the label
TEACHER_GROUPS = {"cell_offsets": CELLS, "box_offsets": DETECTIONS}
CAMERAS = tuple(channel.lower() for channel in CAMERA_CHANNELS)

Sample = Mapping[str, Any]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What is measured. pictures: how a stored image becomes the student's input, None for the teacher's fields alone;
    frames: how many there are; batch: frames a batch; workers: processes or threads that load."""

    name: str
    frames: int
    batch: int
    workers: int
    pictures: PictureGeometry | None = None

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Offsets' names and the arrays that they cut."""
        return TEACHER_GROUPS | ({"truth_offsets": TRUTH} if self.pictures else {})


def student_pictures(stored: tuple[int, int], size: tuple[int, int]) -> PictureGeometry:
    """The trainer's test-time way from a stored image (width, height) to a student's input of `size`."""
    return picture_geometry(stored, size, ImageAugment())


def draw_pictures(jpegs: Sequence[bytes], geometry: PictureGeometry, out: np.ndarray) -> None:
    """Decodes a frame's JPEGs into `out` (cameras, h, w, 3) uint8 RGB: the one image decoder of all contenders."""
    for camera, jpeg in enumerate(jpegs):
        draw_picture(jpeg, geometry, out[camera], CAMERA_CHANNELS[camera])


def picture_array(geometry: PictureGeometry, *frames: int) -> np.ndarray:
    """An uninitialised (*frames, cameras, h, w, 3) uint8 array."""
    width, height = geometry.size
    return np.empty((*frames, len(CAMERA_CHANNELS), height, width, 3), np.uint8)


def decoded(sample: Sample, setting: Setting) -> dict[str, np.ndarray]:
    """A peer's sample with its pictures drawn: arrays as they are, JPEGs (bytes or uint8) under `images`."""
    names = [name for group in setting.groups.values() for name in group]
    out = {"frame": np.asarray(sample["frame"], np.int64).reshape(1), **{name: sample[name] for name in names}}
    if setting.pictures:
        out["images"] = picture_array(setting.pictures)
        draw_pictures([sample[name] for name in CAMERAS], setting.pictures, out["images"])
    return out


def collate(samples: Sequence[Mapping[str, np.ndarray]], setting: Setting) -> Batch:
    """Samples -> a batch. In a worker process the tensors are born in shared memory, as torch's own collate does it, so
    that handing them over copies nothing."""
    batch = {"frame": joined([sample["frame"] for sample in samples])}
    for offsets, names in setting.groups.items():
        counts = [len(sample[names[0]]) for sample in samples]
        batch[offsets] = torch.from_numpy(np.cumsum([0, *counts]))
        batch |= {name: joined([sample[name] for sample in samples]) for name in names}
    if setting.pictures:
        batch["images"] = joined([sample["images"][None] for sample in samples])
    return batch


def joined(arrays: Sequence[np.ndarray]) -> Tensor:
    """The arrays one after another along their first axis, in shared memory where this is a loader's worker."""
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    out = torch.empty(0, dtype=torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype)
    if get_worker_info() is not None:
        storage = out._typed_storage()._new_shared(int(np.prod(shape)), device=out.device)
        out = out.new(storage)
    out = out.resize_(*shape)
    np.concatenate(arrays, out=out.numpy())
    return out


def contents(batch: Batch, setting: Setting) -> dict[int, int]:
    """Frame number -> crc32c over all that the batch holds of that frame: contenders are held equal by it."""
    out = {}
    cuts = {name: batch[offsets].tolist() for offsets, names in setting.groups.items() for name in names}
    for i, frame in enumerate(batch["frame"].tolist()):
        value = 0
        for name, offsets in cuts.items():
            array = np.ascontiguousarray(batch[name].numpy()[offsets[i] : offsets[i + 1]])
            value = google_crc32c.extend(value, f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        if setting.pictures:
            value = google_crc32c.extend(value, batch["images"][i].numpy().tobytes())
        out[frame] = value
    return out
