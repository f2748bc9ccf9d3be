"""Camera images: damage is found, scaling keeps geometry."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cache.errors import DataError
from pipeline.images import read_jpeg_file, scaled_intrinsic, scaled_size, stored_image


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[40:44, 80:84] = 255  # a white square centred at u = 81.5, v = 41.5
    ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    path = tmp_path / "picture.jpg"
    path.write_bytes(data.tobytes())
    return path


def test_scale_one_keeps_the_bytes(jpeg: Path) -> None:
    data = read_jpeg_file(jpeg)
    assert stored_image(data, 1.0, (160, 90), jpeg) == jpeg.read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"not a picture" * 9, lambda d: d[2:]]
)
def test_a_file_that_is_no_complete_jpeg_is_named(jpeg: Path, damage) -> None:
    jpeg.write_bytes(damage(jpeg.read_bytes()))
    with pytest.raises(DataError, match=r"picture\.jpg: not a complete JPEG"):
        read_jpeg_file(jpeg)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_jpeg_that_does_not_decode_is_named(jpeg: Path, scale: float) -> None:
    data = b"\xff\xd8" + b"\x00" * 500 + b"\xff\xd9"
    with pytest.raises(DataError, match=r"picture\.jpg: the JPEG does not decode"):
        stored_image(data, scale, (160, 90), jpeg)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_another_size_than_the_tables_say_is_refused(jpeg: Path, scale: float) -> None:
    with pytest.raises(DataError, match=r"1[56]\dx\d\d pixels, the tables say 1600x900"):
        stored_image(read_jpeg_file(jpeg), scale, (1600, 900), jpeg)


def test_scaled_intrinsic_points_at_the_same_thing(jpeg: Path) -> None:
    scaled = scaled_size((160, 90), 0.5)
    small = cv2.imdecode(
        np.frombuffer(stored_image(read_jpeg_file(jpeg), 0.5, (160, 90), jpeg), np.uint8), cv2.IMREAD_GRAYSCALE
    )
    assert small.shape == (45, 80) == scaled[::-1]
    weights = np.where(small > 60, small.astype(float), 0)
    v, u = (weights.sum(axis) @ np.arange(weights.shape[1 - axis]) / weights.sum() for axis in (1, 0))
    intrinsic = np.array([[100.0, 0, 81.5], [0, 100.0, 41.5], [0, 0, 1]])  # the ray (0, 0, 1) hits the square's centre
    out = scaled_intrinsic(intrinsic, (160, 90), scaled)
    assert abs(out[0, 2] - u) < 0.05 and abs(out[1, 2] - v) < 0.05
    assert out[0, 0] == 50.0
