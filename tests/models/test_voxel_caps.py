"""Claims about hard voxelisation: equal to a loop over points, by their order, and off unless asked for."""

from __future__ import annotations

import pytest
import torch

from cache.errors import ConfigError
from cache.grid import BevGrid
from models.build import build_detector
from models.pillars import PillarEncoder
from models.voxels import CapsConfig, mean_voxels
from tests.models.synthetic import LIDAR, VOXEL, synthetic_batch

GRID, Z_RANGE, HEIGHT_M = BevGrid(-2.0, 2.0, -1.0, 1.0, 0.5), (-1.0, 1.0), 0.5


def clouds(seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scale, low = torch.tensor([4.6, 2.4, 2.4, 255, 0.5]), torch.tensor([-2.3, -1.2, -1.2, 0, 0])
    return [torch.rand(n, 5, generator=g) * scale + low for n in (300, 0, 150)]


def slow_kept(cloud: torch.Tensor, max_points: int, max_voxels: int, tall: bool) -> dict[tuple[int, ...], list[int]]:
    """Place -> the numbers of the points it keeps, point by point in the cloud's order."""
    places: dict[tuple[int, ...], list[int]] = {}
    for number, (x, y, z, *_) in enumerate(cloud.tolist()):
        if not (-2 <= x < 2 and -1 <= y < 1 and -1 <= z < 1):
            continue
        place = (0 if tall else int((z + 1) // 0.5), int((y + 1) // 0.5), int((x + 2) // 0.5))
        if place not in places:
            if max_voxels and len(places) == max_voxels:
                continue
            places[place] = []
        if not max_points or len(places[place]) < max_points:
            places[place].append(number)
    return places


@pytest.mark.parametrize(("max_points", "max_voxels"), [(2, 0), (0, 20), (3, 25), (1, 1), (1000, 1000), (0, 0)])
def test_voxels_equal_the_loop(max_points, max_voxels):
    for seed in range(3):
        points = clouds(seed)
        caps = CapsConfig(points=max_points, cells=max_voxels)
        features, sites = mean_voxels(points, GRID, Z_RANGE, HEIGHT_M, caps)
        found = {tuple(site): value for site, value in zip(sites.tolist(), features, strict=True)}
        expected = {
            (b, *place): points[b][numbers].mean(dim=0)
            for b in range(3)
            for place, numbers in slow_kept(points[b], max_points, max_voxels, tall=False).items()
        }
        assert list(found) == sorted(expected)
        for place, value in found.items():
            torch.testing.assert_close(value, expected[place], msg=f"seed {seed}, {place}")


@pytest.mark.parametrize(("max_points", "max_pillars"), [(2, 0), (0, 6), (3, 10)])
def test_pillars_equal_those_of_the_points_that_the_loop_keeps(max_points, max_pillars):
    torch.manual_seed(0)
    plain = PillarEncoder(8, GRID, Z_RANGE).eval()
    capped = PillarEncoder(8, GRID, Z_RANGE, caps=CapsConfig(points=max_points, cells=max_pillars)).eval()
    capped.load_state_dict(plain.state_dict())
    points = clouds(1)
    kept = []
    for cloud in points:
        numbers = sorted(n for part in slow_kept(cloud, max_points, max_pillars, tall=True).values() for n in part)
        kept.append(cloud[numbers])
    assert sum(map(len, kept)) < 300
    with torch.no_grad():
        assert torch.equal(capped(points), plain(kept))
        assert not torch.equal(capped(points), plain(points))


@pytest.mark.parametrize("config", [LIDAR, VOXEL], ids=["pillar", "voxel"])
def test_a_detectors_config_says_its_caps(config):
    batch = synthetic_batch(frames=1)
    torch.manual_seed(0)
    free = build_detector(config).eval()
    torch.manual_seed(0)
    capped = build_detector({**config, "caps": {"points": 1, "cells": 50}}).eval()
    with torch.no_grad():
        assert not torch.equal(free(batch).bev, capped(batch).bev)
        canvas = capped(batch).levels["canvas"]
    assert 0 < int((canvas != 0).any(dim=1).sum()) <= (50 if config is LIDAR else 200)
    with pytest.raises(ConfigError, match=r"caps\.points"):
        build_detector({**config, "caps": {"points": -1}})
