"""A run that begins from a teacher's weights: what the student gets, what the run keeps of it, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import ConfigError, DataError, FingerprintError
from cache.files import read_json
from models.build import build_detector, save_weights
from tests.trainer.synthetic import TINY_STUDENT, TINY_TEACHER
from tests.trainer.test_loop import quiet, recipe
from trainer.checkpoints import list_checkpoints
from trainer.inherit import inherit
from trainer.initialise import REPORT
from trainer.loop import train
from trainer.plan import make_plan
from trainer.setup import make_training


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    path = tmp_path / "teacher.safetensors"
    save_weights(build_detector(TINY_TEACHER), path)
    return path


def begun(teacher: Path | str, kind: str = "student", **train_values: Any) -> Any:
    return recipe(kind, steps=1, init_from=str(teacher), **train_values)


@pytest.mark.parametrize("scheme", ["fnav2", "ofa"])
def test_the_student_starts_with_what_is_inherited_and_its_average_too(cache: Path, teacher: Path, scheme: str) -> None:
    training = make_training(make_plan(begun(teacher, init_scheme=scheme), cache), torch.device("cpu"))
    plain = make_training(make_plan(recipe("student"), cache), torch.device("cpu")).model
    from models.build import load_weights

    expected = inherit(plain, load_weights(teacher), scheme).state  # type: ignore[arg-type]
    state = training.model.state_dict()
    assert training.began is not None and training.began.found.count("left") < len(state)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert any(not torch.equal(tensor, plain.state_dict()[name]) for name, tensor in state.items())
    assert training.average is not None
    assert all(torch.equal(training.average.tensors[name], tensor) for name, tensor in state.items())


def test_the_run_says_what_was_inherited_and_resumes_from_the_same_weights_only(
    cache: Path, teacher: Path, tmp_path: Path
) -> None:
    chosen, run = begun(teacher), tmp_path / "run"
    result = train(chosen, cache, run, progress=quiet)
    names = build_detector(TINY_STUDENT).state_dict()
    assert result.began_from.startswith(f"began from {teacher} by fnav2: {len(names)} tensors of the student: ")
    report = (run / REPORT).read_text()
    assert all(name in report for name in names) and "inherited" in report and "left" in report
    assert read_json(run / "run.json", "a run")["began_from"] == result.began_from
    assert train(chosen, cache, run, resume=True, progress=quiet) == result
    save_weights(build_detector(TINY_TEACHER), teacher)  # other weights in the same place
    with pytest.raises(FingerprintError, match=r"begun with init\.weights_sha256 = \w+, this call has"):
        train(chosen, cache, run, resume=True, progress=quiet)
    with pytest.raises(FingerprintError, match=r"train\.init_from = ''|recipe\.train\.init_from"):
        train(recipe("student", steps=1), cache, run, resume=True, progress=quiet)


def test_what_cannot_be_inherited_is_refused_before_training(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_from 'gone': no such file, and not a shipped teacher \(demo\)"):
        train(begun("gone"), cache, tmp_path / "run", progress=quiet)
    (tmp_path / "torn").write_bytes(b"0" * 100)
    with pytest.raises(DataError, match="torn: not readable as a safetensors file"):
        train(begun(tmp_path / "torn"), cache, tmp_path / "run", progress=quiet)
    queries = tmp_path / "queries.safetensors"
    save_weights(build_detector({"preset": "object-dgcnn-tiny"}), queries)
    with pytest.raises(ConfigError, match=r"init_from '.*queries.*': a ObjectDgcnn cannot inherit or bequeath") as why:
        train(begun(queries), cache, tmp_path / "run", progress=quiet)
    assert "\n" not in str(why.value)
    assert not list_checkpoints(tmp_path / "run")
