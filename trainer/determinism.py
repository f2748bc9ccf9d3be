"""`[train] deterministic`: the same bits again on a GPU too. On CPUs they are the same without it.

Operations that have no such form raise torch's own error, which names them. Costs 10 to 30 % on cards, by torch's
notes; nothing on CPUs that was seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Torch's deterministic algorithms while it is open, where wanted."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first card is used
    before, tuned = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tuned
