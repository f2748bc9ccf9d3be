"""Starts a training as the ranks of one or several machines: torchrun in this process, `trainer.main` in its workers.

The workers leave word of how the run ended in a file of this machine's, so that the launcher can end with a status of
its own: torchrun's is 1 whatever happened. Nothing is left behind: workers end with their launcher, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cache.errors import BevcaskError, ConfigError
from cache.files import read_json
from trainer.main import OUTCOME
from trainer.orphans import PARENT, started_from_here
from trainer.preemption import PreemptedError

ROOT = Path(__file__).parent.parent
GRACE_S = 20.0  # from the first word of the run's end to that of torchrun, which may wait for machines that are gone
RESTARTS = 100  # of the workers, where other machines come and go; a run that failed by itself is not begun again
PER_CORE = 8  # processes of a machine without cards: more would take its memory, some 0.5 GB each, and no step sooner
SHUTDOWN_S = 300  # for workers to save after SIGTERM


@dataclass(frozen=True)
class Launch:
    """nproc: processes of this machine, None for one a card; nnodes: machines; rdzv: HOST:PORT where they meet, HOST
    being one of them; local_addr: by which the others reach this one, where its name does not do."""

    nproc: int | None = None
    nnodes: int = 1
    rdzv: str = ""
    local_addr: str = ""

    def processes(self) -> int:
        """Of this machine. ConfigError where that is impossible."""
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        count = self.nproc if self.nproc is not None else max(cards, 1)
        if count < 1 or self.nnodes < 1:
            raise ConfigError(f"--nproc {count} --nnodes {self.nnodes}: expected 1 or more")
        if cards and count > cards:
            raise ConfigError(f"--nproc {count}: this machine has {cards} cards; lower it to that")
        cores = os.cpu_count() or 1
        if not cards and count > PER_CORE * cores:
            raise ConfigError(
                f"--nproc {count}: this machine has {cores} cores and no card, expected at most {PER_CORE * cores}; "
                "each process needs memory of its own"
            )
        host, _, port = self.rdzv.rpartition(":")
        if self.nnodes > 1 and not (host and port.isdecimal()):
            raise ConfigError(
                f"--rdzv {self.rdzv!r}: expected HOST:PORT, the same on all {self.nnodes} machines, HOST being one of "
                "them and PORT free there"
            )
        return count

    def torchrun(self, arguments: Sequence[str]) -> list[str]:
        """What torchrun is called with to run `trainer.main` with these arguments."""
        options = ["--nproc-per-node", str(self.processes())]
        if self.nnodes == 1:
            options.append("--standalone")
        else:
            options += ["--nnodes", str(self.nnodes), "--max-restarts", str(RESTARTS), "--rdzv-id", "bevcask"]
            options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", self.rdzv]
        if self.local_addr:
            host = self.rdzv.rpartition(":")[0]
            options += ["--local-addr", self.local_addr]
            # torchrun looks for HOST among the addresses of this machine's name, which are not all that it has
            options += ["--rdzv-conf", f"is_host={str(host == self.local_addr).lower()}"] if self.nnodes > 1 else []
        return [*options, "-m", "trainer.main", *arguments]


def launch(asked: Launch, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs `trainer.main` with these arguments in all processes, to its end; environment: beside this process's own.

    Raises PreemptedError where the run was asked to stop, and saved; BevcaskError in the run's own words where it
    failed, or where a process was lost.
    """
    command = asked.torchrun(arguments)
    cores = max(1, (os.cpu_count() or 1) // asked.processes())
    defaults = {**environment, "OMP_NUM_THREADS": str(cores), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    forced = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "PYTHONSAFEPATH": "1",  # a folder named cache in the caller's directory must not be imported in place of ours
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S),
    }
    if asked.nnodes > 1:
        # torchrun 2.13 tells the workers' meeting place once: a machine that comes back would wait for it in vain
        forced["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with tempfile.TemporaryDirectory(prefix="bevcask-") as folder, _signals_as_before():
        outcome = Path(folder) / "outcome.json"
        os.environ.update({**defaults, **os.environ, **forced, **started_from_here(), OUTCOME: str(outcome)})
        over = threading.Event()
        threading.Thread(target=_end_soon_after, args=(outcome, over), daemon=True).start()
        signal.signal(signal.SIGTERM, _before_torchrun)  # which has handlers of its own once there are workers
        try:
            ended = _run(command)
        finally:
            over.set()
            for name in (OUTCOME, PARENT):
                os.environ.pop(name, None)
        told = read_json(outcome, "how the run ended") if outcome.is_file() else {"outcome": "", "message": ""}
    if told["outcome"] == "failed":
        raise BevcaskError(told["message"])
    if told["outcome"] == "preempted" or (ended.stopped_by is not None and told["outcome"] != "finished"):
        by_hand = ended.stopped_by == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()
        raise PreemptedError(told["message"] or "asked to stop before the first step", by_hand)
    if told["outcome"] != "finished":
        raise BevcaskError(f"{ended.words}; the same command with --resume goes on from the last checkpoint")


@dataclass(frozen=True)
class _Ended:
    """How torchrun ended: by which signal, or in words."""

    words: str = "torchrun ended without a word of the run"
    stopped_by: signal.Signals | None = None


def _run(command: Sequence[str]) -> _Ended:
    """torchrun, to its end."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    try:
        run(get_args_parser().parse_args(list(command)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = f"status {failure.exitcode}" if failure.exitcode >= 0 else signal.Signals(-failure.exitcode).name
        return _Ended(f"rank {rank} ended with {status}: see its last words above")
    except SignalException as error:
        return _Ended(stopped_by=error.sigval)
    except (RuntimeError, OSError) as error:  # of the rendezvous
        return _Ended(f"torchrun: {' '.join(str(error).split()) or type(error).__name__}")
    return _Ended()


def _before_torchrun(number: int, frame: object) -> None:
    raise PreemptedError("asked to stop before the first step")


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_soon_after(outcome: Path, over: threading.Event) -> None:
    """Ends torchrun some time after the run has, where it is still there: it would wait for other machines, or begin a
    run again that failed by itself."""
    while not over.wait(0.5):
        if outcome.is_file():
            if not over.wait(GRACE_S):
                os.kill(os.getpid(), signal.SIGTERM)
            return
