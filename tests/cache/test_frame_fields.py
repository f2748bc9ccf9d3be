"""The fields of a frame store for any rig: values, index entry, and what does not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cache.classes import DETECTION_CLASSES
from cache.errors import StoreError
from cache.frame import CAMERA_CHANNELS, Frame, GroundTruth, Pose
from cache.frame_fields import BOX_CONVENTION, frame_entry, frame_fields, frame_identity, frame_values
from cache.geometry import boxes_to_lidar
from cache.index import KIND_LABELLED, KIND_UNLABELLED
from tests.cache.stores import TOKENS, frame_of, truth_of

FRAME = frame_of(TOKENS[0])
IMAGES = {channel: channel.encode() for channel in CAMERA_CHANNELS}
DEPTH = np.zeros((7, 4), np.uint16)
POINTS = np.zeros((9, 5), np.float32)
TRUTH = truth_of(TOKENS[0])
assert TRUTH is not None


def test_a_camera_is_a_field_named_after_its_channel() -> None:
    names = [spec.name for spec in frame_fields(["LEFT_Eye", "CAM_1"], points=False)]
    assert names == ["frame", "left_eye", "cam_1", "gt_boxes", "gt_ids", "gt_lidar", "racks", "depth"]
    assert [spec.name for spec in frame_fields([], points=True)][-1] == "points"


@pytest.mark.parametrize("channel", ["cam front", "cam.front", "../x", ""])
def test_a_channel_that_is_no_field_name_is_refused(channel: str) -> None:
    with pytest.raises(StoreError, match="field name"):
        frame_fields([channel], points=False)


@pytest.mark.parametrize("points", [None, POINTS])
@pytest.mark.parametrize("truth", [None, TRUTH, GroundTruth.empty()], ids=["unlabelled", "boxes", "no boxes"])
def test_every_value_fits_its_declaration(points: np.ndarray | None, truth: GroundTruth | None) -> None:
    values = frame_values(FRAME, IMAGES, truth, DEPTH, points)
    fields = {spec.name: spec for spec in frame_fields(CAMERA_CHANNELS, points=points is not None)}
    expected = set(fields) - (set() if truth is not None else {"gt_boxes", "gt_ids", "gt_lidar", "racks"})
    assert set(values) == expected
    for name, value in values.items():
        assert fields[name].encode(value)
    assert values["frame"] == FRAME.to_dict() and values["cam_back"] == b"CAM_BACK"


def test_annotations_come_in_the_columns_that_the_reader_takes() -> None:
    values = frame_values(FRAME, IMAGES, TRUTH, DEPTH)
    assert np.array_equal(values["gt_boxes"], TRUTH.boxes_global, equal_nan=True)
    assert np.array_equal(values["gt_ids"][:, 0], TRUTH.class_ids)
    assert np.array_equal(values["gt_ids"][:, 2], TRUTH.num_lidar_pts)
    assert np.array_equal(
        values["gt_lidar"], boxes_to_lidar(TRUTH.boxes_global, FRAME.lidar_to_global()), equal_nan=True
    )


@pytest.mark.parametrize("images", [{}, {**IMAGES, "CAM_TOP": b"x"}, {**IMAGES, "cam_back": IMAGES["CAM_BACK"]}])
def test_images_of_other_cameras_than_the_frames_are_refused(images: dict[str, bytes]) -> None:
    with pytest.raises(StoreError, match=f"frame {TOKENS[0]}: images of .*, its cameras are"):
        frame_values(FRAME, images, TRUTH, DEPTH)


def test_the_entry_counts_boxes_by_class() -> None:
    labels = np.array([0, 3, 3, 9], np.int32)
    truth = dataclasses.replace(GroundTruth.empty(), class_ids=labels)
    entry = frame_entry(FRAME, truth, 10)
    assert entry.class_counts == (1, 0, 0, 2, 0, 0, 0, 0, 0, 1) and entry.kind == KIND_LABELLED
    assert (entry.token, entry.scene, entry.timestamp_us) == (FRAME.token, FRAME.scene_token, FRAME.timestamp_us)
    unlabelled = frame_entry(FRAME, None, 10)
    assert unlabelled.kind == KIND_UNLABELLED and sum(unlabelled.class_counts) == 0
    assert frame_entry(FRAME, GroundTruth.empty(), 3).kind == KIND_LABELLED  # annotated, with nothing in it


@pytest.mark.parametrize("label", [-1, 10])
def test_a_class_that_the_store_does_not_have_is_refused(label: int) -> None:
    truth = dataclasses.replace(GroundTruth.empty(), class_ids=np.array([0, label], np.int32))
    with pytest.raises(StoreError, match=rf"frame {TOKENS[0]}: class ids .*, expected 0\.\.9"):
        frame_entry(FRAME, truth, 10)


MOVED = Pose(np.array([0.0, 0, 1e-9]), np.array([1.0, 0, 0, 0]))


@pytest.mark.parametrize(
    "changes", [{"token": TOKENS[1]}, {"timestamp_us": 1}, {"ego_to_global": MOVED}, {"lidar_to_ego": MOVED}]
)
def test_the_digest_is_of_token_time_and_poses(changes: dict[str, object]) -> None:
    other: Frame = dataclasses.replace(FRAME, **changes)  # type: ignore[arg-type]
    assert frame_entry(other, None, 10).digest != frame_entry(FRAME, None, 10).digest


@pytest.mark.parametrize("changes", [{"cameras": ()}, {"split": "val"}, {"scene_name": "other"}])
def test_the_digest_is_of_nothing_else(changes: dict[str, object]) -> None:
    """A store of other image sizes, or without images, holds the same frames."""
    other: Frame = dataclasses.replace(FRAME, **changes)  # type: ignore[arg-type]
    assert frame_entry(other, TRUTH, 10).digest == frame_entry(FRAME, None, 10).digest


def test_the_identity_names_data_set_classes_and_convention() -> None:
    assert frame_identity("v1.0-mini", DETECTION_CLASSES) == {
        "dataset_version": "v1.0-mini",
        "classes": list(DETECTION_CLASSES),
        "box_convention": BOX_CONVENTION,
    }
