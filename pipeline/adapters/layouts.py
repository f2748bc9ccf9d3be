"""How foreign networks lay out what ours has too: sparse kernels, deconvolutions, and the channels of a box.

Each is a `Step` of a plan. Sources: spconv 1 and 2, OpenPCDet and mmdetection3d as released.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cache.errors import DataError
from pipeline.adapters.mapping import Step

# A 1 x 1 transposed convolution is a convolution with the two channel axes exchanged.
DECONVOLUTION = Step("deconvolution (in, out) to convolution (out, in)", lambda w: w.transpose(0, 1))
COS_SIN = Step("(cos, sin) to (sin, cos)", lambda w: w.flip(0))

# mmdetection3d before 1.0: sizes are w, l, h and yaw' = -yaw - pi/2, so sin yaw = -cos yaw' and cos yaw = -sin yaw'.
OLD_SIZES = Step("(w, l, h) to (l, w, h)", lambda w: w[[1, 0, 2]])
OLD_YAW = Step("yaw' = -yaw - pi/2 to yaw", lambda w: -w.flip(0))

NO_Z_OFFSET = Step("a column of zeros for the offset in z", lambda w: torch.nn.functional.pad(w, (0, 1)))

# Axes of a stored sparse kernel -> ours, spconv 2's (out, z, y, x, in).
SPARSE_LAYOUTS: dict[str, tuple[int, ...]] = {
    "spconv 2 (out, z, y, x, in)": (0, 1, 2, 3, 4),
    "spconv 1 (z, y, x, in, out)": (4, 0, 1, 2, 3),
    "early spconv 2 (z, y, x, out, in)": (3, 0, 1, 2, 4),
    "torch (out, in, z, y, x)": (0, 2, 3, 4, 1),
}


def sparse_step(first: Tensor, expected: tuple[int, ...], name: str, where: str) -> Step:
    """The step for all sparse kernels of a file, told from the first layer's.

    Only there every layout differs in shape; elsewhere input and output channels are equal and two layouts look alike.
    first: that kernel as the file has it; expected: our shape of it. DataError where no layout fits.
    """
    for layout, axes in SPARSE_LAYOUTS.items():
        if first.dim() == 5 and tuple(first.shape[axis] for axis in axes) == expected:
            if axes == (0, 1, 2, 3, 4):
                return Step("as it is, spconv 2", lambda w: w)
            return Step(f"{layout} to spconv 2", functools.partial(torch.permute, dims=axes))
    known = ", ".join(SPARSE_LAYOUTS)
    raise DataError(f"{where}: {name} is {tuple(first.shape)}, ours {expected}; no known layout fits: {known}")
