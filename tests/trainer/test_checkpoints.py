from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cache.errors import CorruptError, FingerprintError
from cache.files import file_sha256
from tests.trainer.conftest import BOXES
from tests.trainer.synthetic import write_frames, write_teacher
from tests.trainer.test_loop import killed_at, losses, quiet, recipe
from trainer.checkpoint import read_state
from trainer.checkpoints import checkpoint_path, list_checkpoints, newest_whole
from trainer.loop import train
from trainer.observer import StepReport
from trainer.preemption import PreemptedError
from trainer.run_files import WEIGHTS
from trainer.step import DivergedError


def steps_of(run: Path) -> list[int]:
    return [read_state(path)["step"] for path in list_checkpoints(run)]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_ones_stay(tmp_path: Path, cache: Path, keep: int) -> None:
    train(recipe("student", steps=7, checkpoint_every=2, keep=keep), cache, tmp_path, progress=quiet)
    assert steps_of(tmp_path) == [7, 6, 4, 2][:keep]


def test_a_damaged_newest_is_said_and_passed_over(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = recipe(steps=8, checkpoint_every=2)
    train(chosen, cache, tmp_path / "whole", progress=quiet)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(chosen, cache, cut, progress=killed_at(7))
    newest = list_checkpoints(cut)[0]
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1  # one bit of a weight
    newest.write_bytes(data)
    result = train(chosen, cache, cut, resume=True, progress=quiet)
    assert result.resumed_from == 4
    assert result.passed_over == (f"{newest}: not a readable checkpoint (its bytes do not match its checksum)",)
    assert "passed over" in capsys.readouterr().err.replace("\n", " ")
    assert losses(cut) == losses(tmp_path / "whole")
    assert file_sha256(cut / WEIGHTS) == file_sha256(tmp_path / "whole" / WEIGHTS)


def test_a_newer_one_that_was_passed_over_does_not_take_the_place_of_a_whole_one(tmp_path: Path, cache: Path) -> None:
    """With keep = 1 the checkpoint that was just written would be the one to go, and with it the run."""
    with pytest.raises(KeyboardInterrupt):
        train(recipe("student", checkpoint_every=2), cache, tmp_path, progress=killed_at(7))
    newest = checkpoint_path(tmp_path, 6)
    newest.write_bytes(newest.read_bytes()[:-1])
    often = recipe("student", checkpoint_every=1, keep=1)
    with pytest.raises(KeyboardInterrupt):
        train(often, cache, tmp_path, resume=True, progress=killed_at(5))
    assert [path.name for path in list_checkpoints(tmp_path)] == [newest.name, checkpoint_path(tmp_path, 5).name]
    assert train(often, cache, tmp_path, resume=True, progress=quiet).resumed_from == 5
    assert steps_of(tmp_path) == [8]


def test_weights_that_are_not_finite_are_no_checkpoint_and_no_student(tmp_path: Path, cache: Path) -> None:
    """The loss of the step itself was finite: its update was too large."""
    for name, values in {"midway": {"checkpoint_every": 1}, "end": {"steps": 1, "checkpoint_every": 9}}.items():
        with pytest.raises(
            DivergedError, match=r"after step 1: not finite: .*; nothing is saved of it; lower \[train\] lr"
        ):
            train(recipe("student", lr=1e300, **values), cache, tmp_path / name, progress=quiet)
        assert list_checkpoints(tmp_path / name) == []
        assert not (tmp_path / name / WEIGHTS).exists()


def test_where_none_is_whole_the_run_does_not_begin_anew(tmp_path: Path, cache: Path) -> None:
    assert newest_whole(tmp_path) is None
    with pytest.raises(KeyboardInterrupt):
        train(recipe("student", checkpoint_every=1), cache, tmp_path, progress=killed_at(2))
    for path in list_checkpoints(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match=r"none of the run's checkpoints is whole: .*; remove .*, train again"):
        train(recipe("student", checkpoint_every=1), cache, tmp_path, resume=True, progress=quiet)


def test_what_a_kill_in_the_middle_of_a_checkpoint_leaves_is_removed(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe("student", checkpoint_every=1), cache, tmp_path, progress=killed_at(2))
    left = tmp_path / "checkpoints" / "step-00000003.safetensors.1f-00000000.partial"
    left.write_bytes(b"the first half")
    train(recipe("student", checkpoint_every=1), cache, tmp_path, resume=True, progress=quiet)
    assert not left.exists()
    assert steps_of(tmp_path) == [8, 7]


def test_any_changed_byte_is_noticed(tmp_path: Path, cache: Path) -> None:
    train(recipe("student", steps=1), cache, tmp_path, progress=quiet)
    path = checkpoint_path(tmp_path, 1)
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    for place in (0, 9, 8 + header // 2, 8 + header, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CorruptError, match="not a readable checkpoint"):
            read_state(path)
    for size in (0, 7, 8 + header, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptError, match="not a readable checkpoint"):
            read_state(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 3}, r"begun with recipe\.train\.seed = 0, this call has 3"),
        ({"batch": 2}, r"begun with recipe\.train\.batch = 4, this call has 2"),
    ],
)
def test_another_seed_or_global_batch_is_refused_with_both_values(
    tmp_path: Path, cache: Path, values: dict[str, Any], message: str
) -> None:
    train(recipe(steps=2), cache, tmp_path, progress=quiet)
    with pytest.raises(FingerprintError, match=message):
        train(recipe(steps=2, **values), cache, tmp_path, resume=True, progress=quiet)


def test_another_manifest_is_refused_with_both_values(tmp_path: Path, cache: Path) -> None:
    train(recipe(steps=2), cache, tmp_path / "run", progress=quiet)
    write_frames(tmp_path / "other", boxes=BOXES, frames=8)
    write_teacher(tmp_path / "other", boxes=BOXES, frames=8)
    was, now = (file_sha256(root / "frames" / "manifest.json") for root in (cache, tmp_path / "other"))
    with pytest.raises(FingerprintError, match=rf"stores\.frames = {was}, this call has {now}"):
        train(recipe(steps=2), tmp_path / "other", tmp_path / "run", resume=True, progress=quiet)


def test_sigterm_saves_what_was_done_and_the_run_goes_on_exactly(tmp_path: Path, cache: Path) -> None:
    def terminate(report: StepReport) -> None:
        if report.done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    chosen = recipe(steps=8)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(PreemptedError, match="saved after step 5 of 8") as caught:
        train(chosen, cache, tmp_path / "cut", progress=terminate)
    assert caught.value.exit_status == 75
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert steps_of(tmp_path / "cut") == [5, 3]
    train(chosen, cache, tmp_path / "cut", resume=True, progress=quiet)
    train(chosen, cache, tmp_path / "whole", progress=quiet)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
