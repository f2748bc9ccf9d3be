from __future__ import annotations

import pytest

from cache.errors import ConfigError
from studies.launch import Launch
from trainer.main import main


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


def test_the_entry_of_torchrun_tells_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--recipe", "--cache", "--run-dir", "--resume", "torchrun"))
