"""From stores the metric is what it is in memory, to the bit: any portions, subsets and settings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.errors import BevcaskError, CorruptError, DataError
from cache.frame import Detections
from cache.layout import frames_place, teacher_place
from cache.store import FrameStore, TeacherStore
from evaluation import array_metric, official, store_arrays
from evaluation.metric_config import MetricConfig
from evaluation.store_arrays import evaluate_teacher, in_threads
from evaluation.subsets import Subset
from studies.benches.evaluate_data import Split, made_up_split, write_stores
from studies.benches.odd_worlds import largest_difference


@pytest.fixture(scope="module")
def split() -> Split:
    return made_up_split(50, 30, seed=8)


@pytest.fixture(scope="module")
def cache(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_stores(folder, split, "t")
    return folder


def stores(cache: Path) -> tuple[FrameStore, TeacherStore]:
    return FrameStore(frames_place(cache)), TeacherStore(teacher_place(cache, "t"))


@pytest.mark.parametrize("portion", [256, 7, 1])
@pytest.mark.parametrize(
    ("subset", "config"),
    [
        (Subset(), MetricConfig()),
        (Subset(distance=(5.0, 30.0), classes=("car", "pedestrian"), visibility=(1, 4)), MetricConfig()),
        (Subset(), MetricConfig(dist_ths=(1.0, 3.0), dist_th_tp=3.0, min_recall=0.2)),
    ],
    ids=["whole", "subset", "settings"],
)
def test_stores_score_as_their_records_do(
    cache: Path, split: Split, subset: Subset, config: MetricConfig, portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, teacher = stores(cache)
    rows = store.key_rows("val")
    expected = array_metric.evaluate(split.frames, split.truth, split.detections, config=config, subset=subset)
    monkeypatch.setattr(store_arrays, "PORTION", portion)
    found = evaluate_teacher(store, rows, teacher, rows, config=config, subset=subset)
    assert found.to_dict() == expected.to_dict() and found.mAP > 0.02
    some = [40, 3, 4, 5, 17]
    expected = array_metric.evaluate(
        [split.frames[i] for i in some],
        [split.truth[i] for i in some],
        {split.frames[i].token: split.detections[split.frames[i].token] for i in some},
        config=config,
        subset=subset,
    )
    assert evaluate_teacher(store, some, teacher, some, config=config, subset=subset).to_dict() == expected.to_dict()


def test_stores_score_as_the_devkit(cache: Path, split: Split) -> None:
    store, teacher = stores(cache)
    rows = store.key_rows("val")
    theirs = official.evaluate(split.frames, split.truth, split.detections)
    assert largest_difference(evaluate_teacher(store, rows, teacher, rows), theirs) <= 1e-12


def test_too_many_boxes_and_boxes_that_are_not_sound_are_named(tmp_path: Path) -> None:
    split = made_up_split(5, 8, seed=9)
    token = split.frames[3].token
    one = split.detections[token]
    crowd = Detections(*(np.repeat(column, 70, axis=0) for column in vars(one).values()))
    flat = replace(one, boxes_lidar=np.where(np.arange(9) == 4, 0.0, one.boxes_lidar).astype(np.float32))
    for number, (said, message) in enumerate(
        [(crowd, f"sample {token}: 560 boxes, the metric allows 500"), (flat, f"{token}: box 0 has a size that is not")]
    ):
        folder = tmp_path / str(number)
        write_stores(folder, replace(split, detections={**split.detections, token: said}), "t")
        store, teacher = stores(folder)
        with pytest.raises(DataError, match=message):
            evaluate_teacher(store, range(5), teacher, range(5))


def test_a_damaged_store_ends_it_with_the_files_name(cache: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cache, tmp_path / "c"))
    path = next((Path(teacher_place(folder, "t")) / "shards").glob("*.tar"))
    path.chmod(0o644)
    path.write_bytes(b"\0" * path.stat().st_size)
    store, teacher = stores(folder)
    with pytest.raises(CorruptError, match=r"00000\.tar: \w+\.boxes\.npy: checksum differs"):
        evaluate_teacher(store, range(50), teacher, range(50))


def test_the_first_part_that_fails_ends_the_others() -> None:
    done: list[int] = []

    def work(part: slice) -> None:
        if part.start == 3:
            raise DataError("three")
        done.append(part.start)

    with pytest.raises(BevcaskError, match="three"):
        in_threads(work, (slice(i, i + 1) for i in range(20_000)))
    assert 0 in done and len(done) < 20_000
    done.clear()
    in_threads(lambda part: done.append(part.start), iter([slice(1), slice(2, 3)]))
    assert len(done) == 2
