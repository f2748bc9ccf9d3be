from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cache.errors import ConfigError
from studies import launch as launching
from studies.launch import Launch, launch
from tests.trainer.synthetic import TINY_STUDENT, write_frames
from trainer.main import OUTCOME, main
from trainer.orphans import PARENT


def test_one_machine_meets_by_itself() -> None:
    assert Launch(nproc=3).torchrun(["--resume"]) == [
        "--nproc-per-node", "3", "--standalone", "-m", "trainer.main", "--resume",
    ]  # fmt: skip


def test_several_machines_meet_where_they_are_told() -> None:
    command = Launch(nproc=1, nnodes=2, rdzv="node0:29500").torchrun([])
    assert command[command.index("--rdzv-endpoint") + 1] == "node0:29500"
    assert command[command.index("--nnodes") + 1] == "2"
    assert "--local-addr" not in command
    for address, hosts in (("10.0.0.1", "true"), ("10.0.0.2", "false")):
        named = Launch(1, 2, "10.0.0.1:29500", address).torchrun([])
        assert named[named.index("--rdzv-conf") + 1] == f"is_host={hosts}"


@pytest.mark.parametrize("rdzv", ["", "node0", "node0:", ":29500", "node0:http"])
def test_a_place_to_meet_is_needed(rdzv: str) -> None:
    with pytest.raises(ConfigError, match=r"expected HOST:PORT, the same on all 2 machines"):
        Launch(nproc=1, nnodes=2, rdzv=rdzv).processes()


def test_processes_are_one_or_more() -> None:
    with pytest.raises(ConfigError, match="--nproc 0"):
        Launch(nproc=0).processes()


def test_more_processes_than_a_machine_without_cards_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert Launch(nproc=16).processes() == 16
    with pytest.raises(ConfigError, match="--nproc 99: this machine has 2 cores and no card, expected at most 16"):
        Launch(nproc=99).processes()


def test_workers_are_told_whom_to_end_with(monkeypatch: pytest.MonkeyPatch) -> None:
    said = dict[str, str]()

    def run(command: Sequence[str]) -> launching._Ended:
        said.update(os.environ)
        Path(os.environ[OUTCOME]).write_text('{"outcome": "finished", "message": ""}')
        return launching._Ended()

    monkeypatch.setattr(launching, "_run", run)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    launch(Launch(nproc=1), [], {})
    assert said[PARENT] == str(os.getpid())
    assert PARENT not in os.environ and OUTCOME not in os.environ


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--threads", "0"], "--threads 0: expected 1 or more"),
        (["--overrides", "{"], "--overrides: not readable as JSON"),
        (["--overrides", "[1]"], r"--overrides [1]: expected a table"),
        (["--local-cache", "x", "--local-cache-limit", "many"], "many"),
        (["--recipe", "none"], "'none': no such file"),
        (["--run-dir", "file/run"], "file/run: Not a directory; check the path"),
    ],
)
def test_what_torchrun_s_entry_cannot_take_is_one_line_and_status_1(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith("BEVCASK")})
    (tmp_path / "file").write_text("")
    write_frames(tmp_path / "cache", frames=2, size=(32, 18), points=False)
    recipe = {"model": TINY_STUDENT, "train": {"steps": 1, "batch": 1, "lr": 1e-3}}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    given = {"--recipe": "r.json", "--cache": str(tmp_path / "cache"), "--run-dir": str(tmp_path / "run")}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    assert main([word for pair in given.items() for word in pair]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "run").exists()


def test_the_entry_of_torchrun_tells_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--recipe", "--cache", "--run-dir", "--resume", "torchrun"))
