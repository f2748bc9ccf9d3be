"""A run's model over frames of a frame store, by one process or several of this machine: figures are the same.

`predict_run` is rank 0 where it is called and starts the other ranks as `python -m trainer.predict_run`, which read
what to do from their standard input and end when it closes, so that none outlives its caller. Each loads the model.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import DistStoreError, Store, TCPStore  # type: ignore[attr-defined]

from cache.errors import BevcaskError
from cache.store import FrameStore
from models.detector import Detector
from trainer.distributed import ALONE, PeerError, Ranks
from trainer.predict import Portion, Progress, load_run, stream_over_ranks

Which = Literal["last", "best"]
_HOST = "127.0.0.1"
_LOOK_S = 2.0


@dataclass(frozen=True)
class RunModel:
    """A run's model by name: its folder, which of its weights, and the callable that may make it (see `load_run`)."""

    run: Path
    weights: Which = "last"
    trusted: str = ""

    def load(self, rank: int) -> Detector:
        """In evaluation mode, on the rank's GPU where there is one."""
        model = load_run(self.run, self.trusted, self.weights)
        if torch.cuda.is_available():
            cast(nn.Module, model).to(f"cuda:{rank % torch.cuda.device_count()}")
        return model


def predict_run(
    source: RunModel,
    model: Detector,
    store: FrameStore,
    rows: Sequence[int],
    deliver: Callable[[Portion], None],
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> None:
    """Streams `model`, which `source` has loaded, over the rows by so many processes; portions come to `deliver`.

    progress: called with (frames done, frames in all). Raises BevcaskError with a process's words where one fails.
    """
    if processes == 1:
        stream_over_ranks(model, store, rows, deliver, ALONE, progress=progress)
        return
    threads = max(1, torch.get_num_threads() // processes)
    spec = {
        "cache": store.root.url,
        "run": str(source.run.resolve()),
        "weights": source.weights,
        "trusted": source.trusted,
        "rows": list(rows),
        "threads": threads,
    }
    with _other_ranks(processes, spec) as ranks:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            stream_over_ranks(model, store, rows, deliver, ranks, progress=progress)
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _other_ranks(world: int, spec: dict[str, Any]) -> Iterator[Ranks]:
    """This process as rank 0 of a gloo group whose other ranks are started here, and have ended afterwards."""
    meeting = TCPStore(_HOST, 0, None, True, timeout=timedelta(seconds=_LOOK_S), wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        logs = [stack.enter_context(open(Path(folder) / str(rank), "w+")) for rank in range(1, world)]
        started = []
        for rank, log in enumerate(logs, 1):
            process = subprocess.Popen(
                [sys.executable, "-m", "trainer.predict_run"],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(spec["threads"]), "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
            stack.callback(_end, process)
            started.append(process)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**spec, "rank": rank, "world": world, "port": meeting.port}) + "\n")
                process.stdin.flush()
        try:
            _await(meeting, started)
            with _group(meeting, 0, world) as ranks:
                yield ranks
        except PeerError as error:
            raise PeerError(_words(started, logs) or str(error)) from error


def _await(meeting: Store, started: Sequence[subprocess.Popen[str]]) -> None:
    for rank in range(1, len(started) + 1):
        while True:
            try:
                meeting.wait([f"here/{rank}"], timedelta(seconds=_LOOK_S))
                break
            except DistStoreError:
                if any(process.poll() is not None for process in started):
                    raise PeerError("a process that predicts ended at its start") from None


@contextlib.contextmanager
def _group(meeting: Store, rank: int, world: int) -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world, timeout=timedelta(minutes=30))
    try:
        yield Ranks(rank, world, words=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _words(started: Sequence[subprocess.Popen[str]], logs: Sequence[IO[str]]) -> str:
    """What the first rank that failed by itself said, if one did."""
    for rank, (process, log) in enumerate(zip(started, logs, strict=True), 1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S)
        log.seek(0)
        lines = log.read().strip().splitlines()
        if process.poll():
            said = lines[-1] if lines else "it said nothing, as one that was killed for its memory"
            return f"process {rank} of those that predict ended with status {process.returncode}: {said}"
    return ""


def main() -> None:
    """One of the other ranks."""
    spec = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_caller, daemon=True).start()
    torch.set_num_threads(spec["threads"])
    meeting = TCPStore(_HOST, spec["port"], None, False, timeout=timedelta(seconds=60))
    meeting.set(f"here/{spec['rank']}", "1")
    with _group(meeting, spec["rank"], spec["world"]) as ranks:
        try:
            store = FrameStore(spec["cache"])
            model = RunModel(Path(spec["run"]), spec["weights"], spec["trusted"]).load(ranks.rank)
            stream_over_ranks(model, store, spec["rows"], lambda portion: None, ranks)
        except BevcaskError as error:
            print(" ".join(str(error).split()), file=sys.stderr, flush=True)
            os._exit(1)  # not through the group's end, which waits for the others


def _end_with_caller() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
