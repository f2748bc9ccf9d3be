"""Faults: corrupted, failing and killed stores by the hundred, and counts of what was found, refused and mended.

Four parts, `parts=corruptions,writes,kills,cluster` chooses: random corruptions (`fault_campaign`), a failure at every
write (`fault_writes`), SIGKILL of small writers (`fault_kills`) and of real caching runs on a cluster
(`fault_cluster`). Everything is drawn from `seed`. Takes about 15 minutes on two cores.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cache.errors import BevcaskError, ConfigError
from cache.files import write_json
from studies.benches.fault_campaign import corrupt_many, forge_consistently
from studies.benches.fault_cluster import kill_runs
from studies.benches.fault_kills import kill_many
from studies.benches.fault_stores import small_stores
from studies.benches.fault_writes import fail_every_call, fail_every_write

ABOUT = "corruptions, failing writes and SIGKILL by the hundred: what verify finds, reading refuses and a rerun mends"
PARTS = ("corruptions", "writes", "kills", "cluster")


def run(
    work: Path,
    console: Console,
    *,
    corruptions: int = 1000,
    kills: int = 100,
    cluster_runs: int = 6,
    cluster_workers: int = 2,
    every: int = 1,
    seed: int = 0,
    parts: str = ",".join(PARTS),
) -> dict[str, Any]:
    """The counts of each part and a line for every failure. kills: in all, those of the cluster included; every: each
    how many-th write is made to fail. Raises BevcaskError after the last part where anything failed.
    """
    chosen = [part.strip() for part in parts.split(",")]
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        raise ConfigError(f"parts {unknown} are unknown, expected some of {', '.join(PARTS)}")
    out: dict[str, Any] = {"seed": seed}
    with Progress(console=console, disable=not console.is_terminal) as bars:
        if "corruptions" in chosen:
            bar = bars.add_task("corruptions", total=corruptions)
            tally = corrupt_many(
                _folder(work, "corruptions"), corruptions, seed=seed, advance=lambda: bars.advance(bar)
            )
            out["corruptions"] = tally.to_dict() | {"forgery": forge_consistently(_folder(work, "forgeries"))}
        if "writes" in chosen:
            stores = small_stores()
            bar = bars.add_task("failing writes", total=2 * len(stores))
            out["writes"] = {}
            for name, store in stores.items():
                for place, fail in (("folder", fail_every_write), ("memory://", fail_every_call)):
                    out["writes"][f"{name} in a {place}".replace("in a memory", "at memory")] = fail(
                        store, _folder(work, "writes"), every=every
                    ).to_dict()
                    bars.advance(bar)
        alive = cluster_runs + cluster_workers if "cluster" in chosen else 0
        if "kills" in chosen:
            bar = bars.add_task("kills", total=kills - alive)
            out["kills"] = kill_many(
                _folder(work, "kills"), kills - alive, seed=seed, advance=lambda: bars.advance(bar)
            ).to_dict()
        if "cluster" in chosen:
            bar = bars.add_task("kills of a cluster", total=alive)
            out["cluster"] = kill_runs(
                _folder(work, "cluster"), cluster_runs, cluster_workers, seed=seed, advance=lambda: bars.advance(bar)
            ).to_dict()
    write_json(work / "counts.json", out)  # also where the run is to fail
    for line in summary(out):
        console.print(line, markup=False, soft_wrap=True)
    failures = failures_of(out)
    for line in failures[:20]:
        console.print(line, style="red", markup=False, soft_wrap=True)
    if failures:
        raise BevcaskError(f"bench faults: {len(failures)} of them were not as they must be, the first: {failures[0]}")
    return out


def summary(out: dict[str, Any]) -> list[str]:
    """A line a part."""
    lines = []
    if "corruptions" in out:
        part = out["corruptions"]
        lines.append(
            f"corruptions: {part['found']} of {part['corruptions']} found by verify; reading them: {part['reading']} "
            f"(wrong: only what a forger who made digests agree wrote); {part['mended']} of {part['mending_tried']} "
            f"mended byte for byte as verify says; consistent forgeries: {part['forgery']}"
        )
    for name, part in out.get("writes", {}).items():
        lines.append(
            f"failing writes, {name}: {sum(part['steps'].values())} calls, {part['faults']} runs made to fail, "
            f"{len(part['failures'])} left something half-written or ended in other bytes; told as {part['told']}"
        )
    if "kills" in out:
        part = out["kills"]
        lines.append(
            f"SIGKILL: {part['kills']} kills, {part['identical']} of {part['reruns']} stores byte-identical after the "
            f"rerun, {part['looks']} looks of a reader beside them, shards committed at a kill: {part['moments']}"
        )
    if "cluster" in out:
        part = out["cluster"]
        lines.append(
            f"SIGKILL of real runs: {part['runs_killed']} runs and {part['workers_killed']} workers, "
            f"{part['identical']} byte-identical, {part['looks']} looks"
        )
    return lines


def failures_of(out: dict[str, Any]) -> list[str]:
    """Every part's failures, and counts that are too small to say anything."""
    lines = [line for part in out.values() if isinstance(part, dict) for line in part.get("failures", ())]
    lines += [line for part in out.get("writes", {}).values() for line in part["failures"]]
    forgery = out.get("corruptions", {}).get("forgery", {"forgeries": 0, "pass_verify": 0, "found_with_digest": 0})
    if len(set(forgery.values())) != 1:
        lines.append(f"consistent forgeries: {forgery}, expected all to pass verify and to be found with a digest")
    return lines


def _folder(work: Path, name: str) -> Path:
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
