"""How much memory this process holds: resident on the host, and on its GPU where it has one. Microseconds."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class MemoryUse:
    """Bytes: resident set; of torch's tensors on the GPU now, and at most so far; 0 without a GPU."""

    rss: int
    cuda: int = 0
    cuda_peak: int = 0


def memory_use(device: str) -> MemoryUse:
    """device: the type that the run computes on."""
    rss = psutil.Process().memory_info().rss
    if device != "cuda":
        return MemoryUse(rss)
    return MemoryUse(rss, torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
