"""Part 2: the cache: its size, exactness, speed, scale and faults, as the benchmarks measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from studies.benches.registry import run_bench
from studies.claims.claim import Claim, expect


def _bench(work: Path, name: str) -> dict[str, Any]:
    return run_bench(name, work / "bench", Console(stderr=True), {})


def a_million_frames_open_quickly(work: Path) -> str:
    """Seconds and memory of opening a million frames; cost in proportion to the frames; a read that does not grow."""
    figures = _bench(work, "scale")
    found = (
        f"a million frames open in {figures['open_s']:.2f} s in a process of {figures['open_mb']:.0f} MB, "
        f"{figures['open_growth']:.2f} times what proportion predicts; a read takes {figures['read_growth']:.2f} times "
        "that of a thousand frames"
    )
    held = figures["open_s"] < 2 and figures["open_mb"] < 500 and figures["open_growth"] < 1.5
    return expect(held and figures["read_growth"] < 3, found, "under 2 s, under 500 MB, growth 1.5 and 3 at most")


def cells_are_small_and_exact(work: Path) -> str:
    """Bytes against raw dense fp16 and the loss from them, for a trained teacher of full width."""
    f = _bench(work, "size")
    found = (
        f"literal gaussian: fp16 {f['ratio_fp16']:.1f} times fewer bytes, u8 {f['ratio_u8']:.1f}; trainval "
        f"{f['trainval_gb_fp16']:.2f} and {f['trainval_gb_u8']:.2f} GB; fp16 against fp32 at initialisation: loss "
        f"{f['loss_rel_err']:.1e}, gradient {f['grad_rel_err']:.1e}"
    )
    held = f["ratio_fp16"] >= 30 and f["ratio_u8"] >= 60 and f["trainval_gb_fp16"] <= 6 and f["trainval_gb_u8"] <= 3
    exact = f["loss_rel_err"] <= 1e-3 and f["grad_rel_err"] <= 1e-3
    return expect(held and exact, found, "30 and 60 times, 6 and 3 GB, 1e-3 and 1e-3")


def fields_and_frames_stream_fast(work: Path) -> str:
    """Frames per second in random order against the best of four other readers, and against bare reads and decodes."""
    figures = _bench(work, "stream")
    fields, whole = figures["fields_only"], figures["whole_frames"]
    found = (
        f"fields alone {fields['ours_frames_per_s']:.0f} frames/s, {fields['ratio_to_best_peer']:.2f} times "
        f"{fields['best_peer']}; whole frames {whole['ours_frames_per_s']:.1f} frames/s, "
        f"{whole['ratio_to_floor']:.2f} of the floor, {whole['ratio_to_best_peer']:.2f} times {whole['best_peer']}"
    )
    ahead = fields["ratio_to_best_peer"] >= 2 and whole["ratio_to_best_peer"] > 1
    return expect(ahead and whole["ratio_to_floor"] >= 0.85, found, "2 times, 0.85 of the floor, ahead of every peer")


def faults_are_found_and_survived(work: Path) -> str:
    """1,000 corruptions, a failure at every write, 100 kills; the benchmark itself fails where one goes wrong."""
    f = _bench(work, "faults")
    corruptions, kills, cluster = f["corruptions"], f["kills"], f["cluster"]
    hit = cluster["runs_killed"] + cluster["workers_killed"]
    killed = kills["kills"] + hit
    found = (
        f"{corruptions['found']} of {corruptions['corruptions']} corruptions found, {corruptions['forgery']}; "
        f"{sum(part['faults'] for part in f['writes'].values())} writes made to fail; {killed} kills, "
        f"{kills['identical']} of {kills['reruns']} and {cluster['identical']} of {hit} stores identical"
    )
    held = corruptions["found"] == corruptions["corruptions"] >= 1000 and killed >= 100
    identical = kills["identical"] == kills["reruns"] and cluster["identical"] == hit
    return expect(held and identical, found, "every one of 1,000 found, 100 kills, every store identical")


CLAIMS = (
    Claim(2, "cache-scale", 1800, a_million_frames_open_quickly),
    Claim(2, "cache-size", 7200, cells_are_small_and_exact),
    Claim(2, "cache-stream", 3600, fields_and_frames_stream_fast),
    Claim(2, "cache-faults", 7200, faults_are_found_and_survived),
)
