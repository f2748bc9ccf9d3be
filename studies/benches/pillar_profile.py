"""Where the time of a full-size CenterPoint-pillar forward pass goes: convolutions and matrix products, or the rest.

One frame of ten sweeps, batch 1, untrained weights; torch.profiler's own time of every operator, fp32 and bf16 in
turns, first as a fresh process does it and then with freed memory kept, as the teacher pass does. What is not a
convolution or a matrix product is overhead that faster ones would not shrink: gathers, sorts, norms, activations,
copies between layouts. Milliseconds are processor time, which other work on the machine lengthens least.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from models.build import build_detector
from models.detector import Batch, Detector
from models.freed_memory import keep_freed_memory
from studies.model_cost import CloudSource, read_cloud

ABOUT = "share of a full-size pillar forward pass spent in convolutions and matrix products"
PRESET = "centerpoint-pillar-0.2"
SWEEPS = 9  # before the key frame: ten in all
# Operators by what does the multiplying: oneDNN's and torch's own kernels on a CPU, cuDNN's on a GPU.
MULTIPLIES = (
    "aten::mkldnn_convolution",
    "aten::slow_conv2d_forward",
    "aten::slow_conv_transpose2d",
    "aten::_slow_conv2d_forward",
    "aten::thnn_conv2d",
    "aten::mkldnn_linear",
    "aten::cudnn_convolution",
    "aten::cudnn_convolution_transpose",
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
)
SHOWN = 12


def run(
    work: Path, console: Console, *, rounds: int = 5, threads: int = 1, preset: str = PRESET, cloud: str = ""
) -> dict[str, Any]:
    """For fp32 and bf16, and for both again with freed memory kept (`kept`): share of the operators' own time in
    MULTIPLIES, processor milliseconds of one pass, and the operators that take most, in per cent. cloud: a .bin or .npy
    file in place of a simulated frame. A process that keeps freed memory already tells both alike."""
    torch.set_num_threads(threads)
    points, about = read_cloud(CloudSource(file=Path(cloud) if cloud else None, sweeps=SWEEPS))
    torch.manual_seed(0)
    model = build_detector({"preset": preset})
    model.eval()
    batch = Batch(points=[torch.from_numpy(points)], tokens=["0" * 32])
    out: dict[str, Any] = {"preset": preset, "cloud": about, "points": len(points), "threads": threads}
    out |= _both(model, batch, rounds, console, "as it is")
    if keep_freed_memory():
        out["kept"] = _both(model, batch, rounds, console, "freed memory kept")
    return out


def _both(model: Detector, batch: Batch, rounds: int, console: Console, how: str) -> dict[str, Any]:
    """A summary by precision."""
    times: dict[str, list[dict[str, float]]] = {"fp32": [], "bf16": []}
    cpu_ms: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for turn in range(rounds + 1):  # the first warms up
        for precision, seen in times.items():
            found = own_times(model, batch, bf16=precision == "bf16")
            spent = _cpu_ms(model, batch, bf16=precision == "bf16")
            if turn:
                seen.append(found)
                cpu_ms[precision].append(spent)
    out = {precision: _summary(seen, cpu_ms[precision]) for precision, seen in times.items()}
    for precision, summary in out.items():
        most = ", ".join(f"{name.removeprefix('aten::')} {share:.1f} %" for name, share in summary["most"].items())
        console.print(
            f"{how}, {precision}: {summary['share']:.1%} in convolutions and matrix products, a pass takes "
            f"{summary['cpu_ms']:.0f} ms of processor time; {most}",
            highlight=False,
        )
    return out


@torch.inference_mode()
def own_times(model: Detector, batch: Batch, *, bf16: bool = False) -> dict[str, float]:
    """Milliseconds that one forward pass spends in each operator itself, its callees left out."""
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        model(batch)
    out: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        out[event.key] += event.self_cpu_time_total / 1e3
    return dict(out)


@torch.inference_mode()
def _cpu_ms(model: Detector, batch: Batch, *, bf16: bool) -> float:
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(batch)
    return 1e3 * (time.process_time() - start)


def share_of(times: dict[str, float]) -> float:
    """The part of all time that convolutions and matrix products take."""
    return sum(times.get(name, 0.0) for name in MULTIPLIES) / sum(times.values())


def _summary(rounds: list[dict[str, float]], cpu_ms: list[float]) -> dict[str, Any]:
    """Medians over the rounds."""
    names = sorted({name for times in rounds for name in times})
    shares = {name: median(100 * times.get(name, 0.0) / sum(times.values()) for times in rounds) for name in names}
    most = sorted(shares, key=lambda name: -shares[name])[:SHOWN]
    return {
        "share": round(median(share_of(times) for times in rounds), 4),
        "cpu_ms": round(median(cpu_ms), 1),
        "most": {name: round(shares[name], 2) for name in most},
    }
