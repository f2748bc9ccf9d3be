"""Camera images: checked, and stored as they are or at a reduced scale. OpenCV does the work, one thread a process."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cache.errors import DataError

JPEG_QUALITY = 92
_END_OF_IMAGE = b"\xff\xd9"


def read_jpeg_file(path: Path) -> bytes:
    """The file's bytes. Raises DataError where it is missing or is no complete JPEG.

    OpenCV fills the rest of a truncated JPEG with grey and says nothing, so the end marker is looked for here.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing camera image; restore it from the data set") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it from the data set") from None
    if not data.startswith(b"\xff\xd8") or _END_OF_IMAGE not in data[-1024:]:
        raise DataError(f"{path}: not a complete JPEG ({len(data)} bytes); restore it from the data set")
    return data


def stored_image(data: bytes, scale: float, size: tuple[int, int], path: Path) -> bytes:
    """The JPEG to store: `data` itself at scale 1, else area-averaged to round(size * scale) pixels.

    size is (width, height) by the tables; DataError where the picture does not decode or has another size. Damage
    inside the compressed data that still decodes is not seen: the decoder only warns of it.
    """
    flag = cv2.IMREAD_COLOR if scale != 1.0 else cv2.IMREAD_REDUCED_GRAYSCALE_8  # at scale 1 decoding is only the check
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if picture is None:
        raise DataError(f"{path}: the JPEG does not decode; restore it from the data set")
    expected = size if scale != 1.0 else (-(-size[0] // 8), -(-size[1] // 8))
    if picture.shape[1::-1] != expected:
        raise DataError(
            f"{path}: {'about ' if scale == 1.0 else ''}{picture.shape[1] * size[0] // expected[0]}x"
            f"{picture.shape[0] * size[1] // expected[1]} pixels, the tables say {size[0]}x{size[1]}; restore the file"
        )
    if scale == 1.0:
        return data
    small = cv2.resize(picture, scaled_size(size, scale), interpolation=cv2.INTER_AREA)
    ok, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not ok:
        raise DataError(f"{path}: could not be encoded again at scale {scale}")
    return encoded.tobytes()


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) in whole pixels at `scale`."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scaled_intrinsic(intrinsic: np.ndarray, size: tuple[int, int], scaled: tuple[int, int]) -> np.ndarray:
    """(3, 3) intrinsic for the resized image: pixel centres map as u' = (u + 0.5) s - 0.5, as area averaging does."""
    out = np.array(intrinsic, np.float64)
    for axis in range(2):
        s = scaled[axis] / size[axis]
        out[axis] *= s
        out[axis, 2] += 0.5 * s - 0.5
    return out
