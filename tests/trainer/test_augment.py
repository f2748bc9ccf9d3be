from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from cache.errors import ConfigError
from models.config import parse_config
from trainer.augment import (
    BevAugment,
    BevAugmentConfig,
    ImageAugmentConfig,
    frame_augment,
    move_boxes,
    move_points,
    no_augment,
)

BEV = BevAugmentConfig(flip_x=0.5, flip_y=0.5, rotation_deg=22.5, scale=(0.95, 1.05))
IMAGE = ImageAugmentConfig(resize=(0.9, 1.2), crop_x=True, flip=0.5, brightness=0.2, contrast=0.3)
ALL = [
    BevAugment(angle, scale, fx, fy)
    for angle, scale, fx, fy in itertools.product((0.0, 0.3, -2.0), (1.0, 1.1), (False, True), (False, True))
]


def some_boxes(seed: int = 0, n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(-40, 40, (n, 3)), rng.uniform(0.5, 9, (n, 3))], axis=1)
    return np.concatenate([boxes, rng.uniform(-3.1, 3.1, (n, 1)), rng.normal(0, 4, (n, 2))], axis=1).astype(np.float32)


def corners(box: np.ndarray) -> np.ndarray:
    """(8, 3), the four of the front first."""
    x, y, z, length, width, height, yaw = box[:7].astype(np.float64)
    out = []
    for along, left, up in itertools.product((0.5, -0.5), (0.5, -0.5), (0.5, -0.5)):
        dx, dy = along * length, left * width
        out.append(
            [x + dx * math.cos(yaw) - dy * math.sin(yaw), y + dx * math.sin(yaw) + dy * math.cos(yaw), z + up * height]
        )
    return np.array(out)


@pytest.mark.parametrize("augment", ALL, ids=str)
def test_corners_of_a_moved_box_are_the_moved_corners_and_its_front_stays_the_front(augment: BevAugment) -> None:
    a = augment.matrix()
    for before, after in zip(some_boxes(), move_boxes(some_boxes(), a), strict=True):
        wanted = corners(before) @ a[:3, :3].T + a[:3, 3]
        found = corners(after)
        for half in (slice(0, 4), slice(4, 8)):  # mirrored boxes list left and right the other way round
            distance = np.linalg.norm(found[half][:, None] - wanted[half][None], axis=-1)
            assert distance.min(axis=1).max() < 1e-4
            assert distance.min(axis=0).max() < 1e-4


@pytest.mark.parametrize("augment", ALL, ids=str)
def test_velocity_is_the_derivative_of_the_moved_position(augment: BevAugment) -> None:
    a, boxes = augment.matrix(), some_boxes()
    later = boxes.copy()
    later[:, :2] += boxes[:, 7:9]
    found = move_boxes(boxes, a)[:, 7:9]
    assert np.allclose(found, (move_boxes(later, a) - move_boxes(boxes, a))[:, :2], atol=1e-4)


def test_mirroring_and_turning_change_the_yaw_as_in_the_papers() -> None:
    box = np.array([[10, 5, 0, 4, 2, 1.5, 0.4, 3, 1]], np.float32)
    assert move_boxes(box, BevAugment(flip_x=True).matrix())[0, 6] == pytest.approx(math.pi - 0.4, abs=1e-6)
    assert move_boxes(box, BevAugment(flip_y=True).matrix())[0, 6] == pytest.approx(-0.4, abs=1e-6)
    assert move_boxes(box, BevAugment(rotation_rad=0.5).matrix())[0, 6] == pytest.approx(0.9, abs=1e-6)
    assert move_boxes(box, BevAugment(scale=1.1).matrix())[0, 3:6] == pytest.approx([4.4, 2.2, 1.65], abs=1e-5)


def test_identity_leaves_the_very_bits_and_unknown_velocity_stays_unknown() -> None:
    boxes = some_boxes()
    boxes[3, 7:9] = np.nan
    assert np.array_equal(move_boxes(boxes, no_augment(6).bev.matrix()), boxes, equal_nan=True)
    assert np.isnan(move_boxes(boxes, ALL[-1].matrix())[3, 7:9]).all()
    assert move_boxes(np.zeros((0, 9), np.float32), ALL[-1].matrix()).shape == (0, 9)


def test_points_move_as_box_centres_do_and_keep_intensity_and_time() -> None:
    boxes, a = some_boxes(), ALL[-1].matrix()
    points = np.concatenate([boxes[:, :3], np.arange(24).reshape(12, 2)], axis=1).astype(np.float32)
    moved = move_points(points, a)
    assert np.allclose(moved[:, :3], move_boxes(boxes, a)[:, :3], atol=1e-4)
    assert np.array_equal(moved[:, 3:], points[:, 3:])
    assert np.array_equal(move_points(points, np.eye(4)), points)


def test_parameters_are_a_function_of_seed_epoch_and_position() -> None:
    one = frame_augment(BEV, IMAGE, 6, seed=3, epoch=2, position=17)
    assert one == frame_augment(BEV, IMAGE, 6, seed=3, epoch=2, position=17)
    others = [frame_augment(BEV, IMAGE, 6, *key) for key in ((4, 2, 17), (3, 3, 17), (3, 2, 18))]
    assert all(other.bev != one.bev and other.images != one.images for other in others)
    assert len(set(one.images)) == 6


def test_turning_one_option_off_leaves_the_other_draws_as_they_were() -> None:
    full = frame_augment(BEV, IMAGE, 6, 0, 0, 0)
    less = frame_augment(BevAugmentConfig(rotation_deg=22.5), IMAGE, 6, 0, 0, 0)
    assert less.bev.rotation_rad == full.bev.rotation_rad
    assert less.images == full.images
    assert less.bev.scale == 1.0
    assert not less.bev.flip_x
    assert not less.bev.flip_y


def test_draws_fill_their_ranges() -> None:
    drawn = [frame_augment(BEV, IMAGE, 6, 0, epoch, position) for epoch in range(4) for position in range(100)]
    angles = np.rad2deg([d.bev.rotation_rad for d in drawn])
    scales = np.array([d.bev.scale for d in drawn])
    resizes = np.array([i.resize for d in drawn for i in d.images])
    assert angles.min() >= -22.5
    assert angles.max() <= 22.5
    assert angles.std() == pytest.approx(45 / math.sqrt(12), rel=0.1)
    assert 0.95 <= scales.min() < 0.96
    assert 1.04 < scales.max() <= 1.05
    assert 0.9 <= resizes.min() < 0.91
    assert 1.19 < resizes.max() <= 1.2
    assert np.mean([d.bev.flip_x for d in drawn]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([d.bev.flip_x == d.bev.flip_y for d in drawn]) == pytest.approx(0.5, abs=0.1)


def test_later_options_leave_the_draws_of_earlier_ones_as_they_were() -> None:
    plain = frame_augment(BEV, IMAGE, 6, 1, 2, 3)
    bev = BEV.model_copy(update={"translation_std_m": (0.5, 0.5, 0.0)})
    image = IMAGE.model_copy(update={"rotation_deg": 5.4})
    full = frame_augment(bev, image, 6, 1, 2, 3)
    assert dataclasses.replace(full.bev, shift_m=(0.0, 0.0, 0.0)) == plain.bev
    assert tuple(dataclasses.replace(i, rotation_rad=0.0) for i in full.images) == plain.images
    assert full.bev.shift_m[0] and full.bev.shift_m[1] and full.bev.shift_m[2] == 0
    drawn = [frame_augment(bev, image, 6, 0, 0, position) for position in range(300)]
    assert np.std([d.bev.shift_m[0] for d in drawn]) == pytest.approx(0.5, rel=0.1)
    turns = np.rad2deg([i.rotation_rad for d in drawn for i in d.images])
    assert np.abs(turns).max() <= 5.4 and turns.std() == pytest.approx(10.8 / math.sqrt(12), rel=0.05)


def test_impossible_ranges_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="scale"):
        parse_config(BevAugmentConfig, {"scale": [1.1, 0.9]}, "here")
    with pytest.raises(ConfigError, match="translation_std_m"):
        parse_config(BevAugmentConfig, {"translation_std_m": [0.5, -0.5, 0]}, "here")
    with pytest.raises(ConfigError, match="flip"):
        parse_config(ImageAugmentConfig, {"flip": 1.5}, "here")
