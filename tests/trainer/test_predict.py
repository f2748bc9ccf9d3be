from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import ConfigError, StoreError
from cache.store import FrameStore
from models.build import build_detector
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER, write_frames
from trainer.checkpoints import checkpoint_path
from trainer.predict import load_run, predict


def quiet(done: int, total: int) -> None:
    pass


def eager(config: dict[str, Any]) -> Any:
    """An untrained model that answers with something."""
    torch.manual_seed(0)
    return build_detector({**config, "head": {**config["head"], "score_threshold": 0.0, "max_boxes": 20}})


@pytest.mark.parametrize("config", [TINY_STUDENT, TINY_TEACHER], ids=["camera", "lidar"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_do_not_depend_on_the_batch(cache: Path, config: dict[str, Any], precision: Any) -> None:
    model, store = eager(config), FrameStore(cache / "frames")
    rows = list(range(6))
    together = predict(model, store, rows, batch=4, precision=precision, progress=quiet)
    alone = predict(model, store, rows, batch=1, precision=precision, progress=quiet)
    assert list(together) == [store.tokens[row] for row in rows]
    if precision == "fp32":
        for token, found in together.items():
            assert len(found) == 20
            assert np.allclose(found.scores, alone[token].scores, atol=1e-5)


def test_the_models_mode_is_left_as_it_was_and_its_statistics_untouched(cache: Path) -> None:
    model, store = eager(TINY_TEACHER), FrameStore(cache / "frames")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(model, store, [0, 1], progress=quiet)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_progress_counts_frames(cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    predict(eager(TINY_TEACHER), FrameStore(cache / "frames"), range(5), batch=2, progress=lambda *s: seen.append(s))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_no_frames_give_no_detections(cache: Path) -> None:
    assert predict(eager(TINY_TEACHER), FrameStore(cache / "frames"), [], progress=quiet) == {}


def test_a_lidar_model_needs_a_store_with_clouds(tmp_path: Path) -> None:
    write_frames(tmp_path, frames=2, points=False)
    with pytest.raises(StoreError, match="cache-frames --points"):
        predict(eager(TINY_TEACHER), FrameStore(tmp_path / "frames"), [0], progress=quiet)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the folder of a finished run"):
        load_run(tmp_path)
    checkpoint_path(tmp_path, 1).parent.mkdir()
    checkpoint_path(tmp_path, 1).write_bytes(b"x")
    with pytest.raises(ConfigError, match="--resume"):
        load_run(tmp_path)
