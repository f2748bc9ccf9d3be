"""The bytes of one frame of a batch that a model and its loss read, for digests under `[train] digest = "inputs"`.

2 ms per MB: 26 ms for six images of 704 x 256, in the loader's threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from cache.frame import CAMERA_CHANNELS
from models.detector import Batch


def frame_buffers(batch: Batch, frame: int) -> Iterator[memoryview]:
    """Contiguous buffers of frame `frame` of a batch on the host: clouds, images with their geometry, past ones too,
    boxes, depth labels. They do not depend on the batch's other frames. What a teacher said is not among them: its
    store is under the manifest's digest, its bytes under checksums.
    """
    for listed in (batch.points, batch.boxes, batch.labels):
        if listed:
            yield _buffer(listed[frame])
    for stacked in (batch.images, batch.intrinsics, batch.camera_to_lidar, batch.image_affine, batch.bev_augmentation):
        if stacked is not None:
            yield _buffer(stacked[frame])
    for past in batch.history:
        if bool(past.known[frame]):
            yield from frame_buffers(past.frames, frame)
            yield from (_buffer(past.past_to_now[frame]), _buffer(past.age_s[frame]))
    if batch.depth_points is not None:
        cameras = len(CAMERA_CHANNELS)
        of_frame = batch.depth_points[batch.depth_points[:, 0].long() // cameras == frame].clone()
        of_frame[:, 0] -= frame * cameras  # where a frame stands in its batch is no part of it
        yield _buffer(of_frame)


def _buffer(tensor: Tensor) -> memoryview:
    return np.ascontiguousarray(tensor.numpy()).data
