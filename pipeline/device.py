"""Where a teacher runs: CPU or CUDA, how many frames a forward pass takes, and what reduced precision costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cache.errors import ConfigError
from models.detector import Detector
from pipeline.inputs import FrameInput
from pipeline.teacher_shard import BATCH, TeacherPass, forward

DEVICES = ("auto", "cpu", "cuda")
AUTOCAST = ("", "float16", "bfloat16")
LARGEST_BATCH = 32
_SHARE = 0.6  # of the free memory: clouds differ in size, and the allocator needs room


def choose_device(wanted: str) -> str:
    """ "cpu" or "cuda" for one of DEVICES; ConfigError where CUDA is asked for and is not there."""
    if wanted not in DEVICES:
        raise ConfigError(f"--device {wanted!r} is unknown, expected one of {', '.join(DEVICES)}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch sees no CUDA device; run on a machine with a GPU and a CUDA build of torch, or leave "
            "--device out"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would name each GPU that this process sees, one worker's device each."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def largest_batch(peak_bytes: Sequence[int], free_bytes: int) -> int:
    """The largest power of two whose forward pass fits, from the peak memory of batches of 1 and of 2 frames."""
    one, two = peak_bytes
    per_frame = max(two - one, 1)
    batch = 1
    while 2 * batch <= LARGEST_BATCH and one + (2 * batch - 1) * per_frame <= _SHARE * free_bytes:
        batch *= 2
    return batch


def probe_batch(model: Detector, job: TeacherPass, inputs: Sequence[FrameInput]) -> int:
    """Frames in one forward pass for this device, by the memory that two of `inputs` take; BATCH on a CPU, where more
    frames at once are no faster."""
    if job.device != "cuda":
        return BATCH
    peaks = []
    for count in (1, 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward(model, job, (list(range(count)), [inputs[i % len(inputs)] for i in range(count)]))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    return largest_batch(peaks, torch.cuda.mem_get_info()[0])


def autocast_difference(model: Detector, job: TeacherPass, inputs: Sequence[FrameInput]) -> float:
    """What autocast changes: the root mean square difference of the BEV feature from fp32's over the latter's, on
    `inputs`."""
    item = list(range(len(inputs))), list(inputs)
    found = forward(model, job, item).bev.astype(np.float64)
    wanted = forward(model, replace(job, autocast=""), item).bev.astype(np.float64)
    return float(np.sqrt(((found - wanted) ** 2).mean() / max((wanted**2).mean(), 1e-30)))
