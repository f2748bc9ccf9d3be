"""`./bevcask prove`: every slow "must hold" of the project, checked for real, one process each, with a time limit.

Resumable: a claim that held at this commit is not run again. Results lie in <run>/results/NAME.json; a claim that fails
says what was found. Work that several claims need (a clean clone with its demo) is done once and shared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cache.errors import BevcaskError
from cache.files import read_json, write_json
from cache.geometry import points_in_boxes
from cache.layout import frames_place
from cache.store import FrameStore

ROOT = Path(__file__).parent.parent
REAL_ROOT = ROOT.parent / "shared" / "data" / "nuscenes-keyframe-a"
SHIPPED, ASIDE = "models/checkpoints/demo-teacher.safetensors", "demo-teacher.aside"


class NotHeldError(BevcaskError):
    """A claim that does not hold; the message says what was found and what was claimed."""


@dataclass(frozen=True)
class Claim:
    """One thing that must hold: its part and name, a time limit, and a function (work folder) -> the figure seen."""

    part: int
    name: str
    limit_s: int
    check: Callable[[Path], str]


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


def expect(held: bool, found: str, claimed: str) -> str:
    """`found` where it held, else NotHeldError."""
    if not held:
        raise NotHeldError(f"found {found}, claimed {claimed}")
    return found


def clean_clone(work: Path) -> Path:
    """A clone of HEAD in `work` without .venv, made once per commit."""
    clone = work / f"clone-{_commit()[:12]}"
    if not clone.is_dir():
        for old in work.glob("clone-*"):
            shutil.rmtree(old)
        partial = clone.with_name("partial-clone")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", str(ROOT), str(partial)], check=True)
        partial.rename(clone)
    if (clone / ASIDE).is_file():  # left by a claim that was killed
        (clone / ASIDE).rename(clone / SHIPPED)
    return clone


def _timed_task(clone: Path, *arguments: str) -> tuple[float, str]:
    """Seconds and output of `./bevcask ...` in the clone; NotHeldError with the last lines where it fails."""
    start = time.monotonic()
    environment = {**os.environ, "BEVCASK_REAL_DATA": str(REAL_ROOT)}  # the clone does not lie beside the data
    command = ["./bevcask", *arguments]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, env=environment)
    seconds = time.monotonic() - start
    if done.returncode:
        raise NotHeldError(
            f"./bevcask {' '.join(arguments)} ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}"
        )
    return seconds, done.stdout


def demo_from_a_clean_clone(work: Path) -> str:
    """The demo, its installation included, ends within 20 minutes and prints its table as the last line."""
    clone = clean_clone(work)
    shutil.rmtree(clone / ".venv", ignore_errors=True)
    shutil.rmtree(clone / "runs", ignore_errors=True)
    seconds, output = _timed_task(clone, "demo", "--json")
    table = json.loads(output.strip().splitlines()[-1])
    write_json(work / "demo.json", {"seconds": seconds, "table": table})
    expect(set(table) == {"teacher", "student", "distilled"}, f"rows {sorted(table)}", "teacher, student, distilled")
    return expect(seconds < 1200, f"{seconds:.0f} s with installation", "under 1200 s")


def test_suite_from_a_clean_clone(work: Path) -> str:
    """The whole suite ends within 15 minutes."""
    seconds, output = _timed_task(clean_clone(work), "test")
    return expect(seconds < 900, f"{seconds:.0f} s; {output.strip().splitlines()[-1]}", "under 900 s")


def _demo_result(work: Path) -> dict[str, Any]:
    path = clean_clone(work) / "runs" / "demo" / "result.json"
    if not path.is_file():
        raise NotHeldError("the demo of the clean clone has not ended; claim demo-time comes first")
    return read_json(path, "the demo's result")


def teacher_reaches_nds(work: Path) -> str:
    """The demo teacher on the simulated val split."""
    nds = _demo_result(work)["teacher"]["NDS"]
    return expect(nds >= 0.50, f"teacher NDS {nds:.3f}", "at least 0.50")


def student_beats_its_shuffled_self(work: Path) -> str:
    """The undistilled student's mAP, alone and against its own predictions shuffled over frames."""
    result = _demo_result(work)
    student, shuffled = result["student"]["mAP"], result["student_shuffled"]["mAP"]
    found = f"student mAP {student:.3f}, shuffled over frames {shuffled:.4f}"
    return expect(student >= 0.10 and student >= 3 * shuffled, found, "mAP at least 0.10 and 3 times the shuffled one")


def demo_trains_its_teacher_where_none_is_shipped(work: Path) -> str:
    """With the checkpoint deleted, the demo trains one and ends well."""
    clone = clean_clone(work)
    shipped, aside = clone / SHIPPED, clone / ASIDE
    shipped.rename(aside)
    try:
        seconds, output = _timed_task(clone, "demo", "--run", "runs/untaught", "--json")
    finally:
        aside.rename(shipped)
    table = json.loads(output.strip().splitlines()[-1])
    found = f"demo ended in {seconds:.0f} s, its own teacher has NDS {table['teacher']['NDS']:.3f}"
    return expect(table["teacher"]["NDS"] >= 0.50, found, "NDS at least 0.50")


def real_keyframe_goes_through_every_task(work: Path) -> str:
    """The four tasks on the real keyframe with the shipped teacher, and its points per box."""
    if not REAL_ROOT.is_dir():
        raise NotHeldError(f"the real keyframe is not at {REAL_ROOT}, so nothing was tried")
    cache = work / "real"
    shutil.rmtree(cache, ignore_errors=True)
    data, token = ["--data-root", str(REAL_ROOT)], "ca9a282c9e77460f8360f564131a8af5"
    for arguments in (
        ["cache-frames", *data, "--version", "v1.0-mini", "--cache", str(cache), "--points"],
        ["cache-teacher", "--cache", str(cache), "--name", "demo"],
        ["inspect", "--cache", str(cache), "--token", token, "--out", str(work / "real.png")],
        ["evaluate", "--cache", str(cache), "--teacher", "demo"],
    ):
        _timed_task(ROOT, *arguments)
    store = FrameStore(frames_place(cache))
    truth, frame = store.truth(0), store.frame(0)
    counts = points_in_boxes(store.points(0)[:, :3], truth.boxes_global, frame.lidar_to_global())
    share = float((np.abs(counts - truth.num_lidar_pts) <= 1).mean())
    return expect(
        share >= 0.9, f"four tasks ended well; {share:.0%} of {len(truth)} boxes agree within 1 point", "90 %"
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(1, "real-keyframe", 300, real_keyframe_goes_through_every_task),
    Claim(1, "demo-time", 1500, demo_from_a_clean_clone),
    Claim(1, "test-time", 1200, test_suite_from_a_clean_clone),
    Claim(1, "teacher-nds", 60, teacher_reaches_nds),
    Claim(1, "student-map", 60, student_beats_its_shuffled_self),
    Claim(1, "demo-without-checkpoint", 3000, demo_trains_its_teacher_where_none_is_shipped),
)


def run_claims(work: Path, part: int | None, console: Console) -> list[ClaimResult]:
    """Runs the claims of a part (all for None) one after another and prints each result as it comes."""
    chosen = [claim for claim in CLAIMS if part in (None, claim.part)]
    if not chosen:
        raise BevcaskError(f"no claims for part {part}; there are parts {sorted({claim.part for claim in CLAIMS})}")
    work = work.resolve()
    results = []
    for claim in chosen:
        path = work / "results" / f"{claim.name}.json"
        earlier = ClaimResult(**read_json(path, "a claim's result")) if path.is_file() else None
        if earlier and earlier.held and earlier.commit == _commit():
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
    return ClaimResult(claim.part, claim.name, held, found, time.monotonic() - start, _commit())


def _commit() -> str:
    """HEAD, so that a result belongs to a state of the code; claims run on what is committed."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no-git"


if __name__ == "__main__":
    _name, _work = sys.argv[1:]
    _claim = next(claim for claim in CLAIMS if claim.name == _name)
    try:
        print(_claim.check(Path(_work)))
    except BevcaskError as _error:
        sys.exit(" ".join(str(_error).split()))
