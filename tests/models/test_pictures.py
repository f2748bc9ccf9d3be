from __future__ import annotations

import functools
import itertools
import math

import cv2
import numpy as np
import pytest

from cache.errors import DataError
from models.pictures import MEAN_RGB, STD_RGB, ImageAugment, draw_picture, normalisation, picture_geometry

CASES = [
    (stored, size, ImageAugment(resize, crop, flip))
    for (stored, size), resize, crop, flip in itertools.product(
        [((400, 225), (256, 96)), ((1600, 900), (256, 96)), ((1600, 900), (704, 256)), ((200, 113), (256, 96))],
        [0.9, 1.0, 1.2],
        [0.0, 0.5, 1.0],
        [False, True],
    )
] + [
    (stored, size, ImageAugment(resize, crop, flip, rotation_rad=turn))
    for (stored, size), resize, crop, flip, turn in [
        (((400, 225), (256, 96)), 1.0, 0.5, False, 0.09),
        (((400, 225), (256, 96)), 1.2, 1.0, True, -0.09),
        (((1600, 900), (704, 256)), 0.9, 0.0, True, 0.3),
        (((200, 113), (256, 96)), 1.1, 0.0, False, -1.2),
    ]
]

STRAIGHT = [case for case in CASES if not case[2].rotation_rad]


def jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


def render(data: bytes, stored: tuple[int, int], size: tuple[int, int], augment: ImageAugment) -> np.ndarray:
    out = np.full((size[1], size[0], 3), 77, np.uint8)
    draw_picture(data, picture_geometry(stored, size, augment), out, "test")
    return out


@pytest.mark.parametrize(("stored", "size", "augment"), CASES, ids=str)
def test_a_spot_lands_where_the_affine_says(
    stored: tuple[int, int], size: tuple[int, int], augment: ImageAugment
) -> None:
    geometry = picture_geometry(stored, size, augment)
    affine = geometry.affine()
    target = np.array([0.4 * size[0], 0.6 * size[1]])  # choose the spot so that it is seen
    spot = np.linalg.solve(affine[:, :2], target - affine[:, 2])
    y, x = np.mgrid[: stored[1], : stored[0]]
    radius = 4 / math.hypot(*affine[:, 1])
    light = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * (radius / 2) ** 2))
    picture = np.repeat((light * 240).astype(np.uint8)[..., None], 3, axis=2)
    found = render(jpeg(picture), stored, size, augment).astype(np.float64).mean(axis=2)
    found[found < 12] = 0
    rows, cols = np.mgrid[: size[1], : size[0]] + 0.5  # edges at whole numbers: pixel 0 is centred at 0.5
    centre = np.array([(found * cols).sum(), (found * rows).sum()]) / found.sum()
    assert np.abs(centre - target).max() < 0.12


def test_test_time_geometry_covers_the_input_and_keeps_the_bottom() -> None:
    geometry = picture_geometry((1600, 900), (704, 256), ImageAugment())
    assert geometry.resized == (704, 396)  # BEVDepth: resize 0.44, crop (0, 140)
    assert geometry.crop == (0, 140)
    assert geometry.reduction == 2
    assert np.allclose(geometry.affine() @ [800 - 0.5, 899.5, 1], [352, 256])


def test_decoding_is_reduced_only_where_enough_pixels_remain() -> None:
    reductions = {
        w: picture_geometry((w, w * 9 // 16), (256, 96), ImageAugment()).reduction for w in (256, 400, 512, 1600, 4096)
    }
    assert reductions == {256: 1, 400: 1, 512: 2, 1600: 4, 4096: 8}


def drawn_slowly(data: bytes, stored: tuple[int, int], size: tuple[int, int], augment: ImageAugment) -> np.ndarray:
    """The obvious way: all of it decoded, resized, flipped to RGB, cut, mirrored."""
    geometry = picture_geometry(stored, size, augment)
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags[geometry.reduction])
    shrinks = geometry.resized[0] < picture.shape[1]
    picture = cv2.resize(picture, geometry.resized, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    room = [[size[1]] * 2, [size[0]] * 2, [0, 0]]
    picture = np.pad(picture[:, :, ::-1], room)
    x, y = geometry.crop[0] + room[1][0], geometry.crop[1] + room[0][0]
    picture = picture[y : y + size[1], x : x + size[0]]
    return picture[:, ::-1] if augment.flip else picture


@functools.cache
def noisy_jpeg(stored: tuple[int, int]) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (stored[1] // 5, stored[0] // 5, 3)).astype(np.uint8)
    return jpeg(cv2.resize(noise, stored, interpolation=cv2.INTER_NEAREST))


@pytest.mark.parametrize(("stored", "size", "augment"), STRAIGHT[4::6] + STRAIGHT[5::12], ids=str)
def test_drawing_equals_the_obvious_way(stored: tuple[int, int], size: tuple[int, int], augment: ImageAugment) -> None:
    expected = drawn_slowly(noisy_jpeg(stored), stored, size, augment)
    assert np.abs(render(noisy_jpeg(stored), stored, size, augment).astype(int) - expected).max() <= 1


def test_a_turned_window_shows_what_lies_beside_the_straight_one() -> None:
    """Only what the stored image has not is black: by the affine, pixel by pixel."""
    stored, size, augment = (400, 225), (256, 96), ImageAugment(1.3, 0.5, rotation_rad=0.3)
    white = jpeg(np.full((225, 400, 3), 255, np.uint8))
    found = render(white, stored, size, augment)[..., 0]
    affine = picture_geometry(stored, size, augment).affine()
    for v in range(0, 96, 5):
        for u in range(0, 256, 5):
            x, y = np.linalg.solve(affine[:, :2], np.array([u + 0.5, v + 0.5]) - affine[:, 2])
            margin = min(x + 0.5, 399.5 - x, y + 0.5, 224.5 - y)
            if abs(margin) > 1.5:
                assert (found[v, u] > 250) == (margin > 0), (u, v)
    assert found[0, 0] > 250 and found[0, -1] > 250  # the release leaves these corners black
    assert (found[-1] < 5).any()


def test_what_the_image_does_not_cover_is_black() -> None:
    white = jpeg(np.full((72, 128, 3), 255, np.uint8))
    found = render(white, (128, 72), (64, 32), ImageAugment(resize=0.5, crop_x=0.0))
    assert (found[:, :32][-18:] > 250).all()
    assert (found[:, 32:] == 0).all()
    assert (found[:14] == 0).all()


def test_colours_come_out_as_red_green_blue() -> None:
    red = np.zeros((72, 128, 3), np.uint8)
    red[..., 2] = 250  # OpenCV writes BGR
    found = render(jpeg(red), (128, 72), (64, 32), ImageAugment())
    assert found[..., 0].mean() > 240
    assert found[..., 1:].mean() < 8


def test_normalisation_is_image_net_after_jitter() -> None:
    gain, offset = normalisation([ImageAugment(), ImageAugment(brightness=1.2, contrast=0.7)])
    rgb = np.array([10.0, 120.0, 250.0])
    assert np.allclose(gain[0] * rgb + offset[0], (rgb / 255 - MEAN_RGB) / STD_RGB, atol=1e-6)
    assert np.allclose(gain[1] * rgb + offset[1], 0.7 * (1.2 * rgb / 255 - MEAN_RGB) / STD_RGB, atol=1e-6)


def test_bytes_that_do_not_decode_are_an_error_that_names_the_picture() -> None:
    with pytest.raises(DataError, match=r"frame x CAM_FRONT.*does not decode"):
        draw_picture(
            b"no jpeg",
            picture_geometry((128, 72), (64, 32), ImageAugment()),
            np.zeros((32, 64, 3), np.uint8),
            "frame x CAM_FRONT",
        )


def test_a_picture_of_another_size_than_its_calibration_is_refused() -> None:
    data = jpeg(np.zeros((36, 64, 3), np.uint8))
    with pytest.raises(DataError, match="64x36 pixels, its calibration says 128x72"):
        render(data, (128, 72), (128, 64), ImageAugment())
