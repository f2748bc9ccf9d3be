"""Part 3: the teacher pass: its efficiency, and that it survives the death of its parts."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from studies.benches.registry import run_bench
from studies.claims.claim import Claim, expect


def the_pass_keeps_the_teacher_busy(work: Path) -> str:
    """Frames per second of the pass over those of the bare forward pass, and of two workers over one."""
    f = run_bench("cache-teacher", work / "bench", Console(stderr=True), {})
    found = (
        f"pass {f['pipeline_frames_per_s']:.3f}, forward alone {f['forward_frames_per_s']:.3f} frames/s on "
        f"{f['device']}: {f['efficiency']:.3f}; two workers {f['two_workers']['ratio']:.2f} times one; the demo's "
        f"teacher {f['demo']['efficiency']:.3f}"
    )
    return expect(f["efficiency"] >= 0.9 and f["two_workers"]["ratio"] >= 1.7, found, "0.9 and 1.7")


def a_pass_survives_the_death_of_its_parts(work: Path) -> str:
    """20 workers killed, then the scheduler, then the client: each time a rerun ends in the undisturbed bytes."""
    from studies.benches.pass_kills import kill_pass

    tally = kill_pass(work / "pass-kills")
    found = (
        f"{tally.workers} workers, {tally.schedulers} scheduler, {tally.clients} client killed; {tally.identical} of 3 "
        f"stores identical; {tally.failures or 'no failures'}"
    )
    counts = (tally.workers, tally.schedulers, tally.clients, tally.identical)
    return expect(counts >= (20, 1, 1, 3) and tally.identical == 3 and not tally.failures, found, "20, 1, 1 and all 3")


CLAIMS = (
    Claim(3, "pass-efficiency", 3600, the_pass_keeps_the_teacher_busy),
    Claim(3, "pass-kills", 3600, a_pass_survives_the_death_of_its_parts),
)
