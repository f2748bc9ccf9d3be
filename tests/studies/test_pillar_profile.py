"""What the profile of a forward pass counts as multiplying."""

from __future__ import annotations

import pytest

from models.build import build_detector
from studies.benches.pillar_profile import MULTIPLIES, own_times, share_of
from tests.models.synthetic import LIDAR, synthetic_batch


@pytest.mark.parametrize("bf16", [False, True])
def test_every_convolution_and_product_is_counted_once(bf16: bool) -> None:
    times = own_times(build_detector(LIDAR).eval(), synthetic_batch(), bf16=bf16)
    kernels = {name for name in times if name.endswith(("mm", "mkldnn_convolution", "_slow_conv2d_forward"))}
    assert "aten::mkldnn_convolution" in kernels and kernels <= set(MULTIPLIES)
    assert 0.02 < share_of(times) < 0.98


def test_a_share_is_of_all_time() -> None:
    assert share_of({"aten::mm": 3.0, "aten::mkldnn_convolution": 3.0, "aten::relu": 2.0}) == 0.75
