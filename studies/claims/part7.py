"""Part 7: the array metric is the devkit's, on odd worlds and at full size, and much faster."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console

from evaluation.submission import submission_meta, submission_results
from studies.benches import odd_worlds
from studies.benches.broken_submissions import broken, verdict
from studies.benches.evaluate_data import made_up_split
from studies.benches.odd_cases import count_cases
from studies.benches.odd_worlds import difference_to_the_devkit
from studies.benches.registry import run_bench
from studies.claims.claim import Claim, expect

ODD_WORLDS, EXAMPLES, CHANGED = 200, 1000, 600


def the_metric_is_the_devkits(work: Path) -> str:
    """The largest difference over odd worlds of fixed seeds and over examples that hypothesis chooses."""
    from hypothesis import HealthCheck, given, settings  # a package of developers
    from hypothesis import strategies as st

    fixed = max(difference_to_the_devkit(np.random.default_rng(seed)) for seed in range(ODD_WORLDS))
    seen: list[float] = []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(min_value=0, max_value=2**63 - 1))
    def drawn(seed: int) -> None:
        seen.append(difference_to_the_devkit(np.random.default_rng(seed)))
        assert seen[-1] <= 1e-12, f"seed {seed} differs by {seen[-1]}"

    drawn()
    counts = count_cases(odd_worlds.drawn(np.random.default_rng(seed)) for seed in range(ODD_WORLDS))
    rarest = min(counts, key=counts.__getitem__)
    found = (
        f"{ODD_WORLDS} odd worlds differ by {fixed:.1e}, {len(seen)} examples by {max(seen):.1e} at most; each of "
        f"{len(counts)} odd cases occurs in {counts[rarest]} of the worlds or more ({rarest})"
    )
    held = fixed <= 1e-12 and max(seen) <= 1e-12 and len(seen) >= EXAMPLES and counts[rarest] > 0
    return expect(held, found, "1e-12, every case")


def broken_submissions_are_told(work: Path) -> str:
    """Changed at random: what is accepted scores as the devkit does, what is refused it refuses, or it is written."""
    split = made_up_split(4, 30, seed=3)
    results = submission_results(split.frames, split.detections)
    good = json.loads(json.dumps({"meta": submission_meta(lidar=True), "results": results}))
    work.mkdir(parents=True, exist_ok=True)
    path = work / "changed.json"
    verdicts: Counter[str] = Counter()
    for seed in range(CHANGED):
        path.write_bytes(broken(np.random.default_rng(seed), good))
        verdicts[verdict(path, split.frames, split.truth)] += 1
    told = ", ".join(f"{count} {said}" for said, count in verdicts.most_common())
    return expect(set(verdicts) <= {"same", "both", "purpose"}, f"{CHANGED} changed files: {told}", "no other verdict")


def the_metric_is_fast(work: Path) -> str:
    """Full size: seconds of both sides, the largest difference, and the task from stores to figures."""
    f = run_bench("evaluate", work / "bench", Console(stderr=True), {})
    task = f["task"]
    found = (
        f"{f['samples']} samples x {f['predictions']}: devkit {f['devkit_s']:.1f} s, arrays {f['ours_s']:.2f} s, "
        f"{f['speedup']:.0f} times, difference {f['max_abs_diff']:.1e}; from stores {task['total_s']:.2f} s, "
        f"{task['peak_mb']:.0f} MB"
    )
    return expect(
        f["speedup"] >= 30 and task["total_s"] < 5 and f["max_abs_diff"] <= 1e-12, found, "30 times, under 5 s, 1e-12"
    )


CLAIMS = (
    Claim(7, "metric-equality", 1800, the_metric_is_the_devkits),
    Claim(7, "submissions-told", 900, broken_submissions_are_told),
    Claim(7, "metric-speed", 3600, the_metric_is_fast),
)
