"""The precision that terms compute in: fp32, whatever autocast has made of the student; fp64 where that is given."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """Half and integer types as float32; float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()
