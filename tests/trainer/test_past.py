"""Windows of the past in the trainer: who is shown what, how a batch holds it, and that memory and windows agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import ConfigError
from cache.geometry import past_to_now
from cache.store import FrameStore
from models.build import build_detector
from tests.trainer.drives import write_drives
from trainer.augment import BevAugmentConfig, ImageAugmentConfig, frame_augment, no_augment
from trainer.batches import BatchBuilder, Needs, moments_before
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.past import PastConfig, Pasts, past_draw
from trainer.predict import Portion, predict, stream
from trainer.predict_work import work_of
from trainer.recipe import make_recipe
from trainer.scene_memory import scene_steps
from trainer.scene_windows import ABSENT

SIZE = (64, 32)
SMALL: dict[str, Any] = {
    "preset": "bevformer-demo",
    "image_size": list(SIZE),
    "channels": 16,
    "bev": {"cell_m": 6.4},
    "backbone": {"layers": [1, 1, 1, 1], "base_width": 8},
    "encoder": {"layers": 1, "hidden": 16},
    "transformer": {"decoder_layers": 2, "queries": 12, "hidden": 16},
    "heat": None,
}
LENGTHS = (4, 1, 5)
BETWEEN = ((0, 2), (2, 1))


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drives")
    write_drives(root, LENGTHS, between=BETWEEN)
    return root


@pytest.fixture(scope="module")
def frames(drives: Path) -> FrameStore:
    return FrameStore(drives / "frames")


def moments(frames: FrameStore, rows: list[int]) -> list[Any]:
    """(scene, moment) of rows, None for ABSENT."""
    return [None if row == ABSENT else divmod(int(frames.tokens[row], 16), 100) for row in rows]


def row_of(frames: FrameStore, scene: int, moment: int) -> int:
    return frames.tokens.index(f"{100 * scene + moment:032x}")


def test_a_window_is_of_the_key_frames_before_of_the_same_scene(frames: FrameStore) -> None:
    rows = [row_of(frames, 0, 3), row_of(frames, 1, 0), row_of(frames, 2, 1), row_of(frames, 2, 4)]
    rows.sort()
    own = [divmod(int(frames.tokens[row], 16), 100) for row in rows]
    pasts = Pasts(frames, "train", rows, 2, PastConfig(skipped=0))
    found = {own[entry]: moments(frames, pasts.of(entry, 0, entry)) for entry in range(4)}
    assert found == {
        (0, 3): [(0, 0), (0, 1)],  # (0, 2) is no key frame
        (1, 0): [None, None],
        (2, 1): [None, (2, 0)],  # no key frame itself, and has a past all the same
        (2, 4): [(2, 2), (2, 3)],
    }
    every = Pasts(frames, "train", rows, 2, PastConfig(skipped=0, moments="all"))
    assert moments(frames, every.of(own.index((0, 3)), 0, 0)) == [(0, 1), (0, 2)]
    assert pasts.rows() == sorted(row_of(frames, *m) for m in [(0, 0), (0, 1), (2, 0), (2, 2), (2, 3)])


def test_what_is_skipped_is_a_function_of_seed_epoch_and_key_alone() -> None:
    draws = {(s, e, k): past_draw(s, e, k, 3, 2).tolist() for s in range(2) for e in range(4) for k in range(30)}
    assert all(past_draw(*key, 3, 2).tolist() == drawn for key, drawn in draws.items())
    assert all(drawn == sorted(set(drawn)) and set(drawn) <= set(range(5)) for drawn in draws.values())
    assert {tuple(drawn) for drawn in draws.values()} >= {(0, 1, 2), (2, 3, 4), (0, 2, 4)}
    left_out = np.array([[i not in drawn for i in range(5)] for drawn in draws.values()]).mean(axis=0)
    assert np.abs(left_out - 0.4).max() < 0.12
    assert past_draw(0, 0, 0, 3, 0).tolist() == [0, 1, 2]


def test_a_batch_holds_its_window_under_one_augmentation(frames: FrameStore) -> None:
    rows = [row_of(frames, 0, 1), row_of(frames, 2, 3)]
    past = [[ABSENT, row_of(frames, 0, 0)], [row_of(frames, 2, 0), row_of(frames, 2, 2)]]
    bev = BevAugmentConfig(flip_x=0.5, rotation_deg=40, scale=(0.9, 1.1))
    image = ImageAugmentConfig(resize=(1.0, 1.2), crop_x=True, flip=0.5)
    augments = [frame_augment(bev, image, 6, 3, 0, row) for row in rows]
    builder = BatchBuilder(frames, Needs(image_size=SIZE))
    batch, _ = builder.build(rows, augments, past=past)
    older, newer = batch.history
    assert older.known.tolist() == [False, True] and newer.known.tolist() == [True, True]
    assert older.age_s.tolist() == [0.0, 1.5] and newer.age_s.tolist() == [0.5, 0.5]
    assert older.frames.tokens == ["", f"{200:032x}"]
    assert not older.frames.images[0].any() or torch.equal(older.frames.images[0, 0], older.frames.images[0, 1])
    alone, _ = builder.build([past[1][1]], [augments[1]])
    for part in ("images", "intrinsics", "camera_to_lidar"):  # the past frame as if it were drawn itself, under that A
        assert torch.equal(getattr(newer.frames, part)[1], getattr(alone, part)[0])
    a = augments[1].bev.matrix()
    then, now = frames.frame(past[1][0]), frames.frame(rows[1])
    expected = past_to_now(then.lidar_to_global(), now.lidar_to_global(), a)
    assert np.allclose(older.past_to_now[1].numpy(), expected, atol=1e-12)
    assert older.past_to_now.dtype == torch.float64


def test_a_moment_that_no_frame_has_is_left_out(frames: FrameStore) -> None:
    row, augment = row_of(frames, 1, 0), no_augment(6)
    builder = BatchBuilder(frames, Needs(image_size=SIZE))
    assert builder.build([row], [augment], past=[[ABSENT, ABSENT]])[0].history == []
    assert builder.build([row], [augment])[0].history == []


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_scenes_are_gone_through_in_time_order_each_frame_once(frames: FrameStore, lanes: int) -> None:
    rows = list(range(len(frames)))
    steps = scene_steps(frames, rows, lanes)
    seen = [row for step in steps for row in step.rows]
    assert sorted(seen) == rows and all(len(set(step.lanes)) == len(step.rows) <= lanes for step in steps)
    last: dict[int, int] = {}
    for step in steps:
        for row, lane, before, kept in zip(step.rows, step.lanes, step.before, step.kept, strict=True):
            scene, moment = divmod(int(frames.tokens[row], 16), 100)
            assert kept == ((scene, moment) not in BETWEEN)
            known = [(scene, m) for m in range(moment) if (scene, m) not in BETWEEN]
            assert moments(frames, [before]) == [known[-1] if known else None]
            assert before == (last[lane] if known else ABSENT)  # what the lane holds is that very frame's
            last[lane] = row if kept else last.get(lane, ABSENT)


def eager(**over: Any) -> Any:
    torch.manual_seed(0)
    model = build_detector({**SMALL, **over}).eval()
    with torch.no_grad():  # an untrained model hardly looks at its past
        for name, parameter in model.named_parameters():
            if "temporal" in name:
                parameter.mul_(3.0)
    return model


def close(found: Any, expected: Any) -> bool:
    return found.boxes_lidar.shape == expected.boxes_lidar.shape and np.allclose(
        found.scores, expected.scores, atol=1e-5
    )


def test_memory_and_windows_say_the_same_where_windows_reach_the_scene_s_beginning(frames: FrameStore) -> None:
    rows, model = list(range(len(frames))), eager(queue=5)
    quiet = {"progress": lambda done, total: None}
    memory = predict(model, frames, rows, batch=2, **quiet)
    windows = predict(model, frames, rows, batch=3, past="window", **quiet)
    assert list(memory) == list(windows) == frames.tokens
    assert all(close(memory[token], windows[token]) for token in frames.tokens)
    forgetful = predict(eager(queue=2), frames, rows, past="window", **quiet)
    differing = {token for token in frames.tokens if not close(memory[token], forgetful[token])}
    firsts = {frames.tokens[row_of(frames, scene, 0)] for scene in range(3)}
    assert differing and not differing & firsts


def test_what_memory_says_of_a_frame_depends_on_nothing_else_asked_for(frames: FrameStore) -> None:
    model, quiet = eager(queue=3), {"progress": lambda done, total: None}
    whole = predict(model, frames, list(range(len(frames))), batch=2, **quiet)
    rows = [row_of(frames, 2, 4), row_of(frames, 0, 1)]
    some = predict(model, frames, rows, batch=4, **quiet)
    assert list(some) == [frames.tokens[row] for row in rows]
    assert all(close(some[token], whole[token]) for token in some)


def test_scenes_are_dealt_out_whole_and_each_part_says_what_the_whole_says(frames: FrameStore) -> None:
    model, rows = eager(queue=3), [row_of(frames, 2, 4), row_of(frames, 0, 1), row_of(frames, 1, 0)]
    work = work_of(model, frames, rows, 1)
    assert len(work.units) == 3 and [len(unit) for unit in work.units] == [4, 2, 1]  # (2, 1) is no key frame
    whole = [pair for portion in stream(model, work, range(3)) for pair in said(portion)]
    parts = [
        pair for unit in (2, 0, 1) for portion in stream(model, work, range(unit, unit + 1)) for pair in said(portion)
    ]
    assert sorted(whole) == sorted(parts) and sorted(row for row, _ in whole) == sorted(rows)


def said(portion: Portion) -> list[tuple[int, bytes]]:
    return [
        (row, one.boxes_lidar.tobytes() + one.scores.tobytes() + one.labels.tobytes())
        for row, one in zip(portion.rows, portion.detections, strict=True)
    ]


def recipe(**values: Any) -> Any:
    return make_recipe(
        {
            "model": {**SMALL, "queue": 3, **values.pop("model", {})},
            "data": {"depth": False, "bev_augmentation": {"flip_x": 0.5, "rotation_deg": 10.0}, **values},
            "train": {"steps": 4, "batch": 3, "lr": 1e-3, "log_every": 1, "checkpoint_every": 2, "warmup_steps": 1},
        },
        "test",
        "temporal",
    )


def test_a_temporal_student_trains_on_windows_and_resumes_exactly(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[list[str]]] = []
    build = BatchBuilder.build

    def watched(self: BatchBuilder, *args: Any, **kwargs: Any) -> Any:
        out = build(self, *args, **kwargs)
        shown.append([past.frames.tokens for past in out[0].history])
        return out

    monkeypatch.setattr(BatchBuilder, "build", watched)

    def killed(report: Any) -> None:
        if report.done == 3:
            raise KeyboardInterrupt

    train(recipe(), drives, tmp_path / "whole", progress=lambda report: None)
    whole, shown = shown, []
    assert any(window for window in whole) and all(len(window) <= 2 for window in whole)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), drives, tmp_path / "cut", progress=killed)
    shown.clear()
    train(recipe(), drives, tmp_path / "cut", resume=True, progress=lambda report: None)
    assert shown == whole[2:]
    of = [[line["loss"] for line in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("whole", "cut")]
    assert of[0] == of[1] and len(of[0]) == 4
    plain = recipe(model={"queue": 1})
    train(plain, drives, tmp_path / "plain", progress=lambda report: None)
    assert read_metrics(tmp_path / "plain" / "metrics.jsonl")[0]["loss"] != of[0][0]


def test_options_of_the_past_are_refused_for_models_of_single_frames(drives: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[data\.past\] is for temporal models: set \[model\] queue above 1"):
        recipe(model={"queue": 1}, past={"skipped": 0})
    assert moments_before(build_detector({**SMALL, "queue": 1})) == 0
    assert recipe(past={"skipped": 0}).data.past.skipped == 0
