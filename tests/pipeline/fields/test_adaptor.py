"""Folding: the stored convolution is the module; modules of another make are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cache.errors import ConfigError
from models.build import build_detector
from pipeline.fields.adaptor import adaptor_module, folded_adaptor
from tests.models.synthetic import CAMERA, LIDAR


def a_module(*, bias: bool = False, norm: bool = True, kernel: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, kernel, padding=kernel // 2, bias=bias)
    module = nn.Sequential(conv, *([nn.BatchNorm2d(5)] if norm else []), nn.ReLU()).eval()
    if norm:
        with torch.no_grad():
            for values in (module[1].weight, module[1].bias, module[1].running_mean):
                values.normal_()
            module[1].running_var.uniform_(0.1, 3.0)
    return module


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"bias": True, "norm": False}, {"kernel": 1}], ids=str)
def test_the_folded_convolution_is_the_module_to_rounding(options: dict[str, bool]) -> None:
    module = a_module(**options)  # type: ignore[arg-type]
    adaptor = folded_adaptor(module)
    x = torch.randn(2, 6, 9, 7)
    found = F.conv2d(
        x, torch.from_numpy(adaptor.weight), torch.from_numpy(adaptor.bias), padding=adaptor.padding
    ).relu()
    expected = module(x)
    assert (expected > 0).float().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_centerpoint_has_one_and_is_not_changed_by_it() -> None:
    model = build_detector(LIDAR)
    module = adaptor_module(model)
    assert module is not None and not any("adaptor" in name for name in model.state_dict())
    assert folded_adaptor(module.eval()).weight.shape[1] == model.bev_channels
    assert adaptor_module(build_detector(CAMERA)) is None


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.GELU()),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        nn.Sequential(),
    ],
    ids=str,
)
def test_modules_of_another_make_are_refused(module: nn.Sequential) -> None:
    with pytest.raises(ConfigError, match=r"--fields adaptor: the teacher's is .*, expected a Conv2d"):
        folded_adaptor(module)
