"""Deformable attention equals a slow explicit form, looks where it should at first, and has the right gradients."""

from __future__ import annotations

import math

import pytest
import torch

from models.deformable import DeformableAttention, deformable_sum

SHAPES = ((3, 5), (2, 2))
TOKENS = 3 * 5 + 2 * 2


def bilinear(plane: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """plane: (H, W, d); x, y in cells, whole at cell centres. Zero outside."""
    height, width = plane.shape[:2]
    out = torch.zeros(plane.shape[2], dtype=plane.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for col in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= col < width:
                out += plane[row, col] * (1 - abs(x - col)) * (1 - abs(y - row))
    return out


def slow_sum(values, shapes, locations, weights) -> torch.Tensor:
    """`deformable_sum` one sample at a time."""
    batch, queries, heads, levels, points = weights.shape
    out = torch.zeros(batch, queries, heads, values.shape[3], dtype=values.dtype)
    for b in range(batch):
        for h in range(heads):
            first = 0
            for level in range(levels):
                height, width = shapes[level]
                plane = values[b, first : first + height * width, h].reshape(height, width, -1)
                first += height * width
                for q in range(queries):
                    for p in range(points):
                        x, y = locations[b, q, h, level, p].tolist()
                        sample = bilinear(plane, x * width - 0.5, y * height - 0.5)
                        out[b, q, h] += weights[b, q, h, level, p] * sample
    return out.flatten(2)


def sampled(dtype=torch.float64, points: int = 3):
    g = torch.Generator().manual_seed(1)
    values = torch.randn(2, TOKENS, 2, 4, generator=g, dtype=dtype)
    locations = torch.rand(2, 6, 2, 2, points, 2, generator=g, dtype=dtype) * 1.6 - 0.3  # some outside
    weights = torch.rand(2, 6, 2, 2, points, generator=g, dtype=dtype)
    return values, locations, weights


def test_sums_equal_the_slow_form():
    values, locations, weights = sampled()
    expected = slow_sum(values, SHAPES, locations, weights)
    torch.testing.assert_close(deformable_sum(values, SHAPES, locations, weights), expected)
    assert (locations < 0).any() and (locations > 1).any(), "what lies outside is tried too"


def test_a_place_outside_counts_as_zero_and_a_cell_centre_as_its_cell():
    values = torch.arange(1.0, TOKENS + 1).view(1, TOKENS, 1, 1)
    weights = torch.ones(1, 1, 1, 2, 1)
    locations = torch.tensor([[2.5 / 5, 1.5 / 3], [0.75, 0.25]]).view(1, 1, 1, 2, 1, 2)
    assert deformable_sum(values, SHAPES, locations, weights).item() == pytest.approx(8 + 17)
    assert deformable_sum(values, SHAPES, locations + 2, weights).item() == 0


def test_gradients_are_those_of_finite_differences():
    values, locations, weights = sampled(points=1)
    inputs = [t[:1].clone().requires_grad_() for t in (values, locations[:, :2], weights[:, :2])]
    assert torch.autograd.gradcheck(lambda v, x, w: deformable_sum(v, SHAPES, x, w), inputs)
    torch.manual_seed(0)
    layer = DeformableAttention(4, heads=2, levels=2, points=2).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    g = torch.Generator().manual_seed(2)
    query, tokens = (torch.randn(1, n, 4, generator=g, dtype=torch.float64, requires_grad=True) for n in (3, TOKENS))
    references = torch.rand(1, 3, 2, 2, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, t, r: layer(q, t, SHAPES, r), (query, tokens, references))


def layer_and_inputs():
    torch.manual_seed(0)
    layer = DeformableAttention(8, heads=2, levels=2, points=3)
    with torch.no_grad():
        for part in (layer.offsets, layer.weights):
            part.weight.normal_(std=0.3)
    return layer, torch.randn(2, 5, 8), torch.randn(2, TOKENS, 8), torch.rand(2, 5, 2, 2)


def test_the_layer_equals_its_parts_taken_one_by_one():
    """Offsets are in cells of each level, weights one softmax over all levels and points of a head."""
    layer, query, tokens, references = layer_and_inputs()
    values = layer.value(tokens).view(2, TOKENS, 2, 4)
    offsets = layer.offsets(query).view(2, 5, 2, 2, 3, 2)
    weights = layer.weights(query).view(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 2, 3)
    locations = torch.empty(2, 5, 2, 2, 3, 2)
    for level, (height, width) in enumerate(SHAPES):
        for p in range(3):
            step = offsets[:, :, :, level, p] / torch.tensor([width, height])
            locations[:, :, :, level, p] = references[:, :, None, level] + step
    expected = layer.output(slow_sum(values, SHAPES, locations.detach(), weights))
    torch.testing.assert_close(layer(query, tokens, SHAPES, references), expected, atol=1e-5, rtol=1e-5)


def test_points_may_have_references_of_their_own():
    layer, query, tokens, references = layer_and_inputs()
    each = references[:, :, :, None].expand(-1, -1, -1, 3, -1).clone()
    torch.testing.assert_close(layer(query, tokens, SHAPES, each), layer(query, tokens, SHAPES, references))
    each[:, :, :, 1] += 0.2
    moved = layer(query, tokens, SHAPES, each)
    assert not torch.allclose(moved, layer(query, tokens, SHAPES, references), atol=1e-3)


def test_heads_start_in_a_ring_of_directions_the_kth_point_k_cells_out():
    layer = DeformableAttention(16, heads=8, levels=2, points=4)
    start = layer.offsets.bias.detach().view(8, 2, 4, 2)
    torch.testing.assert_close(start[0, 1], torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]))
    torch.testing.assert_close(start[1, 0, 2], torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(start[6, 0, 1], torch.tensor([0.0, -2.0]), atol=1e-6, rtol=0)
    assert not layer.offsets.weight.any() and not layer.weights.weight.any() and not layer.weights.bias.any()


def test_places_are_in_fp32_under_autocast():
    """In bf16 a place near 1 would be known to 1/256 of the map."""
    layer, query, tokens, references = layer_and_inputs()
    plain = layer(query, tokens, SHAPES, references)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(query, tokens, SHAPES, references)
        near = layer(query, tokens, SHAPES, references.bfloat16())
    error = (half.float() - plain).norm() / plain.norm()
    assert error < 0.01
    assert (near.float() - plain).norm() / plain.norm() > error


def test_tokens_that_do_not_fit_the_levels_are_refused():
    layer, query, tokens, references = layer_and_inputs()
    with pytest.raises(ValueError, match="18 tokens of levels"):
        layer(query, tokens[:, 1:], SHAPES, references)
    with pytest.raises(ValueError, match="6 channels do not divide by 4 heads"):
        DeformableAttention(6, heads=4)
