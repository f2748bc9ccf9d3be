"""Claims about what is counted: each rule equals a loop over every product, and parts add up."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cache.errors import ConfigError
from models.build import build_detector
from models.cost import compression_performance, count_cost, count_dense, latency_ms
from models.cost_rules import Counter, sparse_pairs
from models.spconv_runtime import algorithm_for, load_spconv
from tests.models.synthetic import CAMERA, LIDAR, VOXEL, synthetic_batch


def counted(model: nn.Module, *inputs: torch.Tensor):
    with torch.no_grad(), Counter(model) as counter:
        model(*inputs)
    assert len(counter.work) == 1
    return next(iter(counter.work.values()))


def slow_convolution(conv: nn.Conv2d, height: int, width: int) -> int:
    """Products of one image, output by output and tap by tap; taps in the padding count, as they are computed."""
    (k, _), (s, _), (p, _), (d, _) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    rows, cols = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size in (height, width))
    products = 0
    for _ in itertools.product(range(conv.out_channels), range(rows), range(cols)):
        for _ in itertools.product(range(conv.in_channels // conv.groups), range(k), range(k)):
            products += 1
    return products


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "bias": False}, {"groups": 2}])
def test_a_convolution_counts_every_tap_of_every_output(options):
    conv = nn.Conv2d(4, 6, 3, **options)
    work = counted(conv, torch.zeros(2, 4, 9, 7))
    assert work.multiply_adds == work.published == 2 * slow_convolution(conv, 9, 7)
    assert work.activations == conv(torch.zeros(2, 4, 9, 7)).numel()


def test_a_transposed_convolution_counts_what_each_input_spreads_and_the_table_counts_more():
    conv = nn.ConvTranspose2d(4, 6, 3, stride=3)
    work = counted(conv, torch.zeros(2, 4, 5, 7))
    products = sum(1 for _ in itertools.product(range(2), range(4), range(5 * 7), range(6), range(3 * 3)))
    assert work.multiply_adds == products
    assert work.published == products * 9  # as if each output saw all 9 taps, of which one reaches it
    assert work.activations == 2 * 6 * 15 * 21


def test_a_linear_layer_counts_rows_times_weights_with_and_without_bias_and_axes():
    for bias, shape in ((True, (5, 3)), (False, (5, 3)), (True, (2, 5, 3))):
        work = counted(nn.Linear(3, 4, bias=bias), torch.zeros(shape))
        rows = torch.zeros(shape)[..., 0].numel()
        assert (work.multiply_adds, work.activations) == (rows * 3 * 4, rows * 4), (bias, shape)


def test_attention_counts_its_projections_and_both_products():
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.zeros(1, 5, 8)
    with torch.no_grad(), Counter(layer) as counter:
        layer(x, x, x, need_weights=False)
    total = sum(work.multiply_adds for work in counter.work.values())
    assert total == 4 * 5 * 8 * 8 + 2 * (2 * 5 * 5 * 4)


def slow_pairs(sites, out_sites, shape, kernel, stride, padding) -> int:
    active, pairs = {tuple(site) for site in sites.tolist()}, 0
    for sample, *place in out_sites.tolist():
        for tap in itertools.product(*map(range, kernel)):
            at = [p * s - pad + t for p, s, pad, t in zip(place, stride, padding, tap, strict=True)]
            if all(0 <= a < size for a, size in zip(at, shape, strict=True)):
                pairs += (sample, *at) in active
    return pairs


@pytest.mark.parametrize(
    ("kind", "kernel", "stride", "padding"),
    [("SubMConv3d", 3, 1, 1), ("SparseConv3d", 3, 2, (0, 1, 1)), ("SparseConv3d", (3, 1, 1), (2, 1, 1), 0)],
)
def test_a_sparse_convolution_counts_pairs_of_active_sites(kind, kernel, stride, padding):
    spconv = load_spconv()
    g = torch.Generator().manual_seed(2)
    shape = [9, 8, 6]
    sites = (
        torch.stack([torch.randint(0, size, (120,), generator=g) for size in (2, *shape)], dim=1).unique(dim=0).int()
    )
    conv = getattr(spconv, kind)(3, 5, kernel, stride, padding, bias=False)
    conv.algo = algorithm_for(torch.device("cpu"))
    x = spconv.SparseConvTensor(torch.randn(len(sites), 3), sites, shape, 2)
    work = counted(conv, x)
    out = conv(x)
    as_three = [(v, v, v) if isinstance(v, int) else v for v in (kernel, stride, padding)]
    pairs = slow_pairs(sites, out.indices, shape, *as_three)
    assert pairs > len(sites)
    assert (work.multiply_adds, work.published, work.activations) == (pairs * 15, pairs * 15, len(out.indices) * 5)


def test_a_full_volume_has_the_pairs_of_a_dense_convolution():
    shape = (3, 4, 5)
    sites = torch.cat([torch.zeros(60, 1, dtype=torch.long), torch.ones(shape).nonzero()], dim=1).int()
    inside = [sum(1 for p in range(size) for t in range(3) if 0 <= p + t - 1 < size) for size in shape]
    assert (
        sparse_pairs(sites, sites, shape, (3,) * 3, (1,) * 3, (1,) * 3, (1,) * 3) == inside[0] * inside[1] * inside[2]
    )


@pytest.mark.parametrize("config", [LIDAR, VOXEL, CAMERA], ids=["lidar", "voxel", "camera"])
def test_parts_add_up_and_a_count_leaves_the_model_as_it_was(config):
    model, batch = build_detector(config).train(), synthetic_batch(frames=1, points=200)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = count_cost(model, batch)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    total = cost.total
    assert total.parameters == sum(p.numel() for p in model.parameters())
    assert total.work.multiply_adds == sum(part.work.multiply_adds for part in cost.parts) > 1e6
    assert {part.name for part in cost.parts} - {"rest"} == {name for name, _ in model.named_children()}
    assert cost.to_dict()["all"]["activations"] == total.work.activations
    assert latency_ms(model, batch, runs=1) > 0


@pytest.mark.parametrize(("at_most_s", "passes"), [(1e6, 4), (0.0, 1)])
def test_a_slow_model_is_timed_fewer_times(at_most_s, passes):
    model, batch = build_detector(LIDAR), synthetic_batch()
    ran = []
    model.register_forward_hook(lambda *_: ran.append(1))
    assert latency_ms(model, batch, runs=3, at_most_s=at_most_s) > 0
    assert len(ran) == passes


@pytest.mark.parametrize("config", [LIDAR, VOXEL], ids=["lidar", "voxel"])
def test_the_dense_part_needs_no_cloud(config):
    counted_on_points = {p.name: p for p in count_cost(build_detector(config), synthetic_batch(frames=1)).parts}
    dense = {p.name: p for p in count_dense(config).parts}
    assert dense["backbone"] == counted_on_points["backbone"]
    assert dense["head"] == counted_on_points["head"]
    assert dense["encoder"].parameters == counted_on_points["encoder"].parameters
    without = count_dense(config, ("vel",))
    assert without.total.parameters < count_dense(config).total.parameters


def test_a_camera_has_no_dense_part():
    with pytest.raises(ConfigError, match="expected a centerpoint"):
        count_dense(CAMERA)


def test_cpr_is_the_mean_of_what_is_saved_and_what_is_kept():
    assert compression_performance((50.0, 100.0), (0.4, 0.5), 1.0, 1.0) == pytest.approx((0.5 + 0.8) / 2)
    assert compression_performance((50.0, 100.0), (0.4, 0.5), 2.0, 3.0) == pytest.approx((0.75 + 0.512) / 2)
    assert compression_performance((100.0, 100.0), (0.5, 0.5), 3.0, 7.0) == 0.5
    with pytest.raises(ConfigError, match="positive"):
        compression_performance((1.0, 0.0), (0.4, 0.5), 1.0, 1.0)
