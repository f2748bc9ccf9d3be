"""The Dask engine: order of results, errors of tasks, and a cluster that is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
from dask.distributed import Client, LocalCluster

from cache.errors import BevcaskError, ConfigError, DataError
from pipeline.engine import Cluster, run_shards, slurm_cluster


def echo(number: int) -> dict[str, Any]:
    return {"frames": number, "bytes": 0, "quarantined": 0}


def fail_on_three(number: int) -> dict[str, Any]:
    if number == 3:
        raise DataError("shard 3: what was found, what to do")
    return echo(number)


class Collect:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.notes: list[str] = []

    def advance(self, summary: dict[str, Any]) -> None:
        self.seen.append(summary["frames"])

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_jobs_and_progress_sees_each_once(workers: int) -> None:
    progress = Collect()
    results = run_shards(echo, [(n,) for n in range(6)], workers=workers, progress=progress)
    assert [r["frames"] for r in results] == list(range(6))
    assert sorted(progress.seen) == list(range(6))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_reaches_the_caller_with_its_message(workers: int) -> None:
    with pytest.raises(DataError, match="shard 3: what was found"):
        run_shards(fail_on_three, [(n,) for n in range(5)], workers=workers)


def test_an_error_of_a_task_is_told_by_the_caller_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError):
        run_shards(fail_on_three, [(1,), (3,)], workers=2)
    printed = capfd.readouterr()
    assert "what was found" not in printed.out + printed.err


def test_no_jobs_start_no_cluster() -> None:
    assert run_shards(echo, [], workers=2) == []


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    with pytest.raises(BevcaskError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run_shards(echo, [(1,)], cluster=Cluster("tcp://127.0.0.1:9"))


def gpu_of_worker(number: int) -> dict[str, Any]:
    return {**echo(number), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}


def test_each_local_worker_sees_its_own_gpu() -> None:
    results = run_shards(gpu_of_worker, [(n,) for n in range(12)], gpus=("3", "GPU-ab12"))
    by_process = {(r["process"], r["gpu"]) for r in results}
    assert len({process for process, _ in by_process}) == len(by_process) <= 2
    assert {gpu for _, gpu in by_process} <= {"3", "GPU-ab12"}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") not in ("3", "GPU-ab12")


def test_a_running_cluster_is_used_by_its_address() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=40) as running:
        pids = set(Client(running).run(os.getpid).values())
        results = run_shards(gpu_of_worker, [(n,) for n in range(3)], cluster=Cluster(running.scheduler_address))
    assert {r["process"] for r in results} == pids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "mesos"), "--cluster 'mesos' is unknown, expected one of local, slurm"),
        (("tcp://a:1", "slurm"), "give one of the two"),
    ],
)
def test_clusters_that_there_are_not_are_told(arguments: tuple[str | None, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(*arguments)


def test_a_slurm_job_asks_for_one_process_and_the_memory_of_the_configuration() -> None:
    """The job script is looked at; no scheduler is there to submit it to."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue (extra slurm) is not installed")
    with dask.config.set({"jobqueue.slurm.memory": "7GB", "jobqueue.slurm.queue": "gpu"}):
        cluster = slurm_cluster(0)
        try:
            script = cluster.job_script()
        finally:
            cluster.close()
    assert "#SBATCH -p gpu" in script and "#SBATCH --mem=7G" in script and "#SBATCH -n 1" in script
    assert "--nthreads 1" in script


def test_without_dask_jobqueue_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ConfigError, match=r"dask-jobqueue; run: pip install -c constraints\.txt -e '\.\[slurm\]'"):
        run_shards(echo, [(1,)], cluster=Cluster(kind="slurm"))


def test_the_report_is_written_where_asked(tmp_path: Path) -> None:
    pytest.importorskip("bokeh", reason="bokeh (extra dashboard) is not installed")
    progress = Collect()
    run_shards(echo, [(1,), (2,)], workers=2, cluster=Cluster(report=tmp_path / "report.html"), progress=progress)
    assert "<html" in (tmp_path / "report.html").read_text().lower()
    assert [note for note in progress.notes if note.startswith("Dask dashboard: http")]


def test_a_report_without_bokeh_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.engine.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bokeh; run: pip install -c constraints\.txt -e '\.\[dashboard\]'"):
        Cluster(report=tmp_path / "report.html")


def wait_for_long(folder: str) -> dict[str, Any]:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(300)
    return echo(1)


def test_an_interrupt_while_workers_start_ends_them_without_noise(tmp_path: Path) -> None:
    """Before the first of them runs anything of ours: as soon as there are processes."""
    code = (
        "from pipeline.engine import run_shards; from tests.pipeline.test_engine import wait_for_long\n"
        f"if __name__ == '__main__': print('begins', flush=True); "
        f"run_shards(wait_for_long, [({str(tmp_path)!r},)] * 2, workers=2)"
    )
    main = tmp_path / "main.py"
    main.write_text(code)
    folder = Path(__file__).parents[2]
    run = subprocess.Popen(
        [sys.executable, str(main)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert run.stdout is not None and run.stdout.readline() == "begins\n"
        workers = _eventually(lambda: _spawned_by(run.pid))
        os.killpg(run.pid, signal.SIGINT)
        _, noise = run.communicate(timeout=60)
        assert run.returncode == -signal.SIGINT and noise.count("Traceback") == 1, noise  # the client's own
        assert _eventually(lambda: not any(map(_runs, workers)))
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def _spawned_by(pid: int) -> list[int]:
    """The processes of its two workers, as soon as there are both."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            line = (path / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in line:
            found.append(int(path.name))
    return found if len(found) == 2 else []


def test_an_interrupt_from_the_terminal_ends_client_and_workers_without_noise(tmp_path: Path) -> None:
    code = (
        "from pipeline.engine import run_shards; from tests.pipeline.test_engine import wait_for_long\n"
        f"if __name__ == '__main__': run_shards(wait_for_long, [({str(tmp_path)!r},)] * 2, workers=2)"
    )
    main = tmp_path / "main.py"
    main.write_text(code)
    folder = Path(__file__).parents[2]
    run = subprocess.Popen(
        [sys.executable, str(main)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        workers = [path for path in _eventually(lambda: _numbered(tmp_path)) if int(path.name) != run.pid]
        os.killpg(run.pid, signal.SIGINT)
        _, noise = run.communicate(timeout=60)
        assert run.returncode == -signal.SIGINT and noise.count("Traceback") == 1  # the client's own
        assert _eventually(lambda: not any(_runs(int(path.name)) for path in workers))
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def _numbered(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    return found if len(found) == 2 else []


def _eventually(ask: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer; fails where none comes."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)
    return answer


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
