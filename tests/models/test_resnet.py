"""Claims about the ResNet: torchvision's key names, shapes and parameter counts; the outputs asked for."""

from __future__ import annotations

import pytest
import torch

from models.fpn import FinestFpn
from models.resnet import ResNet, ResNetConfig

R18 = ResNetConfig(block="basic", layers=(2, 2, 2, 2))
R50 = ResNetConfig(block="bottleneck", layers=(3, 4, 6, 3))
R101 = ResNetConfig(block="bottleneck", layers=(3, 4, 23, 3))

# From torchvision's published state dicts, without fc.
R18_KEYS = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.running_mean": (64,),
    "layer1.0.conv1.weight": (64, 64, 3, 3),
    "layer1.1.bn2.weight": (64,),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    "layer2.0.downsample.1.running_var": (128,),
    "layer4.1.conv2.weight": (512, 512, 3, 3),
    "layer4.1.bn2.num_batches_tracked": (),
}
R50_KEYS = {
    "conv1.weight": (64, 3, 7, 7),
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.conv3.weight": (256, 64, 1, 1),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer1.2.bn3.bias": (256,),
    "layer2.0.conv2.weight": (128, 128, 3, 3),
    "layer3.5.conv2.weight": (256, 256, 3, 3),
    "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
    "layer4.2.conv3.weight": (2048, 512, 1, 1),
}


@pytest.mark.parametrize(
    ("config", "parameters", "entries", "keys"),
    [(R18, 11_176_512, 120, R18_KEYS), (R50, 23_508_032, 318, R50_KEYS), (R101, 42_500_160, 624, {})],
)
def test_names_shapes_and_counts_are_torchvisions(config, parameters, entries, keys):
    with torch.device("meta"):
        state = ResNet(config).state_dict()
        assert sum(p.numel() for p in ResNet(config).parameters()) == parameters
    assert len(state) == entries
    for name, shape in keys.items():
        assert tuple(state[name].shape) == shape, name
    assert not any(name.startswith("fc") for name in state)


def test_the_stride_of_a_bottleneck_is_in_its_3x3():
    with torch.device("meta"):
        model = ResNet(R50)
    block = model.get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_outputs_have_the_promised_channels_and_strides():
    for config in (
        ResNetConfig(base_width=8),
        ResNetConfig(base_width=8, outputs=("C2", "C4")),
        ResNetConfig(block="bottleneck", layers=(1, 1, 1), base_width=4, outputs=("C3", "C4")),
    ):
        maps = ResNet(config).eval()(torch.randn(2, 3, 64, 96))
        assert [m.shape[1] for m in maps] == config.channels
        assert [(64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(s, s) for s in config.strides]


def test_an_output_of_a_missing_stage_is_refused():
    with pytest.raises(ValueError, match="more than 3 stages"):
        ResNet(ResNetConfig(layers=(1, 1, 1), base_width=8, outputs=("C5",)))


def test_fpn_gives_the_finest_level():
    maps = [torch.randn(2, c, 32 // s, 64 // s) for c, s in ((8, 1), (16, 2), (32, 4))]
    assert FinestFpn([8, 16, 32], 12)(maps).shape == (2, 12, 32, 64)
