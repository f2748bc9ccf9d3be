"""Many frames read at once give what they give one by one, in any order, and damage is told as when read alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from cache.errors import CorruptError, StoreError
from cache.frame import Frame, Pose, Poses
from cache.frame_fields import pose_part
from cache.layout import frames_place, teacher_place
from cache.roots import LocalRoot
from cache.spans import GAP, SPAN, spans
from cache.store import FrameStore, TeacherStore
from studies.benches.evaluate_data import made_up_split, write_stores

ORDER = [7, 0, 1, 2, 30, 29, 5, 5]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_stores(folder, made_up_split(40, 12, seed=6), "t")
    return folder


def test_spans_bring_every_member_once_across_small_gaps_in_bounded_reads() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.choice([1, 400, GAP, 3 * GAP, SPAN + 5], 40, p=[0.3, 0.4, 0.1, 0.15, 0.05])
        offsets = np.cumsum(lengths + random.choice([0, 512, GAP, GAP + 1], 40)) - lengths
        members = [(int(o), int(n), i) for i, (o, n) in enumerate(zip(offsets, lengths, strict=True))]
        found = spans(members[i] for i in random.permutation(40))
        assert sorted(number for _, _, numbers in found for number in numbers) == list(range(40))
        for start, end, numbers in found:
            inside = [members[number] for number in numbers]
            assert start == min(o for o, _, _ in inside) and end == max(o + n for o, n, _ in inside)
            assert end - start <= SPAN or len(numbers) == 1
            gaps = [b[0] - a[0] - a[1] for a, b in itertools.pairwise(inside)]
            assert all(0 <= gap <= GAP for gap in gaps)
    assert spans([]) == []


def test_bytes_of_many_frames_are_those_of_each(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, names = FrameStore(frames_place(cache)), ["racks", "frame", "gt_ids"]
    expected = [[store.read_bytes(row, name) for name in names] for row in ORDER]
    asked: list[int] = []
    read_range = LocalRoot.read_range

    def counted(root: LocalRoot, name: str, start: int, length: int) -> bytes:
        asked.append(length)
        return read_range(root, name, start, length)

    monkeypatch.setattr(LocalRoot, "read_range", counted)
    assert store.read_bytes_of(ORDER, names) == expected
    assert len(asked) <= 3
    assert store.read_bytes_of([], names) == []


def test_poses_truth_and_detections_of_many_frames_are_those_of_each(cache: Path) -> None:
    store, teacher = FrameStore(frames_place(cache)), TeacherStore(teacher_place(cache, "t"))
    ego, lidar = store.poses_of(ORDER)
    matrices = ego.matrices() @ lidar.matrices()
    truth, boxes, racks = store.truth_of(ORDER)
    said, offsets = teacher.detections_of(ORDER)
    for i, row in enumerate(ORDER):
        frame, one, detections = store.frame(row), store.truth(row), teacher.detections(row)
        assert (matrices[i] == frame.lidar_to_global()).all()  # to the bit
        assert (ego.matrices()[i] == frame.ego_to_global.matrix()).all()
        mine, of_racks = slice(boxes[i], boxes[i + 1]), slice(racks[i], racks[i + 1])
        for key, value in vars(one).items():
            np.testing.assert_array_equal(getattr(truth, key)[of_racks if key == "racks_global" else mine], value)
        for key, value in vars(detections).items():
            np.testing.assert_array_equal(getattr(said, key)[offsets[i] : offsets[i + 1]], value)
    assert len(racks) == len(boxes) == len(offsets) == len(ORDER) + 1
    none, no_boxes, no_racks = store.truth_of([])
    assert len(none) == 0 and no_boxes.tolist() == no_racks.tolist() == [0]


def test_matrices_of_poses_are_those_of_each_pose_to_the_bit() -> None:
    random = np.random.default_rng(1)
    poses = [Pose(random.uniform(-2000, 2000, 3), random.normal(size=4)) for _ in range(500)]
    assert (Poses.of(poses).matrices() == np.stack([pose.matrix() for pose in poses])).all()
    with pytest.raises(ValueError, match="quaternion of length 0"):
        Poses.of([Pose(np.zeros(3), np.zeros(4))]).matrices()


def test_the_poses_are_found_behind_the_cameras_or_not_at_all(cache: Path) -> None:
    store = FrameStore(frames_place(cache))
    data, whole = store.read_bytes(0, "frame"), store.frame(0).to_dict()
    found = pose_part(data)
    assert found is not None and "cameras" not in found
    assert {key: whole[key] for key in found} == found
    assert isinstance(Frame.from_dict({**whole, **found}), Frame)
    told = b'{"cameras":[{"x":1,"ego_to_global":{}}],"a":"\\",\\"ego_to_global\\":"}'
    first, alone = b'{"ego_to_global":{},"lidar_to_ego":{}}', b'{"a":1,"ego_to_global":{}}'
    for other in (b"", b"{}", told, first, alone, data[:-1]):
        assert pose_part(other) is None


def test_a_damaged_member_is_named_among_many(cache: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(cache, tmp_path / "c"))
    store = FrameStore(frames_place(folder))
    path = Path(frames_place(folder)) / "shards" / "00000.tar"
    position = [spec.name for spec in store.manifest.fields].index("gt_ids")
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(int(store.index.offset[5, position]) + 130)
        file.write(b"\xff\xff")
    with pytest.raises(CorruptError, match=f"{store.token(5)}.gt_ids.npy: checksum differs"):
        store.truth_of(range(10))
    store.truth_of([4, 6])
    with pytest.raises(StoreError, match="no field 'other'"):
        store.read_bytes_of([0, 1], ["other"])
