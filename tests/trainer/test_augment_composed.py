"""Claims about augmentations one after another and undone: points, boxes, velocities, calibration, depth labels.

One convention joins them all: A (4, 4) takes the canonical frame to the augmented one, a (2, 3) matrix the pixels of a
stored image to those of the input. What follows from the two matrices alone is what every part must do.
"""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.pictures import ImageAugment, PictureGeometry, picture_geometry
from trainer.augment import BevAugment, move_boxes, move_points
from trainer.camera_parts import move_depth

STORED, SIZE = (400, 225), (256, 96)
INTRINSIC = np.array([[310.0, 0.0, 203.0], [0.0, 312.0, 118.0], [0.0, 0.0, 1.0]])

turns = st.floats(-math.pi, math.pi)
shifts = st.tuples(*[st.floats(-2, 2)] * 3)
bevs = st.builds(BevAugment, turns, st.floats(0.8, 1.25), st.booleans(), st.booleans(), shifts)
images = st.builds(
    ImageAugment,
    resize=st.floats(0.8, 1.3),
    crop_x=st.floats(0, 1),
    flip=st.booleans(),
    rotation_rad=st.floats(-0.5, 0.5),
)
seeds = st.integers(0, 2**32 - 1)


def boxes_of(seed: int, n: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(-40, 40, (n, 3)), rng.uniform(0.5, 9, (n, 3)), rng.uniform(-3.1, 3.1, (n, 1))]
    return np.concatenate([*parts, rng.normal(0, 4, (n, 2))], axis=1).astype(np.float32)


def close_boxes(found: np.ndarray, wanted: np.ndarray) -> None:
    turn = np.abs(np.angle(np.exp(1j * (found[:, 6].astype(np.float64) - wanted[:, 6]))))
    assert turn.max() < 1e-5
    np.testing.assert_allclose(np.delete(found, 6, 1), np.delete(wanted, 6, 1), atol=5e-5)


def camera_pose(seed: int) -> np.ndarray:
    """(4, 4) camera -> canonical: a turn about z, then z forward becomes horizontal."""
    angle = np.random.default_rng(seed).uniform(-math.pi, math.pi)
    out = np.eye(4)
    forward = np.array([math.cos(angle), math.sin(angle), 0.02])
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    out[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    out[:3, 3] = [0.5 * forward[0], 0.5 * forward[1], -0.3]
    return out


def geometry_of(augment: ImageAugment) -> PictureGeometry:
    return picture_geometry(STORED, SIZE, augment)


@given(bevs, bevs, seeds)
@settings(max_examples=40, deadline=None)
def test_one_augmentation_after_another_is_their_product(first: BevAugment, second: BevAugment, seed: int) -> None:
    a, b, boxes = first.matrix(), second.matrix(), boxes_of(seed)
    close_boxes(move_boxes(move_boxes(boxes, a), b), move_boxes(boxes, b @ a))
    points = np.concatenate([boxes[:, :3], boxes[:, :2]], axis=1)
    np.testing.assert_allclose(move_points(move_points(points, a), b), move_points(points, b @ a), atol=5e-5)


@given(bevs, seeds)
@settings(max_examples=40, deadline=None)
def test_the_inverse_undoes_points_boxes_headings_and_velocities(augment: BevAugment, seed: int) -> None:
    a, boxes = augment.matrix(), boxes_of(seed)
    inverse = np.linalg.inv(a)
    np.testing.assert_allclose(inverse @ a, np.eye(4), atol=1e-12)
    close_boxes(move_boxes(move_boxes(boxes, a), inverse), boxes)
    points = np.concatenate([boxes[:, :3], boxes[:, :2]], axis=1)
    np.testing.assert_allclose(move_points(move_points(points, a), inverse), points, atol=5e-5)


@given(bevs, images, seeds)
@settings(max_examples=40, deadline=None)
def test_what_moved_is_seen_where_the_image_moved_it_at_the_old_depth(
    bev: BevAugment, image: ImageAugment, seed: int
) -> None:
    """The augmented point through the augmented calibration is the affine of the pixel before."""
    a, to_lidar, affine = bev.matrix(), camera_pose(seed), geometry_of(image).affine()
    rng = np.random.default_rng(seed)
    pixel, depth = rng.uniform([0, 0], STORED), rng.uniform(2, 50)
    point = to_lidar @ [*(np.linalg.inv(INTRINSIC) @ [*pixel, 1.0] * depth), 1.0]
    new_intrinsic = np.vstack([affine, [0, 0, 1]]) @ INTRINSIC  # as `models.pictures.draw_cameras` makes it
    seen = new_intrinsic @ (np.linalg.inv(a @ to_lidar) @ (a @ point))[:3]
    np.testing.assert_allclose(seen[2], depth, rtol=1e-9)
    np.testing.assert_allclose(seen[:2] / seen[2], affine @ [*pixel, 1.0], atol=1e-6)


@given(images, seeds)
@settings(max_examples=40, deadline=None)
def test_depth_labels_move_with_the_image_and_come_back_by_its_inverse(image: ImageAugment, seed: int) -> None:
    affine = geometry_of(image).affine()
    rng = np.random.default_rng(seed)
    labels = np.stack([np.zeros(50), *rng.uniform(0, STORED, (50, 2)).T, rng.uniform(2, 60, 50)], axis=1)
    labels = labels.astype(np.float32)
    wanted = labels[:, 1:3].astype(np.float64) @ affine[:, :2].T + affine[:, 2]
    inside = ((wanted > 1e-3) & (wanted < np.array(SIZE) - 1e-3)).all(axis=1)
    near = ((wanted > -1e-3) & (wanted < np.array(SIZE) + 1e-3)).all(axis=1)
    found = move_depth(labels, affine[None], SIZE, sample=2)
    assert inside.sum() <= len(found) <= near.sum()
    assert (found[:, 0] == 2).all()
    for label, place in zip(labels[inside], wanted[inside], strict=True):
        row = found[found[:, 3] == label[3]]
        assert np.abs(row[:, 1:3] - place).max() < 1e-3
        back = np.linalg.solve(affine[:, :2], row[0, 1:3].astype(np.float64) - affine[:, 2])
        assert np.abs(back - label[1:3]).max() < 2e-3


@given(images)
@settings(max_examples=40, deadline=None)
def test_the_window_of_the_resized_image_is_the_affine_of_the_stored_one(image: ImageAugment) -> None:
    geometry = geometry_of(image)
    scale = np.array(geometry.resized) / (np.array(geometry.decoded) * geometry.reduction)
    to_resized = np.array([[scale[0], 0, 0.5 * scale[0]], [0, scale[1], 0.5 * scale[1]], [0, 0, 1]])
    np.testing.assert_allclose(geometry.window() @ to_resized, geometry.affine(), atol=1e-9)


def test_a_turn_of_the_image_is_about_its_middle_and_counter_clockwise() -> None:
    straight, turned = geometry_of(ImageAugment()), geometry_of(ImageAugment(rotation_rad=0.1))
    middle = np.linalg.solve(straight.affine()[:, :2], np.array(SIZE) / 2 - straight.affine()[:, 2])
    np.testing.assert_allclose(turned.affine() @ [*middle, 1], np.array(SIZE) / 2)
    right = turned.affine() @ [middle[0] + 10, middle[1], 1] - np.array(SIZE) / 2
    assert right[0] > 0 > right[1]  # what was to the right is now above: v points down


def test_a_shift_of_nothing_leaves_the_very_bits() -> None:
    plain = BevAugment(0.3, 1.05, True, False)
    assert plain.matrix().tobytes() == BevAugment(0.3, 1.05, True, False, (0.0, 0.0, 0.0)).matrix().tobytes()
    assert (plain.matrix()[:3, 3] == 0).all()
    moved = BevAugment(0.3, 1.05, True, False, (0.5, -0.25, 0.1)).matrix()
    np.testing.assert_array_equal(moved[:3, 3], [-0.5, -0.25, 0.1])  # shifted, then mirrored
