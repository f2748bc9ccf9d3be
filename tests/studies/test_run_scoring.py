"""`evaluate --run`: figures while predictions arrive, by one process or several, equal to those from all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import ConfigError
from cache.store import FrameStore
from evaluation.subsets import EVERYTHING, parse_subset
from models.build import build_detector, save_weights
from studies.run_scoring import _Receiver
from studies.scoring import evaluate_source, score
from tests.trainer.synthetic import TINY_TEACHER, write_frames
from trainer.predict import Portion, predict


def talkative() -> Any:
    """An untrained model that says so much that some of it is right."""
    torch.manual_seed(0)
    head = {**TINY_TEACHER["head"], "score_threshold": 0.0, "max_boxes": 500, "peaks": "all"}
    return build_detector({**TINY_TEACHER, "head": head}).eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("scored") / "cache"
    write_frames(root, frames=26, boxes=(250, 0, 200), split="val")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_weights(talkative(), folder / "model.safetensors")
    return folder


def test_figures_do_not_depend_on_the_number_of_processes_and_are_those_of_all_at_once(cache: Path, run: Path) -> None:
    store = FrameStore(cache / "frames")
    rows = store.key_rows("val")
    whole = score(store, rows, predict(talkative(), store, rows, progress=lambda *_: None))
    assert whole.mAP > 0
    for processes in (1, 3):
        summary = evaluate_source(cache, run=run, processes=processes).summary
        assert json.dumps(summary) == json.dumps(whole.summary())


def test_the_devkits_code_and_the_export_take_the_same_detections(cache: Path, run: Path, tmp_path: Path) -> None:
    ours, theirs = (evaluate_source(cache, run=run, official=o).summary for o in (False, True))
    assert ours is not None and theirs is not None
    assert ours["NDS"] == pytest.approx(theirs["NDS"], abs=1e-12)
    files = [tmp_path / f"{processes}.json" for processes in (1, 2)]
    for path, processes in zip(files, (1, 2), strict=True):
        evaluate_source(cache, run=run, processes=processes, export=path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_part_of_the_split_is_scored_as_from_all_at_once(cache: Path, run: Path) -> None:
    store, subset = FrameStore(cache / "frames"), parse_subset(["distance=0-20"])
    rows = store.key_rows("val")
    found = predict(talkative(), store, rows, progress=lambda *_: None)
    assert evaluate_source(cache, run=run, subset=subset).summary == score(store, rows, found, subset=subset).summary()


def test_figures_so_far_are_those_of_the_frames_that_came(cache: Path) -> None:
    store = FrameStore(cache / "frames")
    rows = store.key_rows("val")
    found = predict(talkative(), store, rows, progress=lambda *_: None)
    receiver = _Receiver(store, rows, EVERYTHING)
    for row in reversed(rows[:7]):
        receiver.add(Portion([row], [found[store.tokens[row]]]))
    seen = score(store, rows[:7], {store.tokens[row]: found[store.tokens[row]] for row in rows[:7]})
    assert receiver.metric.so_far().to_dict() == seen.to_dict()
    assert f"mAP {seen.mAP:.3f}" in receiver.said()


def test_of_a_long_split_only_some_frames_are_kept_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.mistakes.FRAMES", 4)
    store = FrameStore(cache / "frames")
    rows = store.key_rows("val")
    receiver = _Receiver(store, rows, EVERYTHING)
    for token, one in predict(talkative(), store, rows, progress=lambda *_: None).items():
        receiver.add(Portion([store.row_of(token)], [one]))
    assert len(receiver.kept) == 4
    receiver.score()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"processes": 2}, "--nproc belongs to --run"), ({"weights": "best"}, "--weights belongs to --run")],
)
def test_options_of_a_run_are_refused_elsewhere(cache: Path, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        evaluate_source(cache, teacher="t", **options)


def test_the_weights_are_the_last_or_the_best(cache: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="expected last or best"):
        evaluate_source(cache, run=run, weights="first")
    with pytest.raises(ConfigError, match="has not validated"):
        evaluate_source(cache, run=run, weights="best")
