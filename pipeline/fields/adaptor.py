"""A detector's adaptor module as the one folded convolution that a store's header keeps."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cache.adaptor import Adaptor
from cache.errors import ConfigError
from models.detector import Detector


def adaptor_module(model: Detector) -> nn.Sequential | None:
    """The module that makes T_feat of the detector's map, where it has one."""
    found = getattr(model, "adaptor", None)
    return found if isinstance(found, nn.Sequential) else None


@torch.no_grad()
def folded_adaptor(module: nn.Sequential) -> Adaptor:
    """conv [, batch norm], ReLU as one convolution with bias and a ReLU; folded in float64, rounded once.

    ConfigError for modules of another make.
    """
    parts = list(module)
    conv, norm = parts[0] if parts else None, parts[1] if len(parts) == 3 else None
    if not (
        len(parts) in (2, 3)
        and isinstance(conv, nn.Conv2d)
        and isinstance(parts[-1], nn.ReLU)
        and (norm is None or (isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats))
        and conv.kernel_size == (conv.kernel_size[0],) * 2
        and conv.kernel_size[0] % 2 == 1
        and conv.padding == (conv.kernel_size[0] // 2,) * 2
        and (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    ):
        made = ", ".join(type(part).__name__ for part in parts)
        raise ConfigError(
            f"--fields adaptor: the teacher's is {made}, expected a Conv2d of odd kernel that keeps the map's size, a "
            "BatchNorm2d or none, and a ReLU; leave adaptor out"
        )
    weight = conv.weight.double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64) if conv.bias is None else conv.bias.double().cpu()
    if isinstance(norm, nn.BatchNorm2d):
        mean, variance = norm.running_mean.double().cpu(), norm.running_var.double().cpu()  # type: ignore[union-attr]
        scale = (variance + norm.eps).rsqrt()
        shift = -mean * scale
        if norm.affine:
            gain = norm.weight.double().cpu()
            scale, shift = scale * gain, shift * gain + norm.bias.double().cpu()
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    adaptor = Adaptor(weight.float().contiguous().numpy(), bias.float().numpy())
    if not all(np.isfinite(values).all() for values in adaptor.arrays().values()):
        raise ConfigError("--fields adaptor: a parameter of the teacher's is not finite; check its weights")
    return adaptor
