"""The one door to spconv: imported when a voxel detector is built, never before, with its backward pass made to run
where there is no GPU.

spconv is an extra, so nothing else in the project needs it; its import takes about a second.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from cache.errors import ConfigError


@functools.cache
def load_spconv() -> Any:
    """The module `spconv.pytorch`. Raises ConfigError with the command that installs it.

    spconv 2.3.8's backward pass asks torch for the current CUDA stream even for CPU tensors, which raises on a machine
    without a GPU; its CPU kernels never use the number. There it gets 0, the null stream.
    """
    try:
        import spconv.pytorch as spconv
        from spconv.pytorch import ops
    except ImportError as error:
        raise ConfigError(
            f"voxel detectors need spconv, which does not import here ({error}); "
            "run `pip install -c constraints.txt -e '.[cpu]'`, or '.[cuda]' on a GPU machine, or choose a pillar "
            "detector"
        ) from error
    current_stream = ops.get_current_stream
    ops.get_current_stream = lambda: current_stream() if torch.cuda.is_available() else 0
    return spconv


def algorithm_for(device: torch.device) -> Any:
    """spconv's algorithm for tensors on `device`: a CUDA build chooses one for all at construction that CPU tensors,
    which the teacher pass has, cannot use."""
    from spconv.core import ConvAlgo

    return ConvAlgo.MaskImplicitGemm if device.type == "cuda" else ConvAlgo.Native
