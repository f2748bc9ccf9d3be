"""One training step of every full-size preset on a GPU: milliseconds and peak memory, each preset in turns alone.

The step is forward, loss, backward and optimiser in bf16, on frames of a simulated cloud of ten sweeps or of noise for
cameras, with made-up objects; weights are untrained. The first step warms up and is not timed. Without a GPU it is
refused, unless another device is asked for: what a CPU takes says nothing about a GPU.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from cache.errors import ConfigError
from models.build import build_detector, load_preset, preset_names
from models.detector import Batch, Detector, total_of
from studies.benches.resident import peak_resident
from studies.model_cost import CloudSource, is_camera, pictures, read_cloud

ABOUT = "time and memory of one training step of every full-size preset, on a GPU"
SMALL = ("tiny", "demo")  # in the names of presets of the simulated world
SWEEPS, OBJECTS = 9, 30
CENTRES_M = 40.0


def run(
    work: Path, console: Console, *, device: str = "cuda", batch: int = 1, steps: int = 3, presets: str = ""
) -> dict[str, Any]:
    """By preset: parameters, median milliseconds of `steps` steps of `batch` frames, peak memory (GPU: allocated, of
    its own preset; CPU: the process's so far). presets: names with commas between, in place of all full-size ones."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("full-size-steps: torch finds no CUDA device here; or --option device=cpu")
    names = presets.split(",") if presets else full_size_presets()
    cloud = read_cloud(CloudSource(sweeps=SWEEPS))[0] if not all(is_camera(name) for name in names) else None
    out: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else device, "batch": batch}
    for name in names:
        torch.manual_seed(0)
        model = build_detector(load_preset(name))
        frame = pictures(model) if is_camera(name) else Batch(points=[torch.from_numpy(cloud)], tokens=["0" * 32])
        out[name] = _steps(model, with_objects(frame, batch), torch.device(device), steps)
        console.print(f"{name}: {out[name]['ms']:.0f} ms a step, {out[name]['peak_gb']:.2f} GB", highlight=False)
        del model
    return out


def full_size_presets() -> list[str]:
    """Those of the papers, not of the simulated world; BEVFormer's released `bevformer-tiny` is one of them."""
    small = {name for name in preset_names() if set(SMALL) & set(name.split("-"))}
    return [name for name in preset_names() if name not in small - {"bevformer-tiny"}]


def with_objects(frame: Batch, count: int) -> Batch:
    """`count` times the one frame, each with OBJECTS boxes of its own and, for cameras, depth labels."""
    g = torch.Generator().manual_seed(0)
    many: dict[str, Any] = {"tokens": [f"{i:032x}" for i in range(count)]}
    if frame.points is not None:
        many["points"] = frame.points * count
    for name in ("images", "intrinsics", "camera_to_lidar"):
        if (tensor := getattr(frame, name)) is not None:
            many[name] = tensor.repeat(count, *[1] * (tensor.dim() - 1))
    r = torch.rand(count, OBJECTS, 9, generator=g)
    boxes = torch.cat([(r[..., :2] * 2 - 1) * CENTRES_M, r[..., 2:3] - 1.5, 1 + 3 * r[..., 3:6], r[..., 6:]], dim=2)
    many["boxes"] = list(boxes)
    many["labels"] = list(torch.randint(0, 10, (count, OBJECTS), generator=g))
    if frame.images is not None:
        cameras, (height, width) = frame.images.shape[1], frame.images.shape[-2:]
        spread = torch.rand(500 * cameras * count, 4, generator=g)
        many["depth_points"] = (spread * torch.tensor([cameras * count, width, height, 50.0])).floor()
    return replace(frame, **many)


def _steps(model: Detector, batch: Batch, device: torch.device, steps: int) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    model.to(device)
    model.train()
    batch = batch.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps + 1):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            output = model(batch)
        loss = torch.stack(list(total_of(model.loss_parts(output, batch)).values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        told = float(loss.detach())  # waits for the device
        times.append(1e3 * (time.perf_counter() - start))
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "ms": round(median(times[1:]), 1),
        "peak_gb": round(peak / 1e9, 3),
        "loss": round(told, 3),
    }
