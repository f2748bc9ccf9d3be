"""Claims about voxel detectors: the sparse encoder equals dense convolutions masked to active sites, and its size."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from cache.errors import ConfigError
from cache.grid import BevGrid
from models import spconv_runtime
from models.build import build_detector, load_preset, load_weights, save_weights
from models.sparse_encoder import SiteNorm, SparseEncoder, SparseEncoderConfig
from models.voxels import mean_voxels
from tests.models.dense_convolutions import dense_voxels, norm, strided, submanifold

GRID = BevGrid(-3.2, 3.2, -1.6, 1.6, 0.2)  # 16 rows, 32 columns
Z_RANGE, HEIGHT_M = (-5.0, 3.0), 0.2
SMALL = SparseEncoderConfig(channels=(4, 6, 8, 10), blocks=2, out_channels=7)


def clouds(count: int = 150) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    size, low = torch.tensor([7.0, 3.6, 9.0, 255.0, 0.5]), torch.tensor([-3.5, -1.8, -5.5, 0, 0])
    # every other point beside its neighbour, so that voxels hold several; some lie outside
    out = []
    for n in (count, count // 2):
        cloud = torch.rand(n, 5, generator=g) * size + low
        cloud[1::2] = cloud[: n - n % 2 : 2] + 0.02
        out.append(cloud)
    return out


def encoder(config: SparseEncoderConfig = SMALL) -> SparseEncoder:
    """With random statistics and biases, so that each matters."""
    torch.manual_seed(0)
    model = SparseEncoder(GRID, Z_RANGE, HEIGHT_M, config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "bias" in name:
                tensor.uniform_(-0.5, 0.5)
            elif "conv" in name:
                tensor.mul_(2.0)
        for module in model.modules():
            if isinstance(module, SiteNorm):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
    return model


def in_order(weight: torch.Tensor) -> torch.Tensor:
    return weight.permute(0, 4, 1, 2, 3)


def dense_canvas(model: SparseEncoder, points: list[torch.Tensor]) -> torch.Tensor:
    """The same network of dense convolutions."""

    def batch_norm(x, mask, layer):
        if not layer.training:
            return norm(x, mask, layer.weight, layer.bias, layer.running_mean, layer.running_var)
        at = x.permute(0, 2, 3, 4, 1)[mask[:, 0] > 0]
        return norm(x, mask, layer.weight, layer.bias, at.mean(0), at.var(0, unbiased=False))

    x, mask = dense_voxels(points, (41, *GRID.shape), (-3.2, -1.6, -5.0), (0.2, 0.2, 0.2))
    x = F.relu(batch_norm(submanifold(x, mask, in_order(model.input.conv.weight)), mask, model.input.norm))
    for i, stage in enumerate(model.stages):
        if stage.down is not None:
            padding = (0, 1, 1) if i == 3 else (1, 1, 1)
            x, mask = strided(x, mask, in_order(stage.down.conv.weight), 2, padding)
            x = F.relu(batch_norm(x, mask, stage.down.norm))
        for block in stage.blocks:
            y = submanifold(x, mask, in_order(block.conv1.weight), block.bias1)
            y = F.relu(batch_norm(y, mask, block.norm1))
            y = submanifold(y, mask, in_order(block.conv2.weight), block.bias2)
            x = F.relu(batch_norm(y, mask, block.norm2) + x)
    x, mask = strided(x, mask, in_order(model.output.conv.weight), (2, 1, 1), 0)
    return F.relu(batch_norm(x, mask, model.output.norm)).flatten(1, 2)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_canvas_equals_dense_convolutions_masked_to_active_sites(training):
    model = encoder().train(training)
    points = clouds()
    with torch.no_grad():
        expected = dense_canvas(model, points)
        canvas = model(points)
    assert canvas.shape == expected.shape == (2, 14, 2, 4)
    assert canvas.is_contiguous(memory_format=torch.channels_last)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(canvas, expected, atol=1e-4, rtol=1e-4)


def test_gradients_equal_those_of_dense_convolutions():
    """Of every weight: spconv's backward pass runs on a machine without a GPU. By running statistics, as batch ones
    would leave a bias before them no gradient."""
    model, points = encoder().eval(), clouds()
    g = torch.Generator().manual_seed(1)
    gradients = []
    for run in (model, lambda p: dense_canvas(model, p)):
        model.zero_grad()
        canvas = run(points)
        (canvas * torch.rand(canvas.shape, generator=g.manual_seed(1))).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        scale = gradients[1][name].abs().max() + 1e-3
        torch.testing.assert_close(gradient / scale, gradients[1][name] / scale, atol=1e-3, rtol=0, msg=name)


def test_voxels_are_the_means_of_their_points_in_site_order():
    points = clouds()
    features, sites = mean_voxels(points, GRID, Z_RANGE, HEIGHT_M)
    values, mask = dense_voxels(points, (41, *GRID.shape), (-3.2, -1.6, -5.0), (0.2, 0.2, 0.2))
    assert torch.equal(sites.long(), mask[:, 0].nonzero())
    b, z, row, col = sites.long().T
    torch.testing.assert_close(features, values[b, :, z, row, col], atol=1e-4, rtol=1e-5)
    assert len(features) < 0.8 * sum(len(cloud) for cloud in points)  # else no mean was taken


def test_points_on_the_far_border_or_nan_make_no_voxel():
    bad = torch.tensor([[3.2, 0, 0, 1, 0], [0, 1.6, 0, 1, 0], [0, 0, 3.0, 1, 0], [0, 0, float("nan"), 1, 0]])
    features, sites = mean_voxels([bad, torch.zeros(0, 5)], GRID, Z_RANGE, HEIGHT_M)
    assert features.shape == (0, 5)
    assert sites.shape == (0, 4)


@pytest.mark.parametrize("count", [0, 1])
def test_a_frame_of_no_or_one_voxel_has_a_canvas_and_gradients(count):
    model = encoder().train()
    canvas = model([torch.zeros(0, 5), torch.zeros(count, 5)])
    assert canvas.shape == (2, 14, 2, 4)
    assert not canvas[0].any()
    canvas.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_half_precision_is_left_to_the_rest_of_the_detector():
    model, points = encoder().eval(), clouds()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(points)
    assert half.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(half, model(points))


def test_tensors_on_the_cpu_get_the_algorithm_that_takes_them():
    """Whatever spconv chose at construction: its CUDA builds choose one that takes CUDA tensors only."""
    from spconv.core import ConvAlgo

    model, points = encoder().eval(), clouds()
    assert len(model.convolutions) == 21
    with torch.no_grad():
        expected = model(points)
        for conv in model.convolutions:
            conv.algo = ConvAlgo.MaskImplicitGemm
        assert torch.equal(model(points), expected)


def test_full_size_has_the_published_parameters_and_shapes():
    with torch.device("meta"):
        models = {cell: build_detector(load_preset(f"centerpoint-voxel-{cell}")) for cell in ("0.075", "0.1")}
    for model in models.values():
        parts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.backbone, model.head)]
        assert parts == [2_695_312, 4_576_768, 1_669_510]
        assert sum(p.numel() for p in model.parameters()) == 8_941_590
        assert (model.encoder.layers, model.encoder.layers_out, model.encoder.out_channels) == (41, 2, 256)
        assert model.bev_channels == 512
    assert models["0.075"].grid.shape == (180, 180)
    assert models["0.1"].grid.shape == (128, 128)


def test_weights_of_a_voxel_detector_rebuild_it(tmp_path):
    model = build_detector({"preset": "centerpoint-voxel-tiny", "sparse": {"channels": [4, 4, 8, 8]}}).eval()
    save_weights(model, tmp_path / "voxel.safetensors")
    again = load_weights(tmp_path / "voxel.safetensors")
    points = [torch.rand(200, 5) * 20 - 3]
    with torch.inference_mode():
        assert torch.equal(model.encoder(points), again.encoder(points))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"voxels": {"cell_m": 2.56}}, "do not divide by 16"),
        ({"voxel_height_m": 0.3}, "whole number of 0.3 m voxels"),
        ({"z_range": [0.0, 1.0]}, "too few for 4 stages"),
        ({"sparse": {"depth": 3}}, "unknown key 'sparse.depth'"),
    ],
)
def test_a_grid_that_does_not_divide_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        build_detector({"preset": "centerpoint-voxel-tiny", **change})


def test_without_spconv_the_error_names_the_remedy_and_pillars_still_build(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    spconv_runtime.load_spconv.cache_clear()
    try:
        build_detector({"preset": "centerpoint-pillar-tiny"})
        with pytest.raises(ConfigError, match=r"pip install -c constraints\.txt -e '\.\[cpu\]'"):
            build_detector({"preset": "centerpoint-voxel-tiny"})
    finally:
        spconv_runtime.load_spconv.cache_clear()
