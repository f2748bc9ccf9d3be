"""Claims about BEVDepth and BEVDet: published sizes, what the depth net knows of the camera, and both necks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from cache.errors import ConfigError
from models.bev_encoder import BevEncoder, BevEncoderConfig
from models.bevdet_neck import BevDetNeck
from models.build import build_detector, load_preset
from models.depth import depth_loss
from models.depth_net import Aspp, BevDepthNet, Calibration
from tests.models.synthetic import BEVDEPTH, BEVDET, synthetic_batch


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def bevdepth_net_parameters(known: int, mid: int = 512, bins: int = 112, context: int = 80) -> int:
    """By hand, from the layers of the release without its offsets of the deformable convolution."""
    linear, norm = mid * mid + mid, 2 * mid
    reduce = 512 * mid * 9 + mid + norm
    gates = 2 * ((known * mid + mid + linear) + 2 * linear)
    residual = 3 * 2 * (mid * mid * 9 + norm)
    aspp = 2 * (mid * mid + norm) + 3 * (mid * mid * 9 + norm) + (5 * mid * mid + norm)
    last = mid * (mid // 4) * 9 + mid * bins + bins
    return 2 * known + reduce + gates + residual + aspp + last + mid * context + context


def test_bevdepth_r50_has_the_published_parts_and_maps():
    with torch.device("meta"):
        model = build_detector(load_preset("bevdepth-r50"))
        features = model.fpn(model.backbone(torch.empty(6, 3, 256, 704)))
        gated = model.depth_net.depth_gate(model.depth_net.reduce(features), torch.empty(6, 23))
        logits = model.depth_net.depth(gated)
        bev = model.encoder(torch.empty(1, 80, 128, 128))
        first = model.encoder.stages[0](model.encoder.stem(torch.empty(1, 80, 128, 128)))
    assert features.shape == (6, 512, 16, 44)
    assert logits.shape == (6, 112, 16, 44)
    assert bev.shape == (1, 256, 128, 128)
    assert first.shape == (1, 160, 64, 64)  # the stem halves, the first stage does not
    assert model.grid.shape == (128, 128)
    assert parameters(model.backbone) == 23_508_032
    assert parameters(model.depth_net) == bevdepth_net_parameters(23) == 27_730_670
    assert [d[0].in_channels for d in model.encoder.neck.deblocks] == [80, 160, 320, 640]
    assert [d[0].stride[0] for d in model.encoder.neck.deblocks] == [1, 2, 4, 8]
    assert model.depth_edges.shape == (113,)


def test_bevdet_r50_has_the_published_parts_and_maps():
    with torch.device("meta"):
        model = build_detector(load_preset("bevdet-r50"))
        features = model.fpn(model.backbone(torch.empty(6, 3, 256, 704)))
        logits, context = model.depth_net(features, None)
        first = model.encoder.stages[0](torch.empty(1, 64, 128, 128))
        bev = model.encoder(torch.empty(1, 64, 128, 128))
    assert features.shape == (6, 512, 16, 44)
    assert (logits.shape[1], context.shape[1]) == (59, 64)
    assert first.shape == (1, 128, 64, 64)
    assert bev.shape == (1, 256, 128, 128)
    assert parameters(model.depth_net) == 512 * 123 + 123
    shortcut = model.encoder.stages[1][0].downsample
    assert (type(shortcut), shortcut.kernel_size, shortcut.bias is not None) == (nn.Conv2d, (3, 3), True)
    neck = (640 * 512 + 512 * 512 + 512 * 256) * 9 + 2 * (512 + 512 + 256) + 256 * 256 + 256
    assert parameters(model.encoder.neck) == neck


def test_bevdet_is_taught_no_depth_and_bevdepth_is_bin_by_bin():
    batch = synthetic_batch(frames=1)
    bevdet, bevdepth = build_detector(BEVDET), build_detector(BEVDEPTH)
    assert "depth" not in bevdet.loss(bevdet(batch), batch)
    output = bevdepth(batch)
    edges = bevdepth.depth_edges
    expected = depth_loss(output.depth_logits, batch.depth_points, 8, edges, 3.0, "binary")
    assert torch.equal(bevdepth.loss(output, batch)["depth"], expected.value())


@pytest.mark.parametrize("preset", ["bevdepth-tiny", "bevdepth-r18", "bevdepth-r101"])
def test_the_other_sizes_build_on_their_teachers_grid(preset):
    with torch.device("meta"):
        model = build_detector(load_preset(preset))
    teacher = "centerpoint-pillar-tiny" if preset == "bevdepth-tiny" else "cp-voxel"
    with torch.device("meta"):
        assert model.grid == build_detector(load_preset(teacher)).grid
    resnet = {"bevdepth-r18": 11_176_512, "bevdepth-r101": 42_500_160}  # torchvision's, less the classifier
    assert parameters(model.backbone) == resnet.get(preset, parameters(model.backbone))


def calibration(turn: float = 0.0, scale: float = 1.0) -> Calibration:
    """Of the synthetic rig, its bird's-eye view turned and scaled."""
    batch = synthetic_batch(frames=1)
    a = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) * scale
    bev = torch.eye(4)
    bev[:2, :2], bev[2, 2] = a, scale
    return Calibration(batch.intrinsics[0], bev @ batch.camera_to_lidar[0], bev.repeat(6, 1, 1), (128, 64))


def test_calibration_keeps_the_camera_apart_from_the_augmentation():
    plain, turned = calibration().whole(), calibration(0.3, 1.04).whole()
    assert plain.shape == (6, 23)
    lens, bev, pose = plain.split([6, 5, 12], dim=1)
    torch.testing.assert_close(turned[:, :6], lens)
    torch.testing.assert_close(turned[:, 11:], pose, atol=1e-5, rtol=1e-5)
    assert torch.equal(bev, torch.tensor([[1.0, 0, 0, 1, 1]]).expand(6, 5))
    torch.testing.assert_close(
        turned[0, 6:11], 1.04 * torch.tensor([math.cos(0.3), -math.sin(0.3), math.sin(0.3), math.cos(0.3), 1.0])
    )
    k = calibration().intrinsics[0]
    torch.testing.assert_close(lens[0], torch.cat([k[0] / 128, k[1] / 64]))
    torch.testing.assert_close(pose.view(6, 3, 4), calibration().camera_to_lidar[:, :3])


@pytest.mark.parametrize("number", range(23))
def test_depth_and_context_know_every_number_of_the_calibration(number):
    torch.manual_seed(0)
    net = BevDepthNet(8, 8, 6, 4).eval()
    features, known = torch.randn(2, 8, 5, 6), torch.zeros(2, 23)
    changed = known.clone()
    changed[0, number] = 1.0
    for gate in (net.depth_gate, net.context_gate):
        before, after = gate(features, known), gate(features, changed)
        assert not torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])


def test_a_batch_without_augmentation_is_one_with_the_identity():
    model, batch = build_detector(BEVDEPTH).eval(), synthetic_batch(frames=2)
    same = dataclasses.replace(batch, bev_augmentation=torch.eye(4).repeat(2, 1, 1))
    with torch.no_grad():
        assert torch.equal(model(batch).depth_logits, model(same).depth_logits)
        turn = torch.diag(torch.tensor([-1.0, 1, 1, 1])).repeat(2, 1, 1)
        other = dataclasses.replace(batch, bev_augmentation=turn)
        assert not torch.equal(model(batch).depth_logits, model(other).depth_logits)


def test_training_passes_repeat_exactly():
    """No dropout: a step is a function of its batch, which resuming and splitting over ranks rely on."""
    model, batch = build_detector(BEVDEPTH).train(), synthetic_batch(frames=1)
    assert torch.equal(model(batch).depth_logits, model(batch).depth_logits)


def test_aspp_sees_its_dilations_and_the_whole_image():
    torch.manual_seed(0)
    aspp = Aspp(4).eval()
    with torch.no_grad():
        for weight in aspp.parameters():
            weight.abs_()  # no ReLU closes
    x = torch.ones(1, 4, 1, 101, requires_grad=True)
    aspp.join = nn.Identity()  # the five views, one after another
    views = aspp(x)[0, :, 0, 50].split(4)
    reaches = []
    for view in views:
        (gradient,) = torch.autograd.grad(view.sum(), x, retain_graph=True)
        columns = gradient[0].abs().sum(dim=(0, 1)).nonzero()[:, 0] - 50
        reaches.append(columns.tolist() if len(columns) < 10 else len(columns))
    assert reaches == [[0], [-6, 0, 6], [-12, 0, 12], [-18, 0, 18], 101]


def test_bevdets_neck_keeps_places():
    """A ramp in x, coarse, comes out as the same ramp at the fine cells' centres, away from the border."""
    neck = BevDetNeck(1, 1, (2, 8), 2)
    neck.join, neck.refine = nn.Identity(), nn.Identity()
    finest, coarsest = ((torch.arange(n) + 0.5) * s for n, s in ((32, 2.0), (8, 8.0)))
    ramps = [r.expand(1, 1, len(r), len(r)) for r in (finest, coarsest)]
    out = neck(ramps)
    expected = (torch.arange(64) + 0.5).expand(1, 2, 64, 64)
    torch.testing.assert_close(out[..., 8:-8], expected[..., 8:-8])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fpn_channels": 66}, "fpn_channels 66 do not divide by 4 outputs"),
        ({"neck_stride": 12}, "neck_stride"),
        ({"depth_net": "none"}, "'bevdepth'"),
        ({"depth_channels": 6}, "depth_channels"),
        ({"depth": {"loss": "focal"}}, "depth.loss"),
        ({"encoder": {"neck": "bevdet"}}, "no stem"),
        ({"encoder": {"strides": [4, 4, 4]}}, "128"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        build_detector({"preset": "bevdepth-tiny", **change})


def test_an_encoder_with_a_stem_keeps_the_resolution_of_its_input():
    config = BevEncoderConfig(filters=(4, 8), strides=(1, 2), layers=(1, 1), neck_channels=6, stem=True)
    assert config.total_strides == [1, 2, 4]
    assert BevEncoder(3, config)(torch.zeros(2, 3, 8, 12)).shape == (2, 18, 8, 12) == (2, config.out_channels, 8, 12)


def test_every_image_is_told_the_augmentation_of_its_own_frame():
    batch, model = synthetic_batch(), build_detector(BEVDEPTH)
    turns = torch.stack([torch.eye(4), torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))])
    turned = dataclasses.replace(batch, bev_augmentation=turns)
    told = model._calibration(turned, batch.intrinsics, batch.camera_to_lidar).bev_augmentation
    assert torch.equal(told.unflatten(0, (2, 6)), turns[:, None].expand(-1, 6, -1, -1))
