"""Claims about depth bins and LiDAR depth supervision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.depth import DepthConfig, depth_loss, depth_targets

CONFIG = DepthConfig(min_m=2.0, max_m=58.0, bins=112)


def slow_targets(points, images, size, stride, edges):
    """Cell by cell: the nearest return, then its bin."""
    out = torch.full((images, *size), -1)
    for i in range(images):
        for row in range(size[0]):
            for col in range(size[1]):
                depths = [
                    float(d)
                    for n, u, v, d in points
                    if int(n) == i
                    and col * stride <= u < (col + 1) * stride
                    and row * stride <= v < (row + 1) * stride
                    and d > 0
                ]
                if depths and edges[0] <= min(depths) < edges[-1]:
                    out[i, row, col] = max(b for b in range(len(edges) - 1) if edges[b] <= min(depths))
    return out


def random_points(seed, images, width, height, count=200):
    g = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 4, generator=g) * torch.tensor([images, width * 1.2, height * 1.2, 70])
    points[:, 0].floor_()
    return points - torch.tensor([0, width * 0.1, height * 0.1, 2])


@pytest.mark.parametrize("spacing", ["linear", "log"])
def test_targets_equal_the_loop(spacing):
    edges = DepthConfig(min_m=2.0, max_m=58.0, bins=20, spacing=spacing).edges()
    for seed in range(3):
        points = random_points(seed, 3, 48, 32)
        assert torch.equal(depth_targets(points, 3, (4, 6), 8, edges), slow_targets(points, 3, (4, 6), 8, edges)), seed


def test_the_nearest_return_decides_even_when_it_has_no_bin():
    points = torch.tensor([[0, 1.0, 1, 30], [0, 2.0, 2, 10], [0, 9.0, 1, 1.0], [0, 10.0, 1, 20]])
    target = depth_targets(points, 1, (1, 3), 8, CONFIG.edges())
    assert target.flatten().tolist() == [16, -1, -1]  # 10 m is bin (10 - 2) / 0.5; 1 m is nearer than the first bin


def test_edges_cover_the_range():
    log = DepthConfig(min_m=2.0, max_m=62.0, bins=40, spacing="log")
    for config in (CONFIG, log):
        edges, centres = config.edges(), config.centres()
        assert len(edges) == config.bins + 1
        assert edges[0].item() == pytest.approx(config.min_m, rel=1e-6)
        assert edges[-1].item() == pytest.approx(config.max_m, rel=1e-6)
        assert ((centres > edges[:-1]) & (centres < edges[1:])).all()
    ratios = log.edges()[1:] / log.edges()[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(40), rtol=1e-4, atol=0)


def test_loss_is_the_mean_cross_entropy_of_judged_cells():
    g = torch.Generator().manual_seed(0)
    logits, points = torch.randn(3, 112, 4, 6, generator=g), random_points(1, 3, 48, 32)
    part = depth_loss(logits, points, 8, CONFIG.edges(), weight=3.0)
    target = depth_targets(points, 3, (4, 6), 8, CONFIG.edges())
    expected = F.cross_entropy(logits, target, ignore_index=-1)
    assert part.normaliser.item() == (target >= 0).sum()
    torch.testing.assert_close(part.value(), 3 * expected)


def test_no_return_gives_zero_and_zero_gradients():
    logits = torch.randn(6, 112, 4, 6, requires_grad=True)
    value = depth_loss(logits, torch.zeros(0, 4), 8, CONFIG.edges()).value()
    value.backward()
    assert value == 0
    assert not logits.grad.any()


def test_bf16_logits_give_a_finite_fp32_loss():
    logits = (torch.randn(3, 112, 4, 6) * 50).bfloat16().requires_grad_()
    value = depth_loss(logits, random_points(2, 3, 48, 32), 8, CONFIG.edges()).value()
    value.backward()
    assert value.dtype == torch.float32
    assert math.isfinite(value.item())
    assert torch.isfinite(logits.grad).all()


def test_nan_returns_are_ignored():
    points = random_points(3, 3, 48, 32)
    spoiled = torch.cat([points, torch.full((2, 4), float("nan"))])
    expected = depth_targets(points, 3, (4, 6), 8, CONFIG.edges())
    assert torch.equal(depth_targets(spoiled, 3, (4, 6), 8, CONFIG.edges()), expected)


def test_the_binary_loss_judges_every_bin_of_every_judged_cell():
    g = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 5, 2, 3, generator=g, requires_grad=True)
    edges = torch.linspace(2.0, 12.0, 6)
    points = torch.tensor([[0, 3.0, 3.0, 4.5], [0, 3.5, 3.0, 9.0], [1, 20.0, 9.0, 11.9], [1, 1.0, 1.0, 30.0]])
    part = depth_loss(logits, points, 8, edges, 3.0, "binary")
    expected = 0.0
    for image, row, col, true_bin in ((0, 0, 0, 1), (1, 1, 2, 4)):
        p = logits[image, :, row, col].softmax(dim=0)
        for i in range(5):
            expected -= p[i].log() if i == true_bin else (1 - p[i]).log()
    torch.testing.assert_close(part.numerator[0], expected)
    assert part.normaliser.item() == 2
    torch.testing.assert_close(part.value(), 3.0 * expected / 2)
    plain = depth_loss(logits, points, 8, edges)
    assert not torch.isclose(plain.numerator[0], part.numerator[0])
    part.value().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0


def test_the_binary_loss_without_a_return_is_zero_with_zero_gradients():
    logits = torch.randn(1, 5, 2, 3, requires_grad=True)
    part = depth_loss(logits, torch.zeros(0, 4), 8, torch.linspace(2.0, 12.0, 6), 3.0, "binary")
    part.value().backward()
    assert part.value().item() == 0
    assert not logits.grad.any()
