"""Claims about foreign backbones: torchvision's, mmdetection's and whole detectors' files fill ours, or are refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from cache.errors import ConfigError, DataError
from models.backbone_weights import load_backbone
from models.build import build_detector
from models.resnet import ResNet, ResNetConfig
from tests.models.synthetic import CAMERA, LIDAR, synthetic_batch

NARROW = ResNetConfig(layers=(1, 1, 1), base_width=8, outputs=("C3", "C4"))
WHOLE = ResNetConfig(layers=(1, 1, 1, 1), base_width=8, outputs=("C5",))


def resnet(config: ResNetConfig = NARROW) -> dict[str, torch.Tensor]:
    """A backbone's tensors, each unlike a fresh one."""
    torch.manual_seed(5)
    return {
        name: tensor if tensor.dtype == torch.int64 else torch.rand_like(tensor) + 0.1
        for name, tensor in ResNet(config).state_dict().items()
    }


def torchvision() -> dict[str, torch.Tensor]:
    return {**resnet(), "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}


def mmdetection() -> dict:
    """A whole detector of more stages than ours, behind data-parallel training."""
    tensors = {f"module.img_backbone.{name}": tensor for name, tensor in resnet(WHOLE).items()}
    return {"state_dict": {**tensors, "module.img_neck.conv.weight": torch.zeros(2)}, "meta": {"epoch": 3}}


@pytest.mark.parametrize(
    ("content", "prefix", "skipped"),
    [
        (torchvision(), "", {"the classifier": 2, "stages that the model has not": 0, "other parts": 0}),
        (mmdetection(), "img_backbone.", {"the classifier": 0, "stages that the model has not": 18, "other parts": 1}),
        ({"state_dict": {f"backbone.{k}": v for k, v in resnet().items()}}, "backbone.", {"other parts": 0}),
    ],
    ids=["torchvision", "detector", "mmdetection"],
)
def test_a_file_fills_the_backbone_and_tells_what_it_skipped(content, prefix, skipped, tmp_path):
    torch.save(content, tmp_path / "resnet.pth")
    model = build_detector(CAMERA)
    others = {name: t.clone() for name, t in model.state_dict().items() if not name.startswith("backbone.")}
    told = load_backbone(model, tmp_path / "resnet.pth")
    expected = content.get("state_dict", content)
    for name, tensor in model.backbone.state_dict().items():
        source = next(key for key in (f"module.{prefix}{name}", prefix + name) if key in expected)
        assert torch.equal(tensor, expected[source]), name
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items())
    assert told.prefix == prefix
    assert told.filled == len(model.backbone.state_dict())
    for rule, count in skipped.items():
        assert len(told.skipped[rule]) == count, rule
    assert "skipped" in told.line()
    assert (prefix or "fc.weight, fc.bias") in told.line()


def test_safetensors_and_files_without_counters_load(tmp_path):
    tensors = {name: t for name, t in resnet().items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "resnet.safetensors")
    model = build_detector(CAMERA)
    told = load_backbone(model, tmp_path / "resnet.safetensors")
    assert told.filled == len(tensors) < len(model.backbone.state_dict())
    assert torch.equal(model.backbone.layer2[0].bn1.running_var, tensors["layer2.0.bn1.running_var"])


def test_a_filled_backbone_gives_the_maps_of_its_source(tmp_path):
    source = ResNet(NARROW)
    source.train()(torch.randn(4, 3, 64, 128))  # statistics of its own
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    model = build_detector(CAMERA).eval()
    load_backbone(model, tmp_path / "resnet.pth")
    images = synthetic_batch(frames=1).images[0]
    with torch.no_grad():
        for ours, theirs in zip(model.backbone(images), source.eval()(images), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("layer2.0.conv1.weight"), "1 tensors missing: layer2.0.conv1.weight"),
        (lambda t: t.update({"layer1.0.conv3.weight": torch.zeros(1)}), "without a place: layer1.0.conv3.weight"),
        (
            lambda t: t.update({"bn1.weight": torch.zeros(4)}),
            r"another backbone than that of preset lift-splat-tiny with .*bn1.weight \(4,\) for our \(8,\)",
        ),
        (lambda t: t.update({"bn1.weight": torch.full((8,), float("nan"))}), "bn1.weight holds NaN"),
        (lambda t: t.update({"stem.0.weight": t.pop("conv1.weight")}), "no conv1.weight"),
    ],
    ids=["missing", "left over", "shape", "nan", "another network"],
)
def test_what_does_not_fit_is_refused_and_nothing_is_filled(change, words, tmp_path):
    tensors = torchvision()
    change(tensors)
    torch.save(tensors, tmp_path / "resnet.pth")
    model = build_detector(CAMERA)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(DataError, match=words) as caught:
        load_backbone(model, tmp_path / "resnet.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_lidar_detector_has_none(tmp_path):
    with pytest.raises(ConfigError, match="no image backbone"):
        load_backbone(build_detector(LIDAR), tmp_path / "any.pth")
