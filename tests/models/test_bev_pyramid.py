"""The pyramid's levels: their sizes, what flows into them, and the coarsest ones."""

from __future__ import annotations

import pytest
import torch

from models.bev_pyramid import BevPyramid, BevPyramidConfig, top_down


def config(**more) -> BevPyramidConfig:
    return BevPyramidConfig(layers=(1, 1), strides=(1, 2), filters=(6, 8), channels=4, **more)


def test_maps_have_the_shapes_that_the_config_says():
    for more in ({}, {"first": 1, "levels": 3}, {"levels": 2}):
        torch.manual_seed(0)
        settings = config(**more)
        maps = BevPyramid(5, settings).eval()(torch.randn(2, 5, 12, 20))
        assert [tuple(level.shape[2:]) for level in maps] == list(settings.shapes(12, 20))
        assert all(level.shape[:2] == (2, 4) for level in maps)
        assert 12 // settings.stride == maps[0].shape[2]
    assert config().shapes(12, 20) == ((12, 20), (6, 10), (3, 5), (2, 3))


def test_levels_beyond_the_stages_are_every_other_cell():
    maps = BevPyramid(5, config()).eval()(torch.randn(1, 5, 12, 20))
    pooled = torch.nn.functional.max_pool2d(maps[1], 1, stride=2)
    assert torch.equal(maps[2], pooled) and torch.equal(maps[3], maps[2][:, :, ::2, ::2])


def test_coarse_maps_are_added_to_all_finer_ones():
    a, b, c = (torch.randn(1, 2, n, n) for n in (8, 4, 2))
    fine, middle, coarse = top_down([a, b, c])
    torch.testing.assert_close(coarse, c)
    torch.testing.assert_close(middle[0, :, 3, 1], b[0, :, 3, 1] + c[0, :, 1, 0])
    torch.testing.assert_close(fine[0, :, 7, 2], a[0, :, 7, 2] + b[0, :, 3, 1] + c[0, :, 1, 0])


def test_bad_stages_are_refused():
    with pytest.raises(ValueError, match="one entry per stage"):
        BevPyramidConfig(layers=(1,), strides=(1, 2), filters=(6, 8))
    with pytest.raises(ValueError, match="levels from stage 0 on do not end"):
        config(levels=1)
