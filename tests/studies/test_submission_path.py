"""What a stranger does: a nuScenes folder, a result file made elsewhere, and the devkit's own metrics_summary.json.

`evaluate --submission --export-summary` must give that file again, key by key: the devkit is run unmodified, with its
own tables, loader and main.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import ConfigError, DataError, StoreError
from cache.frame import Frame
from cache.store import FrameStore
from evaluation import official
from evaluation.submission import submission_results
from evaluation.subsets import parse_subset
from pipeline.frames import FrameOptions, cache_frames
from studies.scoring import evaluate_source
from tests.evaluation.test_array_metric import within
from tests.evaluation.worlds import noisy_detections
from tests.pipeline.real_data import REAL_ROOT, needs_real_data

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def cache(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    cache_frames(simulated_root, VERSION, folder, options=FrameOptions(image_scale=0.1), workers=1)
    return folder


def predicted(store: FrameStore, split: str, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Boxes as a fair model would have them, with the scores' ties, on every sample of a split."""
    random, rows = np.random.default_rng(seed), store.key_rows(split)
    frames = [store.frame(row) for row in rows]
    said = {f.token: noisy_detections(random, f, store.truth(row)) for f, row in zip(frames, rows, strict=True)}
    return json.loads(json.dumps(submission_results(frames, said)))


def as_mmdetection3d(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Meta of five keys; keys of a box as `_format_bbox` writes them; few decimals."""
    meta = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
    keys = ("sample_token", "translation", "size", "rotation", "velocity", "detection_name", "detection_score")
    return {
        "meta": meta,
        "results": {t: [{key: box[key] for key in (*keys, "attribute_name")} for box in r] for t, r in results.items()},
    }


def as_openpcdet(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Results first, samples in another order, whole numbers, a velocity of zero."""
    out = {"results": {token: results[token] for token in reversed(results)}}
    for boxes in out["results"].values():
        for box in boxes[::3]:
            box |= {"velocity": [0.0, 0.0], "detection_score": 1, "translation": [round(v) for v in box["translation"]]}
    return {**out, "meta": {"use_camera": 0, "use_lidar": 1, "use_radar": 0, "use_map": 0, "use_external": 0}}


def as_the_devkit(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Boxes as `EvalBoxes.serialize` writes them, unknown velocities and further keys included."""
    for boxes in results.values():
        for number, box in enumerate(boxes):
            box |= {"ego_translation": [0.0, 0.0, 0.0], "num_pts": -1 if number % 5 else 0}
            if number % 4 == 0:
                box["velocity"] = [math.nan, math.nan]
    return {"results": results, "meta": {"tool": "x", "use_lidar": True, "notes": {"a": [1]}}}


def devkit_main(root: Path, split: str, path: Path, out: Path) -> dict[str, Any]:
    """The devkit's metrics_summary.json."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(VERSION, str(root), verbose=False)
    config = config_factory("detection_cvpr_2019")
    DetectionEval(nusc, config, str(path), split, str(out), verbose=False).main(plot_examples=0, render_curves=False)
    return json.loads((out / "metrics_summary.json").read_text())


def assert_same(ours: Any, theirs: Any, where: str = "") -> int:
    """Every key in the same order, every number within 1e-12; how many numbers there were."""
    assert type(ours) is type(theirs) or {type(ours), type(theirs)} == {int, float}, where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        return sum(assert_same(ours[key], theirs[key], f"{where}/{key}") for key in ours)
    if isinstance(ours, float) and not math.isnan(theirs):
        assert abs(ours - theirs) <= 1e-12, f"{where}: {ours}, the devkit has {theirs}"
        return 1
    assert ours == theirs or (math.isnan(ours) and math.isnan(theirs)), where
    return int(isinstance(ours, float))


@pytest.mark.parametrize("written", [as_mmdetection3d, as_openpcdet, as_the_devkit])
@pytest.mark.parametrize("split", ["mini_train", "mini_val"])
def test_a_file_made_elsewhere_gives_the_devkits_summary(
    cache: Path, simulated_root: Path, tmp_path: Path, written: Any, split: str
) -> None:
    path, summary = tmp_path / "results.json", tmp_path / "ours.json"
    path.write_text(json.dumps(written(predicted(FrameStore(cache / "frames"), split)), indent=1))
    outcome = evaluate_source(cache, submission=path, split=split, export_summary=summary)
    theirs = devkit_main(simulated_root, split, path, tmp_path)
    ours = json.loads(summary.read_text())
    assert 0.02 < theirs["mean_ap"] < 0.95
    assert ours.pop("eval_time") > 0 and theirs.pop("eval_time") > 0
    assert assert_same(ours, theirs) > 100
    assert outcome.summary is not None and outcome.summary["NDS"] == pytest.approx(theirs["nd_score"], abs=1e-12)
    by_devkit = tmp_path / "official.json"
    evaluate_source(cache, submission=path, split=split, official=True, export_summary=by_devkit)
    official = json.loads(by_devkit.read_text())
    official.pop("eval_time")
    assert_same(official, theirs)


@needs_real_data
def test_the_real_key_frame_gives_the_devkits_summary(tmp_path: Path) -> None:
    cache_frames(REAL_ROOT, VERSION, tmp_path / "c", options=FrameOptions(image_scale=0.1), workers=1)
    store = FrameStore(tmp_path / "c" / "frames")
    (split,) = {scene.split for scene in store.manifest.scenes}
    results = predicted(store, split, seed=1)
    path, summary = tmp_path / "results.json", tmp_path / "ours.json"
    path.write_text(json.dumps(as_mmdetection3d(results)))
    evaluate_source(tmp_path / "c", submission=path, export_summary=summary)
    frame = store.frame(0)
    if split in ("mini_train", "mini_val"):
        theirs = devkit_main(REAL_ROOT, split, path, tmp_path)
    else:  # a folder of one sample is no official split, which the devkit's main needs
        theirs = official_summary([frame], [store.truth(0)], path)
    ours = json.loads(summary.read_text())
    ours.pop("eval_time"), theirs.pop("eval_time")
    assert assert_same(ours, theirs) > 100


def official_summary(frames: list[Frame], truth: list, path: Path) -> dict[str, Any]:
    from nuscenes.eval.common.config import config_factory

    from evaluation.official import devkit_objects, score_objects

    said = json.loads(path.read_text())
    metrics = score_objects(*devkit_objects(frames, truth, said["results"]))
    metrics.add_runtime(0.0)
    assert metrics.cfg == config_factory("detection_cvpr_2019")
    return json.loads(json.dumps({**metrics.serialize(), "meta": said["meta"]}))


def test_splits_and_tokens_that_do_not_fit_are_named(cache: Path, tmp_path: Path) -> None:
    store, path = FrameStore(cache / "frames"), tmp_path / "results.json"
    path.write_text(json.dumps(as_mmdetection3d(predicted(store, "mini_train"))))
    with pytest.raises(StoreError, match=r"no split 'val'; it has \['mini_train', 'mini_val'\]"):
        evaluate_source(cache, submission=path, split="val")
    with pytest.raises(DataError, match=r"4 samples, but the split has 2: 2 missing \(.*\); 4 extra \("):
        evaluate_source(cache, submission=path)
    assert evaluate_source(cache, submission=path, split="mini_train").summary is not None


def test_a_summary_is_of_the_whole_split_and_nothing_is_written_where_scoring_fails(
    cache: Path, tmp_path: Path
) -> None:
    store, path = FrameStore(cache / "frames"), tmp_path / "results.json"
    content = as_mmdetection3d(predicted(store, "mini_val"))
    next(boxes for boxes in content["results"].values() if boxes)[0]["size"] = [1, 1, -1]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="leave --official and the exports out"):
        evaluate_source(cache, submission=path, subset=parse_subset(["distance=0-9"]), export_summary=tmp_path / "o")
    with pytest.raises(DataError, match="expected w, l, h > 0"):
        evaluate_source(cache, submission=path, export_summary=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_any_combination_of_filters_scores_as_the_devkit_on_what_is_left(cache: Path, tmp_path: Path) -> None:
    """Scenes, words of their descriptions, distance, classes, visibility, drawn at random and cut by hand for the
    devkit; through the stores and a file."""
    store, random = FrameStore(cache / "frames"), np.random.default_rng(12)
    results, path = predicted(store, "mini_train", seed=3), tmp_path / "results.json"
    path.write_text(json.dumps(as_mmdetection3d(results)))
    scenes = [scene for scene in store.manifest.scenes if scene.split == "mini_train"]
    kept: set[int] = set()
    for _ in range(8):
        scene = scenes[int(random.integers(len(scenes)))]
        word = str(random.choice(scene.description.split(", ")))
        near, far = np.sort(random.choice(np.arange(0.25, 60, 3.5), 2, replace=False)).tolist()
        texts = [
            *([f"scenes={scene.name}"] if random.random() < 0.3 else []),
            *([f"description={word}"] if random.random() < 0.3 else []),
            *([f"distance={near}-{far}"] if random.random() < 0.6 else []),
            *(["classes=vehicles+barrier"] if random.random() < 0.3 else []),
            *(["visibility=3+4"] if random.random() < 0.3 else []),
        ]
        subset = parse_subset(texts)
        said = evaluate_source(cache, submission=path, split="mini_train", subset=subset).summary
        rows = [
            row
            for row in store.key_rows("mini_train")
            if (subset.scenes is None or store.scene_of(row) == scene.name)
            and all(word.lower() in description(store, row).lower() for word in subset.description)
        ]
        frames = [store.frame(row) for row in rows]
        truth, cut = within(
            subset, frames, [store.truth(row) for row in rows], {f.token: results[f.token] for f in frames}
        )
        theirs = official.evaluate_submission(frames, truth, cut)
        names = subset.classes or tuple(theirs.ap)
        assert said is not None
        assert said["mAP"] == pytest.approx(np.mean([theirs.class_ap(name) for name in names]), abs=1e-12), texts
        for key, error in (("mATE", "trans_err"), ("mASE", "scale_err"), ("mAOE", "orient_err"), ("mAVE", "vel_err")):
            mean = np.nanmean([theirs.tp_errors[name][error] for name in names])
            assert said[key] == pytest.approx(min(1.0, mean), abs=1e-12), (texts, key)
        kept.add(theirs.truth_counts.outside_racks)
    assert len(kept) > 3


def description(store: FrameStore, row: int) -> str:
    return next(scene.description for scene in store.manifest.scenes if scene.name == store.scene_of(row))
