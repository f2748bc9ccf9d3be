"""BEVFormer's attentions equal slow loops, have the right gradients, and keep frames and cameras apart."""

from __future__ import annotations

import pytest
import torch

from models.bevformer_attention import SpatialCrossAttention, TemporalSelfAttention
from models.pillar_views import pillar_views
from models.query_decoder import cell_centres
from tests.models.test_deformable import bilinear

MAP, CHANNELS, HEADS = (3, 4), 6, 2
LEVELS = ((3, 5), (2, 2))
TOKENS = 3 * 5 + 2 * 2


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """In fp64, every parameter random, so that offsets and weights depend on the features."""
    torch.manual_seed(3)
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def temporal(points: int = 2) -> TemporalSelfAttention:
    return stirred(TemporalSelfAttention(CHANNELS, HEADS, points))


def slow_temporal(layer, query, position, past):
    """Cell by cell, head by head, moment by moment, sample by sample."""
    out = torch.zeros_like(query)
    (height, width), points, d = MAP, layer.points, CHANNELS // HEADS
    for b in range(len(query)):
        planes = [layer.value(x[b]).reshape(height, width, HEADS, d) for x in (past, query)]
        for cell in range(height * width):
            said = torch.cat([past[b, cell], query[b, cell] + position[cell]])
            offsets = layer.offsets(said).reshape(HEADS, 2, points, 2)
            weights = layer.weights(said).reshape(HEADS, 2, points)
            row, col = divmod(cell, width)
            heads = []
            for h in range(HEADS):
                total = torch.zeros(d, dtype=query.dtype)
                for moment in range(2):
                    share = weights[h, moment].softmax(0)
                    for p in range(points):
                        x, y = offsets[h, moment, p].tolist()
                        total += 0.5 * share[p] * bilinear(planes[moment][:, :, h], col + x, row + y)
                heads.append(total)
            out[b, cell] = layer.output(torch.cat(heads))
    return out


def test_temporal_attention_equals_the_loop():
    layer, query, past, position = temporal(), rand(2, 12, 6, seed=0), rand(2, 12, 6, seed=1), rand(12, 6, seed=2)
    with torch.no_grad():
        found = layer(query, position, past, MAP, cell_centres([MAP]))
        torch.testing.assert_close(found, slow_temporal(layer, query, position, past))
        assert not torch.allclose(found, layer(query, position, query, MAP, cell_centres([MAP])), atol=1e-2)


def test_gradients_of_temporal_attention_are_those_of_finite_differences():
    layer, centres = temporal(points=1), cell_centres([MAP])
    query, past, position = (rand(1, 12, 6, seed=s).requires_grad_() for s in (4, 5, 6))
    assert torch.autograd.gradcheck(lambda q, w, p: layer(q, w, p, MAP, centres), (query, position, past))


def spatial(points: int = 4, heights: int = 2) -> SpatialCrossAttention:
    return stirred(SpatialCrossAttention(CHANNELS, HEADS, len(LEVELS), points, heights))


def scene(batch: int = 2, cameras: int = 3, cells: int = 7, heights: int = 2, seed: int = 0):
    """Features, and what is seen where: a cell no camera sees, a camera that sees nothing in the first frame."""
    g = torch.Generator().manual_seed(seed)
    places = torch.rand(batch, cameras, cells, heights, 2, generator=g) * 1.4 - 0.2
    visible = torch.rand(batch, cameras, cells, heights, generator=g) < 0.4
    visible[:, :, 2] = False
    visible[0, 1] = False
    return rand(batch, cells, 6, seed=seed + 1), rand(batch, cameras, TOKENS, 6, seed=seed + 2), places, visible


def slow_spatial(layer, query, tokens, places, visible):
    """Cell by cell, camera by camera, head by head, level by level, sample by sample."""
    inner, out = layer.attention, torch.zeros_like(query)
    heights, d = places.shape[3], CHANNELS // HEADS
    for b in range(len(query)):
        for cell in range(query.shape[1]):
            offsets = inner.offsets(query[b, cell]).reshape(HEADS, len(LEVELS), inner.points, 2)
            weights = inner.weights(query[b, cell]).reshape(HEADS, -1).softmax(1).reshape(HEADS, len(LEVELS), -1)
            seen = []
            for camera in range(tokens.shape[1]):
                if not visible[b, camera, cell].any():
                    continue
                values, first = inner.value(tokens[b, camera]), 0
                heads = torch.zeros(HEADS, d, dtype=query.dtype)
                for level, (height, width) in enumerate(LEVELS):
                    plane = values[first : first + height * width].reshape(height, width, HEADS, d)
                    first += height * width
                    for h in range(HEADS):
                        for p in range(inner.points):
                            u, v = places[b, camera, cell, p % heights].double().tolist()
                            x, y = offsets[h, level, p].tolist()
                            sample = bilinear(plane[:, :, h], u * width - 0.5 + x, v * height - 0.5 + y)
                            heads[h] += weights[h, level, p] * sample
                seen.append(inner.output(heads.flatten()))
            if seen:
                out[b, cell] = torch.stack(seen).mean(0)
    return out


def test_spatial_attention_equals_the_loop():
    layer, (query, tokens, places, visible) = spatial(), scene()
    with torch.no_grad():
        found = layer(query, tokens, LEVELS, pillar_views(places, visible))
        torch.testing.assert_close(found, slow_spatial(layer, query, tokens, places, visible), atol=1e-6, rtol=1e-5)
    assert visible.any(dim=3).sum(dim=1).max() > 1, "a cell seen twice is tried"


def test_a_cell_that_no_camera_sees_gets_nothing_and_a_camera_that_sees_nothing_gives_nothing():
    layer, (query, tokens, places, visible) = spatial(), scene()
    with torch.no_grad():
        found = layer(query, tokens, LEVELS, pillar_views(places, visible))
        assert not found[:, 2].any() and found[:, 3].any()
        tokens[0, 1] = 1e6  # of the camera that sees nothing
        torch.testing.assert_close(layer(query, tokens, LEVELS, pillar_views(places, visible)), found)
        blind = layer(query, tokens, LEVELS, pillar_views(places, torch.zeros_like(visible)))
    assert not blind.any()


def test_gradients_of_spatial_attention_are_those_of_finite_differences():
    layer, (query, tokens, places, visible) = spatial(points=2), scene(cells=4, cameras=2)
    views = pillar_views(places, visible)
    inputs = (query.requires_grad_(), tokens.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, t: layer(q, t, LEVELS, views), inputs)


def test_a_batch_of_three_equals_three_batches_of_one():
    """Frames see different cells, so their lists have different lengths, and different pasts."""
    layer, (query, tokens, places, visible) = spatial(), scene(batch=3, seed=9)
    visible[1, :, 3:] = False
    other, past, position, centres = temporal(), rand(3, 12, 6, seed=7), rand(12, 6, seed=8), cell_centres([MAP])
    cells = rand(3, 12, 6, seed=9)
    with torch.no_grad():
        together = layer(query, tokens, LEVELS, pillar_views(places, visible))
        moved = other(cells, position, past, MAP, centres)
        for b in range(3):
            one = slice(b, b + 1)
            alone = layer(query[one], tokens[one], LEVELS, pillar_views(places[one], visible[one]))
            torch.testing.assert_close(together[one], alone)
            torch.testing.assert_close(moved[one], other(cells[one], position, past[one], MAP, centres))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="6 channels do not divide by 4 heads"):
        TemporalSelfAttention(6, heads=4)
    with pytest.raises(ValueError, match="6 points do not divide by 4 heights"):
        SpatialCrossAttention(8, heads=4, points=6, heights=4)
