"""A training as one process of torchrun, or alone:

    torchrun --nproc-per-node N -m trainer.main --recipe RECIPE --cache CACHE --run-dir RUN

which is what `./bevcask train --nproc N` starts. Exit status: 0 finished, 75 asked to stop and saved, 1 any other end.
A worker that torchrun starts again goes on from the last checkpoint. With BEVCASK_OUTCOME, a file, the first process of
this machine that knows how the run ended writes that there, for the launcher.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache.errors import BevcaskError, ConfigError, StoreError
from cache.files import parse_json, write_json
from cache.local_cache import use_local_cache
from trainer.distributed import PeerError
from trainer.loop import train
from trainer.orphans import end_with_parent
from trainer.preemption import PreemptedError
from trainer.recipe import load_recipe

OUTCOME = "BEVCASK_OUTCOME"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the arguments say; the exit status."""
    asked = _parser().parse_args(arguments)
    worker = "TORCHELASTIC_RUN_ID" in os.environ
    if worker:
        end_with_parent()
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    try:
        try:
            _train(asked, asked.resume or again)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise StoreError(
                f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the disk"
            ) from error
    except BevcaskError as error:
        words = " ".join(str(error).split())
        # a launcher says it itself; else what another rank failed of is said once a machine
        own = not isinstance(error, PeerError | PreemptedError) or os.environ.get("LOCAL_RANK", "0") == "0"
        if own and OUTCOME not in os.environ:
            sys.stderr.write(f"{words}\n")  # in one piece: ranks share it, and print writes line and end apart
            sys.stderr.flush()
        _tell("preempted" if isinstance(error, PreemptedError) else "failed", words, error)
        return error.exit_status
    _tell("finished", "", None)
    return 0


def _train(asked: argparse.Namespace, resume: bool) -> None:
    if asked.threads is not None and asked.threads < 1:
        raise ConfigError(f"--threads {asked.threads}: expected 1 or more")
    overrides = parse_json(asked.overrides.encode(), "--overrides", "JSON laid over the recipe")
    if not isinstance(overrides, dict):
        raise ConfigError(f"--overrides {asked.overrides}: expected a table, such as {{}}")
    use_local_cache(asked.local_cache, asked.local_cache_limit)
    train(load_recipe(asked.recipe, overrides), asked.cache, asked.run_dir, resume=resume, threads=asked.threads)


def _tell(outcome: str, message: str, error: BevcaskError | None) -> None:
    """Writes the outcome for the launcher; not where a rank was merely lost: torchrun may begin the run again. A rank's
    own error goes before what others say of it."""
    path = os.environ.get(OUTCOME)
    if not path or (isinstance(error, PeerError) and error.lost):
        return
    values: dict[str, Any] = {"outcome": outcome, "message": message}
    if not Path(path).exists() or not isinstance(error, PeerError):
        write_json(Path(path), values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainer.main", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a shipped recipe, a TOML file, or a run's recipe.json")
    parser.add_argument("--cache", required=True, help="folder or URL of the stores")
    parser.add_argument("--run-dir", required=True, type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--overrides", default="{}", help="JSON laid over the recipe")
    parser.add_argument("--threads", type=int, help="torch threads of each process")
    parser.add_argument("--local-cache", help="a folder through which stores at URLs are read")
    parser.add_argument("--local-cache-limit", help="its size, such as 200GB")
    return parser


if __name__ == "__main__":
    sys.exit(main())
