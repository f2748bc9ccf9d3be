"""`cache-frames --labelled-scenes`: annotations of some training scenes alone; all else of the others stays."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest

from cache.errors import ConfigError, CorruptError, FingerprintError
from cache.index import KIND_UNLABELLED
from cache.manifest import Manifest
from cache.plan import Scene
from cache.roots import open_root
from cache.store import FrameStore, TeacherStore
from pipeline.extend import extend_frames
from pipeline.frames import FrameOptions, cache_frames
from pipeline.tables import DataSet, labelled_names
from pipeline.teacher import cache_teacher
from studies.commands.command_line import scenes_of
from studies.scoring import evaluate_source
from studies.training import train_run

VERSION = "v1.0-mini"
ANNOTATIONS = ("gt_boxes", "gt_ids", "gt_lidar", "racks")
SOME = FrameOptions(image_scale=0.1, points=True, sweeps=1, labelled_scenes=1)
ALL = FrameOptions(image_scale=0.1, points=True, sweeps=1)


@pytest.fixture(scope="module")
def partly(simulated_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of two training scenes annotated, and a val scene; the teacher store `t`. Read only."""
    cache = tmp_path_factory.mktemp("partly")
    cache_frames(simulated_root, VERSION, cache, options=SOME, workers=1)
    cache_teacher(cache, "t", teacher="own", checkpoint=weights, workers=1)
    return cache


def data_of(splits: dict[str, str], *, annotated: bool = True) -> DataSet:
    scenes = tuple(Scene(f"token-{name}", name, split, "") for name, split in splits.items())
    return DataSet("v1.0-trainval", scenes, ((),) * len(scenes), annotated)


TEN = {f"scene-{i:04d}": "train" for i in range(10)} | {"scene-0100": "val", "mine": "custom"}


def test_a_draw_is_of_training_scenes_the_same_every_time_and_in_every_larger_one() -> None:
    draws = [labelled_names(data_of(TEN), count) for count in range(1, 12)]
    assert [len(draw) for draw in draws] == list(range(1, 12))
    assert all(set(few) < set(more) for few, more in itertools.pairwise(draws))
    assert draws[4] == labelled_names(data_of(dict(reversed(TEN.items()))), 5) == tuple(sorted(draws[4]))
    assert "scene-0100" not in draws[-1] and "mine" in draws[-1]
    assert draws[4] != tuple(sorted(TEN))[:5]  # not those that were recorded first


@pytest.mark.parametrize("count", [0, -1, 12])
def test_a_count_that_the_data_have_not_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"--labelled-scenes {count}: expected 1 to 11, the scenes of training"):
        labelled_names(data_of(TEN), count)


def test_names_are_checked_against_the_training_scenes() -> None:
    assert labelled_names(data_of(TEN), ["scene-0003", "scene-0001", "scene-0003"]) == ("scene-0001", "scene-0003")
    for name in ("scene-0100", "scene-9999"):
        with pytest.raises(ConfigError, match=f"{name}' is none of the 11 scenes of training splits"):
            labelled_names(data_of(TEN), ["scene-0003", name])
    with pytest.raises(ConfigError, match="no scene of a training split is cached"):
        labelled_names(data_of({"scene-0100": "val", "scene-0200": "test"}), 1)
    with pytest.raises(ConfigError, match=r"v1\.0-trainval has no annotations to leave out"):
        labelled_names(data_of(TEN, annotated=False), 3)


def test_a_number_or_a_file_of_names(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("scene-0001\n\n  scene-0002 \n")
    assert scenes_of(None, "--x") is None and scenes_of("12", "--x") == 12 and scenes_of("-3", "--x") == -3
    assert scenes_of(str(names), "--x") == ("scene-0001", "scene-0002")
    with pytest.raises(ConfigError, match="--x 'nowhere': expected a number of scenes, or a text file"):
        scenes_of("nowhere", "--x")
    names.write_text("\n")
    with pytest.raises(ConfigError, match="the file names no scene"):
        scenes_of(str(names), "--x")


def test_other_scenes_lose_their_annotations_and_nothing_else(
    partly: Path, simulated_root: Path, tmp_path: Path
) -> None:
    cache_frames(simulated_root, VERSION, tmp_path, options=ALL, workers=1)
    some, whole = FrameStore(partly / "frames"), FrameStore(tmp_path / "frames")
    assert some.tokens == whole.tokens
    (kept,) = some.manifest.header["labelled_scenes"]
    names = [some.frame(row).scene_name for row in range(len(some))]
    assert [some.is_labelled(row) for row in range(len(some))] == [
        name == kept or "val" in some.frame(row).split for row, name in enumerate(names)
    ]
    assert int((some.index.kind == KIND_UNLABELLED).sum()) == 2
    for row in range(len(some)):
        assert some.is_keyframe(row)
        for spec in whole.manifest.fields:
            if some.is_labelled(row) or spec.name not in ANNOTATIONS:
                assert some.has(row, spec.name) == whole.has(row, spec.name)
                assert not some.has(row, spec.name) or some.read_bytes(row, spec.name) == whole.read_bytes(
                    row, spec.name
                )
            else:
                assert not some.has(row, spec.name) and whole.has(row, spec.name)
        assert some.index.class_counts[row].any() == some.is_labelled(row)
    shards = [path.read_bytes() for path in sorted((partly / "frames" / "shards").iterdir())]
    truth = whole.read_bytes(next(row for row in range(len(some)) if not some.is_labelled(row)), "gt_boxes")
    assert not any(truth in shard for shard in shards)  # not hidden: not there


def test_a_store_without_the_option_is_as_it_was(simulated_root: Path, tmp_path: Path) -> None:
    cache_frames(simulated_root, VERSION, tmp_path, options=ALL, workers=1)
    assert "labelled_scenes" not in FrameStore(tmp_path / "frames").manifest.header


def test_a_rerun_with_another_choice_is_refused(partly: Path, simulated_root: Path) -> None:
    with pytest.raises(FingerprintError, match="labelled_scenes"):
        cache_frames(simulated_root, VERSION, partly, options=ALL, workers=1)
    assert cache_frames(simulated_root, VERSION, partly, options=SOME, workers=1).quarantined == ()


def test_the_teacher_speaks_of_all_frames_by_the_default_coverage(partly: Path) -> None:
    store = TeacherStore(partly / "teachers" / "t")
    assert str(store.coverage).startswith("gaussian") and "confident" in str(store.coverage)
    assert len(store) == len(FrameStore(partly / "frames"))


def test_a_student_learns_from_both_kinds_and_the_metric_takes_the_annotated_ones(partly: Path, tmp_path: Path) -> None:
    over = {
        "train": {"steps": 2, "batch": 2, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 1},
        "data": {"split": "mini_train", "teacher": "t", "unlabelled_per_labelled": 1.0},
    }
    train_run("demo-unlabelled", partly, tmp_path / "run", threads=1, overrides=over)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and lines[-1]["unlabelled_frames"] == 2
    for split, frames in (("mini_train", 2), ("mini_val", 2)):
        outcome = evaluate_source(partly, split=split, run=tmp_path / "run")
        assert any(f"{split}: {frames} samples" in str(line) for line in outcome.renderables)


def test_scenes_that_come_later_are_unlabelled(simulated_root: Path, tmp_path: Path) -> None:
    """Of the tables' three scenes the labelled one and val come first, by a root that has no other."""
    whole = FrameOptions.open_tables(SOME, simulated_root, VERSION, None)
    assert whole.labelled_scenes is not None
    few = FrameOptions(image_scale=0.1, points=True, sweeps=1, labelled_scenes=whole.labelled_scenes)
    cache_frames(simulated_root, VERSION, tmp_path, split="mini_train", options=few, workers=1)
    before = FrameStore(tmp_path / "frames")
    labelled = [before.is_labelled(row) for row in range(len(before))]
    extend_frames(tmp_path, simulated_root, VERSION, workers=1)
    after = FrameStore(tmp_path / "frames")
    assert [after.is_labelled(row) for row in range(len(after))] == [*labelled, True, True]  # val keeps its own
    assert after.manifest.header["labelled_scenes"] == list(whole.labelled_scenes)


def test_a_forged_list_of_scenes_is_an_error_at_growth(partly: Path, simulated_root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(partly, tmp_path / "c"))
    root = open_root(copy / "frames")
    manifest = Manifest.read(root)
    dataclasses.replace(manifest, header={**manifest.header, "labelled_scenes": [1]}).write(root)
    with pytest.raises(CorruptError, match="expected a list of names"):
        extend_frames(copy, simulated_root, VERSION, workers=1)
