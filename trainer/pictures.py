"""Camera images as a model reads them: JPEG bytes -> resized, cropped, flipped RGB at the model's input size.

The JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough (libjpeg skips the work), then area-averaged.
Two pixel conventions meet here: stored intrinsics count pixel centres as whole numbers, models count pixel edges (the
first pixel spans 0..1), so that a feature cell of stride s spans s whole pixels. `PictureGeometry.affine` joins them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from cache.errors import DataError
from trainer.augment import ImageAugment

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
class PictureGeometry:
    """Stored image (width, height) -> decoded at 1/reduction -> resized (w, h) -> window of `size` at `crop` ->
    flipped.

    All whole pixels, so `affine` is exact. A crop may begin outside the resized image; what is not covered is black.
    """

    stored: tuple[int, int]
    reduction: int
    resized: tuple[int, int]
    crop: tuple[int, int]
    size: tuple[int, int]
    flip: bool

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
        return out


def picture_geometry(stored: tuple[int, int], size: tuple[int, int], augment: ImageAugment) -> PictureGeometry:
    """How an image of `stored` (width, height) becomes one of `size`: at test time the smallest resize that covers
    `size`, times augment.resize; the crop keeps the bottom rows (the sky goes), as BEVDet and BEVDepth do."""
    scale = max(size[0] / stored[0], size[1] / stored[1]) * augment.resize
    resized = (max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale)))
    reduction = max(k for k in _DECODE if k == 1 or k * scale <= 1)
    crop = (round(augment.crop_x * (resized[0] - size[0])), resized[1] - size[1])
    return PictureGeometry(stored, reduction, resized, crop, size, augment.flip)


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


def _rows_to_skip(decoded: int, resized: int, crop: int) -> tuple[int, int]:
    """How many decoded rows, and the resized rows they make, need no resizing because the crop drops them.

    As many as fall on whole pixels of both, so that area averaging gives the same values for the rest. At test time,
    1600 x 900 to 704 x 256, that is a third of the work.
    """
    step = math.gcd(decoded, resized)
    units = max(crop, 0) * step // resized
    return units * decoded // step, units * resized // step


def normalisation(augments: list[ImageAugment]) -> tuple[np.ndarray, np.ndarray]:
    """gain, offset (N, 3) float32 for N images: gain * (RGB 0..255) + offset is the jittered image,
    ImageNet-normalised.

    Brightness multiplies the image, contrast spreads it about the data set's mean; nothing is clipped.
    """
    brightness = np.array([a.brightness for a in augments], np.float32)[:, None]
    contrast = np.array([a.contrast for a in augments], np.float32)[:, None]
    return brightness * contrast / (255 * STD_RGB), -contrast * MEAN_RGB / STD_RGB
