"""Part 2: the cache: its size, exactness, scale and faults, as the benchmarks measure them."""

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


CLAIMS = (
    Claim(2, "cache-scale", 1800, a_million_frames_open_quickly),
    Claim(2, "cache-size", 7200, cells_are_small_and_exact),
)
