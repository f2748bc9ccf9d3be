"""A student named by import path: the page's own one trains from stores with a term, and only the trusted are run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.errors import ConfigError
from cache.store import FrameStore
from models.build import load_weights
from tests.trainer.test_loop import quiet
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.predict import load_run, predict
from trainer.recipe import Recipe, make_recipe
from trainer.run_files import WEIGHTS

PAGE = Path(__file__).parent.parent.parent / "docs" / "integrate.md"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's student as a module of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if "build = FromAbove" in block]
    (tmp_path / "my_student.py").write_text(
        f"import torch\n{code}\nnumber = 3\n\n\ndef other():\n    return nn.ReLU()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_student:build"
    sys.modules.pop("my_student", None)


def recipe(**model: Any) -> Recipe:
    values = {
        "model": model,
        "data": {"teacher": "demo"},
        "train": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 1},
        "terms": [{"name": "bevdistill_dense"}],
    }
    return make_recipe(values, "test", "own")


def test_a_student_of_ones_own_is_distilled_exported_and_read_again(own: str, cache: Path, tmp_path: Path) -> None:
    train(recipe(callable=own, options={"channels": 12}), cache, tmp_path / "run", progress=quiet)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[0]["bevdistill_dense"] > 0
    with pytest.raises(ConfigError, match=r"the callable my_student:build made it; if you trust .*--callable") as why:
        load_weights(tmp_path / "run" / WEIGHTS)
    assert "\n" not in str(why.value)
    with pytest.raises(ConfigError, match="if you trust"):
        load_run(tmp_path / "run", "my_student:other")
    model = load_run(tmp_path / "run", own)
    assert model.bev_channels == 12
    store = FrameStore(cache / "frames")
    assert len(predict(model, store, [0, 1], progress=lambda done, total: None)) == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"callable": "my_student"}, r"key 'callable': String should match"),
        ({"callable": "gone.module:build"}, r"\[model\] callable gone\.module:build: no module 'gone'; install it"),
        ({"callable": "my_student:gone"}, r"my_student has no 'gone'; its callables are .*FromAbove"),
        ({"callable": "my_student:build", "options": {"wide": 1}}, r"it raised TypeError: .*'wide'"),
        ({"callable": "my_student:other"}, r"its ReLU lacks grid \(the cache\.grid\.BevGrid of its map\), modality"),
        ({"callable": "my_student:number"}, r"my_student 'number' is no callable; its callables are"),
    ],
)
def test_what_is_no_student_is_refused_in_one_line(
    own: str, cache: Path, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        train(recipe(**model), cache, tmp_path / "run", progress=quiet)
    assert "\n" not in str(caught.value)
