from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.store import FrameStore
from models.lift_splat import LiftSplat
from studies.ranks import ROOT, processes_of, run_to_end, run_until, steps_logged, training
from tests.trainer import synthetic
from tests.trainer.poisoned_rank import poisoned
from tests.trainer.test_loop import losses, quiet, recipe
from trainer.checkpoints import list_checkpoints
from trainer.loop import train
from trainer.main import main
from trainer.recipe import Recipe
from trainer.step import DivergedError

LIMIT_S = 120  # of any one command; they take 5 to 20 s


def written(chosen: Recipe, folder: Path) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(chosen.to_dict()))
    return path


def lines(run: Path, count: int) -> Callable[[], bool]:
    """Whether the run's log has so many lines."""
    return lambda: steps_logged(run) >= count


def digests(run: Path) -> list[str]:
    return [line["digest"] for line in losses(run)]


def test_a_killed_and_a_preempted_run_go_on_bit_for_bit(tmp_path: Path, cache: Path) -> None:
    """Two processes: SIGKILL to all, then SIGTERM to the launcher, which ends with 75; the curve is the undisturbed
    one's, to the last bit, and no process is left."""
    steps = 32
    chosen = recipe(steps=steps, checkpoint_every=4)
    file, whole, cut = written(chosen, tmp_path), tmp_path / "whole", tmp_path / "cut"
    assert run_to_end(training(2, file, cache, whole), LIMIT_S).returncode == 0

    run_until(training(2, file, cache, cut), lines(cut, 6), signal.SIGKILL, LIMIT_S)
    logged = len(losses(cut))  # more than 6 where the kill came late
    assert 6 <= logged < steps - 4
    task = [str(ROOT / "bevcask"), "train", "--recipe", str(file), "--cache", str(cache), "--run", str(cut)]
    command = [*task, "--nproc", "2", "--threads", "1", "--resume"]
    stopped = run_until(command, lines(cut, logged + 2), signal.SIGTERM, LIMIT_S)
    assert stopped.returncode == 75, stopped.stderr[-2000:]
    done = len(losses(cut))
    assert f"asked to stop: saved after step {done} of {steps}" in stopped.stderr
    assert list_checkpoints(cut)[0].name == f"step-{done:08d}.safetensors"
    assert not (cut / "model.safetensors").exists()
    assert processes_of(str(cut)) == []

    assert run_to_end(training(2, file, cache, cut, "--resume"), LIMIT_S).returncode == 0
    assert losses(cut) == losses(whole)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_other_numbers_of_processes_go_on_with_the_same_batches(tmp_path: Path, cache: Path) -> None:
    chosen = recipe(steps=20, checkpoint_every=3, digest="inputs")
    file, cut = written(chosen, tmp_path), tmp_path / "cut"
    run_until(training(3, file, cache, cut), lines(cut, 5), signal.SIGKILL, LIMIT_S)
    train(chosen, cache, cut, resume=True, progress=quiet)
    train(chosen, cache, tmp_path / "whole", progress=quiet)
    assert digests(cut) == digests(tmp_path / "whole")
    assert [line["step"] for line in losses(cut)] == list(range(1, 21))


def test_a_finished_run_is_told_to_a_rank_that_does_not_see_its_folder(tmp_path: Path, cache: Path) -> None:
    chosen, run = recipe("student", steps=1), tmp_path / "run"
    before = train(chosen, cache, run, progress=quiet).weights.read_bytes()
    command = training(2, written(chosen, tmp_path), cache, run, "--resume")
    command[command.index("trainer.main")] = "tests.trainer.elsewhere_rank"
    done = run_to_end(command, LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "run-elsewhere").exists()


def test_a_damaged_shard_ends_every_rank_with_its_name(tmp_path: Path, cache: Path) -> None:
    """The damage is in the frame that is last in the first epoch, so one rank alone meets it, in the middle of the
    run."""
    broken = tmp_path / "cache"
    shutil.copytree(cache, broken)
    chosen = recipe(steps=8, batch=6)
    frames = FrameStore(cache / "frames")
    row = 5
    shard = frames.manifest.shards[int(frames.index.shard[row])].files[0].name
    path = broken / "frames" / shard
    data = bytearray(path.read_bytes())
    place = [spec.name for spec in frames.manifest.fields].index("cam_front")
    data[int(frames.index.offset[row, place]) + 100] ^= 0xFF
    path.write_bytes(data)
    done = run_to_end(training(2, written(chosen, tmp_path), broken, tmp_path / "run"), LIMIT_S)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if frames.tokens[row] in line and not line.startswith("[rank")]
    assert any("rank" not in line.split(":")[0] for line in told), done.stderr[-3000:]
    assert any(line.startswith(("rank 0 of 2:", "rank 1 of 2:")) for line in told) or len(told) == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_rank_writes_its_error_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks share one stream, on which line and end written apart are torn by another rank's."""
    written_parts: list[str] = []
    monkeypatch.setattr("sys.stderr.write", written_parts.append)
    status = main(["--recipe", "no-such-recipe", "--cache", str(tmp_path), "--run-dir", str(tmp_path / "run")])
    monkeypatch.undo()
    assert status == 1
    assert len(written_parts) == 1
    assert "no-such-recipe" in written_parts[0] and written_parts[0].endswith("\n")


def test_a_loss_that_is_not_finite_ends_every_rank_and_names_the_frame(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the six frames of a batch has a NaN in its loss: the error names that one, on the rank that held it and
    on the other."""
    token = synthetic.token_of(3)
    chosen = recipe("student", batch=6)
    command = training(2, written(chosen, tmp_path), cache, tmp_path / "two")
    place = command.index("trainer.main")
    command[place : place + 1] = ["tests.trainer.poisoned_rank", token]
    done = run_to_end(command, LIMIT_S)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if f"frames {token};" in line]
    assert any(line.startswith("step 1: not finite") for line in told), done.stderr[-3000:]
    assert any(line.startswith("rank 1 of 2: step 1: not finite") for line in told) or len(told) == 1
    assert list_checkpoints(tmp_path / "two") == []

    monkeypatch.setattr(LiftSplat, "loss_parts", poisoned(token))
    with pytest.raises(DivergedError, match=rf"step 1: not finite: \{{'loss': nan, 'vel': nan\}}; frames {token};"):
        train(chosen, cache, tmp_path / "one", progress=quiet)
