"""Learned voxel features equal the same network voxel by voxel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cache.grid import BevGrid
from models.voxel_features import VoxelFeatures
from models.voxels import mean_voxels

GRID = BevGrid(-2.0, 2.0, -1.0, 1.0, 0.5)
Z_RANGE, HEIGHT_M = (-1.0, 1.0), 0.25


def encoder() -> VoxelFeatures:
    torch.manual_seed(0)
    model = VoxelFeatures(GRID, Z_RANGE, HEIGHT_M, channels=6)
    for norm in (model.first.norm, model.norm):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.uniform_(norm.weight, -1.0, 1.0)  # with a negative one the maximum is not that before the norm
    return model


def clouds() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    size, low = torch.tensor([4.4, 2.2, 2.2, 255.0, 0.5]), torch.tensor([-2.2, -1.1, -1.1, 0.0, 0.0])
    out = [torch.rand(n, 5, generator=g) * size + low for n in (120, 40)]
    for cloud in out:
        cloud[1::2, :3] = cloud[::2, :3] + 0.01
    return [out[0], torch.zeros(0, 5), out[1]]


def slow(model: VoxelFeatures, points: list[torch.Tensor]) -> dict[tuple[int, ...], torch.Tensor]:
    """Features by site."""

    def layer(linear, norm, x):
        parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.relu(F.batch_norm(x @ linear.weight.T, *parts, eps=1e-3))

    out = {}
    low, size = torch.tensor([-2.0, -1.0, -1.0]), torch.tensor([0.5, 0.5, 0.25])
    for b, cloud in enumerate(points):
        place = ((cloud[:, :3] - low) / size).floor()
        inside = ((place >= 0) & (place < torch.tensor([8, 4, 8]))).all(1)
        for col, row, z in place[inside].unique(dim=0).tolist():
            p = cloud[(place == torch.tensor([col, row, z])).all(1)]
            centre = low + (torch.tensor([col, row, z]) + 0.5) * size
            f = torch.cat([p, p[:, :3] - p[:, :3].mean(0), p[:, :3] - centre], dim=1)
            f = layer(model.first.linear, model.first.norm, f)
            f = layer(model.linear, model.norm, torch.cat([f, f.amax(0).expand_as(f)], dim=1))
            out[(b, int(z), int(row), int(col))] = f.amax(0)
    return out


def test_features_equal_the_network_voxel_by_voxel():
    model, points = encoder().eval(), clouds()
    with torch.no_grad():
        features, sites = model(points)
        expected = slow(model, points)
    assert len(features) == len(expected) > 20
    for feature, site in zip(features, sites.tolist(), strict=True):
        torch.testing.assert_close(feature, expected[tuple(site)], atol=1e-4, rtol=1e-4)
    assert torch.equal(sites, mean_voxels(points, GRID, Z_RANGE, HEIGHT_M)[1])


def test_the_order_of_points_does_not_matter_and_bf16_is_not_used():
    model, points = encoder().eval(), clouds()
    with torch.no_grad():
        one = model(points)[0]
        other = model([cloud.flip(0) for cloud in points])[0]
        with torch.autocast("cpu", torch.bfloat16):
            half = model(points)[0]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert torch.equal(one, half)


def test_a_single_point_has_its_features_after_training():
    model, cloud = encoder().eval(), torch.tensor([[0.1, 0.2, 0.3, 40.0, 0.05]])
    with torch.no_grad():
        features, sites = model([cloud])
        [(site, expected)] = slow(model, [cloud]).items()
    assert sites.tolist() == [list(site)]
    torch.testing.assert_close(features[0], expected, atol=1e-4, rtol=1e-4)
    assert expected.any()


def test_no_point_and_a_single_point_leave_every_weight_in_the_graph():
    for cloud in (torch.zeros(0, 5), torch.zeros(1, 5)):
        model = encoder().train()
        features, sites = model([cloud])
        assert features.shape == (len(cloud), 6) and len(sites) == len(cloud)
        features.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
