"""Camera images as a model reads them: JPEG bytes -> resized, cropped, flipped RGB at the model's input size.

The JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough (libjpeg skips the work), then area-averaged.
Two pixel conventions meet here: stored intrinsics count pixel centres as whole numbers, models count pixel edges (the
first pixel spans 0..1), so that a feature cell of stride s spans s whole pixels. `PictureGeometry.affine` joins them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from cache.errors import DataError, StoreError
from cache.frame import CAMERA_CHANNELS, Camera, Frame
from cache.store import FrameStore

MEAN_RGB = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, of values in 0..1
STD_RGB = np.array([0.229, 0.224, 0.225], np.float32)
_DECODE = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

cv2.setNumThreads(1)  # a loader has threads of its own; OpenCV's would fight torch's for the cores


@dataclass(frozen=True)
class ImageAugment:
    """What is done to one camera's image beyond the test-time geometry: nothing, by default.

    resize: relative to the test-time factor; crop_x: 0 (left) .. 1 (right); rotation_rad: about the middle of the
    input, counter-clockwise as one looks at it, after the flip (BEVDet's order); the others as they say.
    """

    resize: float = 1.0
    crop_x: float = 0.5
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    rotation_rad: float = 0.0


@dataclass(frozen=True)
class PictureGeometry:
    """Stored image (width, height) -> decoded at 1/reduction -> resized (w, h) -> window of `size` at `crop` ->
    flipped -> turned by rotation_rad about its middle.

    All whole pixels but the turn, so `affine` is exact. A crop may begin outside the resized image; what is not covered
    is black. A turned window shows what lies beside the straight one, where the release has black corners: there a
    LiDAR label would have no picture.
    """

    stored: tuple[int, int]
    reduction: int
    resized: tuple[int, int]
    crop: tuple[int, int]
    size: tuple[int, int]
    flip: bool
    rotation_rad: float = 0.0

    @property
    def decoded(self) -> tuple[int, int]:
        """(width, height) of the decoded image: libjpeg rounds up."""
        return -(-self.stored[0] // self.reduction), -(-self.stored[1] // self.reduction)

    def affine(self) -> np.ndarray:
        """(2, 3) float64: pixels of the stored image (centres at whole numbers) -> of the input (edges at whole
        numbers).
        """
        out = np.zeros((2, 3))
        for axis in range(2):
            scale = self.resized[axis] / (self.decoded[axis] * self.reduction)
            out[axis, axis] = scale
            out[axis, 2] = 0.5 * scale - self.crop[axis]
        if self.flip:
            out[0] *= -1
            out[0, 2] += self.size[0]
        return self._turned(out)

    def window(self) -> np.ndarray:
        """(2, 3) float64: pixels of the resized image -> of the input, both with edges at whole numbers."""
        out = np.array([[1.0, 0.0, -self.crop[0]], [0.0, 1.0, -self.crop[1]]])
        if self.flip:
            out[0] = [-1.0, 0.0, self.size[0] + self.crop[0]]
        return self._turned(out)

    def _turned(self, affine: np.ndarray) -> np.ndarray:
        """`affine`, then the turn about the middle of the input; the very same where there is none."""
        if not self.rotation_rad:
            return affine
        c, s = np.cos(self.rotation_rad), np.sin(self.rotation_rad)
        turn, middle = np.array([[c, s], [-s, c]]), np.array(self.size) / 2  # v points down
        out = turn @ affine
        out[:, 2] += middle - turn @ middle
        return out


def picture_geometry(stored: tuple[int, int], size: tuple[int, int], augment: ImageAugment) -> PictureGeometry:
    """How an image of `stored` (width, height) becomes one of `size`: at test time the smallest resize that covers
    `size`, times augment.resize; the crop keeps the bottom rows (the sky goes), as BEVDet and BEVDepth do."""
    scale = max(size[0] / stored[0], size[1] / stored[1]) * augment.resize
    resized = (max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale)))
    reduction = max(k for k in _DECODE if k == 1 or k * scale <= 1)
    crop = (round(augment.crop_x * (resized[0] - size[0])), resized[1] - size[1])
    return PictureGeometry(stored, reduction, resized, crop, size, augment.flip, augment.rotation_rad)


@dataclass(frozen=True)
class CameraViews:
    """A frame's cameras as a model sees them, in CAMERA_CHANNELS order.

    affines: (cameras, 2, 3) float64 pixels of the stored images -> of the inputs; intrinsics: (cameras, 3, 3) of the
    inputs; camera_to_lidar: (cameras, 4, 4), canonical.
    """

    affines: np.ndarray
    intrinsics: np.ndarray
    camera_to_lidar: np.ndarray


def draw_cameras(
    frames: FrameStore, row: int, size: tuple[int, int], augments: Sequence[ImageAugment], out: np.ndarray
) -> CameraViews:
    """Decodes all six images of a stored frame into `out` (cameras, h, w, 3) uint8 RGB at `size` (width, height).

    Raises DataError for an image that does not decode, StoreError where the frame lacks one or its calibration.
    """
    frame = frames.frame(row)
    affines = np.zeros((len(CAMERA_CHANNELS), 2, 3))
    intrinsics, to_lidar = [], []
    jpegs = frames.read_bytes_many(row, [channel.lower() for channel in CAMERA_CHANNELS])
    for i, (camera, augment, jpeg) in enumerate(zip(cameras_in_order(frame), augments, jpegs, strict=True)):
        geometry = picture_geometry((camera.width, camera.height), size, augment)
        draw_picture(jpeg, geometry, out[i], f"{frames.root}: frame {frame.token} {camera.channel}")
        affines[i] = geometry.affine()
        intrinsics.append(np.vstack([affines[i], [0, 0, 1]]) @ camera.intrinsic)
        to_lidar.append(np.linalg.inv(camera.lidar_to_camera))
    return CameraViews(affines, np.stack(intrinsics), np.stack(to_lidar))


def cameras_in_order(frame: Frame) -> list[Camera]:
    """The frame's cameras in CAMERA_CHANNELS order; StoreError where one is missing."""
    by_channel = {camera.channel: camera for camera in frame.cameras}
    missing = [channel for channel in CAMERA_CHANNELS if channel not in by_channel]
    if missing:
        raise StoreError(f"frame {frame.token} has no calibration of {', '.join(missing)}; cache the frames again")
    return [by_channel[channel] for channel in CAMERA_CHANNELS]


def draw_picture(jpeg: bytes, geometry: PictureGeometry, out: np.ndarray, where: str) -> None:
    """Decodes `jpeg` into `out` (h, w, 3) uint8 RGB. DataError naming `where` if it does not decode or has another
    size.
    """
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), _DECODE[geometry.reduction])
    if decoded is None:
        raise DataError(f"{where}: the JPEG does not decode; run the caching command again on whole images")
    if decoded.shape[1::-1] != geometry.decoded:
        raise DataError(
            f"{where}: decodes to {decoded.shape[1]}x{decoded.shape[0]} pixels, its calibration says "
            f"{geometry.decoded[0]}x{geometry.decoded[1]}; cache the frames again"
        )
    if geometry.rotation_rad:
        _draw_turned(decoded, geometry, out)
        return
    (x, y), (width, height) = geometry.crop, geometry.size
    if decoded.shape[1::-1] != geometry.resized:
        shrinks = geometry.resized[0] < decoded.shape[1]
        skipped, rows = _rows_to_skip(decoded.shape[0], geometry.resized[1], y) if shrinks else (0, 0)
        decoded = cv2.resize(
            decoded[skipped:],
            (geometry.resized[0], geometry.resized[1] - rows),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
        y -= rows
    window = decoded[max(y, 0) : y + height, max(x, 0) : x + width]
    top, left = max(-y, 0), max(-x, 0)
    if window.shape[:2] != (height, width):
        out[:] = 0
    # in OpenCV: numpy takes 60 times as long over an axis of 3 that runs backwards
    cv2.cvtColor(window, cv2.COLOR_BGR2RGB, dst=out[top : top + window.shape[0], left : left + window.shape[1]])
    if geometry.flip:
        out[:] = cv2.flip(out, 1)


def _draw_turned(decoded: np.ndarray, geometry: PictureGeometry, out: np.ndarray) -> None:
    """The whole picture resized, then crop, flip and turn in one bilinear step; `decoded` BGR, `out` RGB."""
    if decoded.shape[1::-1] != geometry.resized:
        shrinks = geometry.resized[0] < decoded.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        decoded = cv2.resize(decoded, geometry.resized, interpolation=how)
    to_input = geometry.window()
    to_input[:, 2] += to_input[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV counts pixel centres as whole numbers
    cv2.cvtColor(cv2.warpAffine(decoded, to_input, geometry.size, flags=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB, dst=out)


def _rows_to_skip(decoded: int, resized: int, crop: int) -> tuple[int, int]:
    """How many decoded rows, and the resized rows they make, need no resizing because the crop drops them.

    As many as fall on whole pixels of both, so that area averaging gives the same values for the rest. At test time,
    1600 x 900 to 704 x 256, that is a third of the work.
    """
    step = math.gcd(decoded, resized)
    units = max(crop, 0) * step // resized
    return units * decoded // step, units * resized // step


def normalisation(augments: Sequence[ImageAugment]) -> tuple[np.ndarray, np.ndarray]:
    """gain, offset (N, 3) float32 for N images: gain * (RGB 0..255) + offset is the jittered image,
    ImageNet-normalised.

    Brightness multiplies the image, contrast spreads it about the data set's mean; nothing is clipped.
    """
    brightness = np.array([a.brightness for a in augments], np.float32)[:, None]
    contrast = np.array([a.contrast for a in augments], np.float32)[:, None]
    return brightness * contrast / (255 * STD_RGB), -contrast * MEAN_RGB / STD_RGB


def normalised(pictures: np.ndarray, augments: Sequence[ImageAugment]) -> Tensor:
    """(B, cameras, 3, h, w) float32, channels last in memory, of pictures (B, cameras, h, w, 3) uint8 and one jitter a
    picture."""
    gain, offset = normalisation(augments)
    cameras, height, width = pictures.shape[1:4]
    # gain and offset repeated along a row: arithmetic over an innermost axis of 3 would not be vectorised
    rows = [torch.from_numpy(np.tile(part, (1, width))).view(-1, cameras, 1, 3 * width) for part in (gain, offset)]
    images = torch.addcmul(rows[1], torch.from_numpy(pictures).view(-1, cameras, height, 3 * width).float(), rows[0])
    return images.view(pictures.shape).permute(0, 1, 4, 2, 3)
