"""Poses, and the exact JSON round trip of frames and cameras."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.fields import FieldSpec
from cache.frame import CAMERA_CHANNELS, Camera, Detections, Frame, GroundTruth, Pose, rotation_matrix
from cache.own_frames import OwnFrame, token_of, write_frames
from cache.plan import Scene
from cache.store import FrameStore
from tests.cache.stores import TOKENS, frame_of

FINITE = st.floats(allow_nan=False, allow_infinity=False)
FRAME_FIELD = FieldSpec("frame", "json")


def vectors(size: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(FINITE, min_size=size, max_size=size).map(lambda v: np.array(v, np.float64))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float64 and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_a_quaternion_turns_as_its_axis_and_angle_say() -> None:
    half = math.radians(30) / 2
    turn = rotation_matrix(np.array([math.cos(half), 0, 0, math.sin(half)]))
    np.testing.assert_allclose(turn @ [1, 0, 0], [math.cos(2 * half), math.sin(2 * half), 0], atol=1e-15)
    about_x = rotation_matrix(np.array([1.0, 1.0, 0, 0]))  # 90 degrees, not of unit length
    np.testing.assert_allclose(about_x @ [0, 1, 0], [0, 0, 1], atol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_rotations_are_proper_and_agree_with_the_devkits_library(seed: int) -> None:
    quaternion = np.random.default_rng(seed).normal(size=4)
    matrix = rotation_matrix(quaternion)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(matrix) == pytest.approx(1)
    expected = pytest.importorskip("pyquaternion").Quaternion(quaternion).rotation_matrix
    np.testing.assert_allclose(matrix, expected, atol=1e-14)


@pytest.mark.parametrize("bad", [[0, 0, 0, 0], [math.nan, 0, 0, 1]])
def test_a_quaternion_without_direction_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="quaternion"):
        rotation_matrix(np.array(bad))


def test_a_pose_turns_first_and_moves_then() -> None:
    pose = Pose(np.array([10.0, 20.0, 30.0]), np.array([1.0, 0, 0, 1.0]))  # 90 degrees to the left
    matrix = pose.matrix()
    assert matrix.dtype == np.float64 and matrix[3].tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(matrix @ [1, 0, 0, 1], [10, 21, 30, 1], atol=1e-14)


def test_lidar_to_global_goes_through_the_ego() -> None:
    frame = dataclasses.replace(
        frame_of(TOKENS[0]),
        lidar_to_ego=Pose(np.array([1.0, 0, 2]), np.array([1.0, 0, 0, 0])),
        ego_to_global=Pose(np.array([100.0, 200, 0]), np.array([1.0, 0, 0, 1])),
    )
    np.testing.assert_allclose(frame.lidar_to_global() @ [1, 0, 0, 1], [100, 202, 2, 1], atol=1e-12)


@given(
    vectors(3), vectors(4), st.lists(vectors(3), min_size=3, max_size=3), st.lists(vectors(4), min_size=4, max_size=4)
)
def test_any_float64_survives_the_json_field(
    translation: np.ndarray, rotation: np.ndarray, intrinsic: list[np.ndarray], extrinsic: list[np.ndarray]
) -> None:
    pose = Pose(translation, rotation)
    camera = Camera("CAM_BACK", 1600, 900, 2**52 + 1, np.stack(intrinsic), np.stack(extrinsic))
    frame = Frame("f" * 32, "e" * 32, "scene-0916", "val", 1_533_201_470_448_696, pose, pose, (camera,))
    again = Frame.from_dict(FRAME_FIELD.decode(FRAME_FIELD.encode(frame.to_dict()), {}, "test"))
    for found in (again.ego_to_global, again.lidar_to_ego):
        assert same_bits(found.translation, translation) and same_bits(found.rotation, rotation)
    assert same_bits(again.cameras[0].intrinsic, camera.intrinsic)
    assert same_bits(again.cameras[0].lidar_to_camera, camera.lidar_to_camera)
    assert again.cameras[0].timestamp_us == 2**52 + 1


def test_every_field_of_frame_and_camera_comes_back_in_its_place() -> None:
    frame = frame_of(TOKENS[2])
    again = Frame.from_dict(json.loads(json.dumps(frame.to_dict())))
    for found, expected in [(again, frame), *zip(again.cameras, frame.cameras, strict=True)]:
        for field in dataclasses.fields(expected):
            value = getattr(expected, field.name)
            if isinstance(value, str | int):
                assert getattr(found, field.name) == value, field.name
    assert [camera.channel for camera in again.cameras] == list(CAMERA_CHANNELS)


def test_float32_calibration_is_stored_at_its_float64_value() -> None:
    camera = dataclasses.replace(frame_of(TOKENS[0]).cameras[0], intrinsic=np.full((3, 3), 0.1, np.float32))
    again = Camera.from_dict(json.loads(json.dumps(camera.to_dict())))
    assert same_bits(again.intrinsic, np.full((3, 3), 0.1, np.float32).astype(np.float64))


def test_detections_above_a_score_keep_order_and_the_bound_itself() -> None:
    boxes = np.arange(36, dtype=np.float32).reshape(4, 9)
    kept = Detections(boxes, np.array([0.9, 0.2, 0.5, 0.4], np.float32), np.arange(4, dtype=np.int32)).above(0.5)
    assert len(kept) == 2 and kept.labels.tolist() == [0, 2] and kept.boxes_lidar[:, 0].tolist() == [0, 18]


def test_empty_records_have_the_declared_shapes_and_dtypes() -> None:
    truth, none = GroundTruth.empty(), Detections.empty()
    assert len(truth) == len(none) == 0
    assert truth.boxes_global.shape == (0, 12) and truth.boxes_global.dtype == np.float64
    assert truth.racks_global.shape == (0, 10) and truth.class_ids.dtype == np.int32
    assert none.boxes_lidar.shape == (0, 9) and none.boxes_lidar.dtype == none.scores.dtype == np.float32
    assert none.labels.dtype == np.int32


def test_a_frame_between_key_frames_says_so_and_a_key_frame_says_what_it_always_said() -> None:
    pose = Pose(np.zeros(3), np.array([1.0, 0, 0, 0]))
    key = Frame("0" * 32, "1" * 32, "scene-0001", "train", 5, pose, pose, ())
    between = dataclasses.replace(key, keyframe=False)
    assert "keyframe" not in key.to_dict() and between.to_dict() == {**key.to_dict(), "keyframe": False}
    assert Frame.from_dict(key.to_dict()).keyframe and not Frame.from_dict(between.to_dict()).keyframe


def test_own_data_may_have_frames_between_key_frames(tmp_path: Path) -> None:
    """Of frames without annotations, the frame itself says which are for the metric."""
    pose = Pose(np.zeros(3), np.array([1.0, 0, 0, 0]))
    tokens = [token_of(name) for name in ("labelled", "key", "between")]

    def read(token: str) -> OwnFrame:
        frame = Frame(token, token_of("s"), "s", "train", tokens.index(token), pose, pose, (), token != tokens[2])
        return OwnFrame(frame, truth=GroundTruth.empty() if token == tokens[0] else None)

    names = {"dataset_version": "own-1", "classes": ["car"], "cameras": []}
    write_frames(tmp_path, **names, scenes=[(Scene(token_of("s"), "s", "train"), tokens)], read=read)
    store = FrameStore(tmp_path)
    assert [store.is_labelled(row) for row in range(3)] == [True, False, False]
    assert store.key_rows() == store.key_rows("train") == [0, 1]
