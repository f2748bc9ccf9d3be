"""`./bevcask prove`: every slow "must hold" of the project, checked for real, one process each, with a time limit.

Resumable: a claim that held at this commit is not run again. Results lie in <run>/results/NAME.json; a claim that fails
says what was found. Work that several claims need (a clean clone with its demo) is done once and shared.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cache.errors import BevcaskError, ConfigError
from cache.files import read_json, write_json
from studies.claims import part1, part2, part3, part4, part6, part6_loader, part7
from studies.claims.claim import ROOT, Claim, commit

CLAIMS: tuple[Claim, ...] = (
    *part1.CLAIMS,
    *part2.CLAIMS,
    *part3.CLAIMS,
    *part4.CLAIMS,
    *part6.CLAIMS,
    *part6_loader.CLAIMS,
    *part7.CLAIMS,
)


@dataclass(frozen=True)
class ClaimResult:
    """What was seen of one claim."""

    part: int
    name: str
    held: bool
    found: str
    seconds: float
    commit: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_claims(work: Path, part: int | None, console: Console, names: Sequence[str] = ()) -> list[ClaimResult]:
    """Runs the claims of a part (all for None), or only the named ones, one after another; prints each result as it
    comes. ConfigError where there is no such claim."""
    chosen = [claim for claim in CLAIMS if part in (None, claim.part) and (not names or claim.name in names)]
    if not chosen or not set(names) <= {claim.name for claim in chosen}:
        known = ", ".join(f"{claim.name} (part {claim.part})" for claim in CLAIMS)
        raise ConfigError(f"no claims for part {part}, names {list(names)}; there are {known}")
    work = work.resolve()
    results = []
    for claim in chosen:
        path = work / "results" / f"{claim.name}.json"
        earlier = ClaimResult(**read_json(path, "a claim's result")) if path.is_file() else None
        if earlier and earlier.held and earlier.commit == commit():
            result = earlier
        else:
            console.print(f"[dim]part {claim.part}: {claim.name}, at most {claim.limit_s} s ...[/dim]")
            result = _run_apart(claim, work)
            write_json(path, result.to_dict())
        verdict = "[green]held[/green]" if result.held else "[red]did not hold[/red]"
        console.print(f"part {result.part}: {result.name}: {verdict} ({result.seconds:.0f} s): {result.found}")
        results.append(result)
    return results


def _run_apart(claim: Claim, work: Path) -> ClaimResult:
    """One claim in a process of its own, so that a hang or a crash is a result as well."""
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "studies.prove", claim.name, str(work)]
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )
        out, err = process.communicate(timeout=claim.limit_s)
        lines = (out if process.returncode == 0 else err or out).strip().splitlines()
        held, found = process.returncode == 0, lines[-1] if lines else f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the claim's own children too, or they would spoil the next one's time
        process.communicate()
        held, found = False, f"no end within {claim.limit_s} s"
    return ClaimResult(claim.part, claim.name, held, found, time.monotonic() - start, commit())


if __name__ == "__main__":
    _name, _work = sys.argv[1:]
    _claim = next(claim for claim in CLAIMS if claim.name == _name)
    try:
        print(_claim.check(Path(_work)))
    except BevcaskError as _error:
        sys.exit(" ".join(str(_error).split()))
