from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import CorruptError, StoreError
from cache.store import FrameStore, TeacherStore
from models.build import build_detector
from models.detector import Batch
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, frame_values, write_frames
from trainer.augment import (
    BevAugmentConfig,
    FrameAugment,
    ImageAugmentConfig,
    frame_augment,
    move_boxes,
    move_points,
    no_augment,
)
from trainer.batches import BatchBuilder, Needs, model_needs
from trainer.said_reader import SaidReader, Wanted
from trainer.teachers import TeachersReader

BEV = BevAugmentConfig(flip_x=0.5, flip_y=0.5, rotation_deg=40, scale=(0.9, 1.1), translation_std_m=(0.5, 0.5, 0.2))
IMAGE = ImageAugmentConfig(resize=(0.8, 1.3), crop_x=True, flip=0.5, brightness=0.2, contrast=0.2, rotation_deg=5.4)
SIZE = (64, 32)


def augments(rows: list[int], seed: int = 0) -> list[FrameAugment]:
    return [frame_augment(BEV, IMAGE, 6, seed, 0, row) for row in rows]


@pytest.fixture(scope="module")
def frames(cache: Path) -> FrameStore:
    return FrameStore(cache / "frames")


def lifted(batch: Batch) -> torch.Tensor:
    """Depth points (K, 4) of the batch brought back to the augmented canonical frame, as a camera model lifts them."""
    assert batch.depth_points is not None and batch.intrinsics is not None and batch.camera_to_lidar is not None
    image = batch.depth_points[:, 0].long()
    intrinsic = batch.intrinsics.flatten(0, 1)[image].double()
    camera_to_lidar = batch.camera_to_lidar.flatten(0, 1)[image].double()
    u, v, d = batch.depth_points[:, 1:].double().unbind(dim=1)
    rays = torch.linalg.solve(intrinsic, torch.stack([u * d, v * d, d], dim=1)[..., None])
    return (camera_to_lidar[:, :3, :3] @ rays)[..., 0] + camera_to_lidar[:, :3, 3]


@pytest.mark.parametrize("seed", range(4))
def test_depth_points_lift_onto_the_augmented_cloud(frames: FrameStore, seed: int) -> None:
    rows = [0, 2, 4]
    matrices = [a.bev.matrix() for a in augments(rows, seed)]
    batch, _ = BatchBuilder(frames, Needs(image_size=SIZE, depth=True)).build(rows, augments(rows, seed))
    found = lifted(batch)
    sample = batch.depth_points[:, 0].long() // 6
    assert len(found) > 300
    assert set(sample.tolist()) == {0, 1, 2}
    for b, (row, matrix) in enumerate(zip(rows, matrices, strict=True)):
        cloud = torch.from_numpy(move_points(frames.points(row), matrix)[:, :3]).double()
        nearest = torch.cdist(found[sample == b], cloud).min(dim=1).values
        assert nearest.max() < 0.08  # 1/32 pixel at 50 m, and centimetres


def test_depth_points_lie_inside_their_images(frames: FrameStore) -> None:
    rows = list(range(6))
    batch, _ = BatchBuilder(frames, Needs(image_size=SIZE, depth=True)).build(rows, augments(rows))
    points = batch.depth_points
    assert points.dtype == torch.float32
    assert points[:, 0].min() >= 0
    assert points[:, 0].max() < 36
    assert (points[:, 1] >= 0).all() and (points[:, 1] < SIZE[0]).all()
    assert (points[:, 2] >= 0).all() and (points[:, 2] < SIZE[1]).all()


def test_boxes_that_nothing_hit_are_left_out_and_the_others_move_with_the_cloud(frames: FrameStore) -> None:
    rows = [0, 1, 2]
    batch, _ = BatchBuilder(frames, Needs(points=True, labels=True)).build(rows, augments(rows))
    for row, augment, boxes, labels, points in zip(
        rows, augments(rows), batch.boxes, batch.labels, batch.points, strict=True
    ):
        ids, matrix = frames.read(row, "gt_ids"), augment.bev.matrix()
        seen = ids[:, 2] + ids[:, 3] > 0
        assert np.array_equal(boxes.numpy(), move_boxes(frames.boxes_lidar(row)[seen], matrix), equal_nan=True)
        assert labels.tolist() == ids[seen, 0].tolist()
        assert np.array_equal(points.numpy(), move_points(frames.points(row), matrix))
        assert labels.dtype == torch.int64
    assert [len(boxes) for boxes in batch.boxes] == [4, 0, 2]  # of 5, 0, 3: one each was hit by nothing


def test_test_time_images_are_the_stored_ones_resized(frames: FrameStore) -> None:
    batch, _ = BatchBuilder(frames, Needs(image_size=(128, 72))).build([0], [no_augment(6)])
    assert batch.images.shape == (1, 6, 3, 72, 128)
    assert batch.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    camera = frames.frame(0).cameras[1]
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # centres at whole numbers -> edges at whole numbers
    assert np.allclose(batch.intrinsics[0, 1].numpy(), shift @ camera.intrinsic, atol=1e-4)
    assert np.allclose(batch.camera_to_lidar[0, 1].numpy(), np.linalg.inv(camera.lidar_to_camera), atol=1e-5)
    assert torch.equal(batch.bev_augmentation, torch.eye(4, dtype=torch.float64)[None])


def test_only_what_is_needed_is_there(frames: FrameStore) -> None:
    lidar, cells = BatchBuilder(frames, model_needs(build_detector(TINY_TEACHER))).build([0], [no_augment(6)])
    assert cells is None
    assert lidar.images is None and lidar.depth_points is None and lidar.points is not None
    camera, _ = BatchBuilder(frames, model_needs(build_detector(TINY_STUDENT))).build([0], [no_augment(6)])
    assert camera.points is None and camera.depth_points is None and camera.images is not None
    assert camera.images.shape[-2:] == (32, 64)
    assert camera.boxes == []


def test_teacher_cells_are_those_of_the_frames_in_order(cache: Path, frames: FrameStore) -> None:
    teacher = TeacherStore(cache / "teachers" / "demo")
    reader = SaidReader(teacher, frames, Wanted(cells=True))
    both = TeachersReader({"demo": reader}, {"demo": np.arange(len(frames))})
    _, said = BatchBuilder(frames, Needs(points=True), both).build([2, 1, 0], augments([2, 1, 0]))
    cells = said["demo"].cells
    assert cells.selectors == ("gaussian", "dense")
    samples = cells.samples()
    for b, row in enumerate((2, 1, 0)):
        stored = teacher.cells(row)
        assert np.array_equal(cells.index[samples == b].numpy(), stored.index)
        assert np.array_equal(cells.values[samples == b].numpy(), stored.values)
        assert np.array_equal(cells.weights[samples == b].numpy(), stored.weights)
    assert cells.offsets.tolist()[0] == 0
    assert cells.offsets.tolist()[-1] == len(samples)


def test_a_batch_does_not_depend_on_its_neighbours(frames: FrameStore) -> None:
    builder = BatchBuilder(frames, Needs(image_size=SIZE, depth=True, labels=True))
    both, _ = builder.build([3, 5], augments([3, 5]))
    alone, _ = builder.build([5], augments([5]))
    assert torch.equal(both.images[1], alone.images[0])
    mine = both.depth_points[both.depth_points[:, 0] >= 6]
    assert torch.equal(mine[:, 1:], alone.depth_points[:, 1:])
    assert torch.equal(mine[:, 0] - 6, alone.depth_points[:, 0])


def test_a_store_without_clouds_is_refused_naming_the_flag(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2, points=False)
    store = FrameStore(tmp_path / "frames")
    with pytest.raises(StoreError, match=r"has no points.*cache-frames --points"):
        BatchBuilder(store, Needs(points=True)).require([0, 1])


def test_a_damaged_shard_is_an_error_that_names_the_frame(tmp_path: Path, cache: Path) -> None:
    shutil.copytree(cache / "frames", tmp_path / "frames")
    store = FrameStore(tmp_path / "frames")
    shard = tmp_path / "frames" / "shards" / "00000.tar"
    data = bytearray(shard.read_bytes())
    position = int(store.index.offset[1, store._fields["cam_back"][0]]) + 50
    data[position] ^= 0xFF
    shard.chmod(0o644)
    shard.write_bytes(data)
    with pytest.raises(CorruptError, match=store.tokens[1] + r"\.cam_back\.jpg"):
        BatchBuilder(store, Needs(image_size=SIZE)).build([0, 1], augments([0, 1]))


def test_an_unforeseen_error_says_which_frame_it_was(frames: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FrameStore, row: int) -> np.ndarray:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(FrameStore, "points", broken)
    with pytest.raises(RuntimeError) as caught:
        BatchBuilder(frames, Needs(points=True)).build([4], augments([4]))
    assert frames.tokens[4] in "".join(caught.value.__notes__)


def test_synthetic_frames_differ() -> None:
    one, two = (frame_values(i, (64, 36), True, 5, "train", 0) for i in range(2))
    assert not np.array_equal(one["gt_lidar"], two["gt_lidar"])
