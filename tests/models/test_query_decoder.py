"""The transformer's parts: graphs of the nearest queries, positions, references that move without gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.query_decoder import (
    DecoderLayer,
    EdgeConvolution,
    EncoderLayer,
    QueryAttention,
    QueryGraph,
    Transformer,
    TransformerConfig,
    cell_centres,
    inverse_sigmoid,
    sine_positions,
)

SHAPES = ((4, 6), (2, 3))
SMALL = {"encoder_layers": 1, "decoder_layers": 3, "queries": 7, "heads": 2, "points": 2, "hidden": 16, "neighbours": 3}


def slow_edges(layer: EdgeConvolution, query: torch.Tensor) -> torch.Tensor:
    """Edge by edge."""
    out = torch.zeros_like(query)
    for b in range(len(query)):
        for i in range(query.shape[1]):
            distance = [math.dist(query[b, i].tolist(), other.tolist()) for other in query[b]]
            order = sorted(range(len(distance)), key=distance.__getitem__, reverse=layer.farthest)
            edges = torch.stack([torch.cat([query[b, j], query[b, i]]) for j in order[: layer.neighbours]])
            norm = layer.norm
            parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            out[b, i] = F.relu(F.batch_norm(layer.linear(edges), *parts)).amax(0)
    return out


@pytest.mark.parametrize("farthest", [False, True])
def test_an_edge_convolution_equals_itself_edge_by_edge(farthest):
    torch.manual_seed(0)
    layer = EdgeConvolution(6, 3, farthest).eval()
    torch.nn.init.uniform_(layer.norm.weight, -1, 1)
    layer.norm.running_mean.uniform_(-0.5, 0.5)
    query = torch.randn(2, 9, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer(query), slow_edges(layer, query))
        other = EdgeConvolution(6, 3, not farthest).eval()
        other.load_state_dict(layer.state_dict())
        assert not torch.allclose(other(query), layer(query), atol=1e-2)


@torch.no_grad()
def test_layers_ask_with_their_position_and_norm_after_every_part():
    """Deformable attention begins with offsets that nothing moves; here everything has a say."""
    torch.manual_seed(0)
    config = TransformerConfig(**SMALL, interaction="attention")
    encoder, decoder = EncoderLayer(8, 2, config).eval(), DecoderLayer(8, 2, config).eval()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        parameter.uniform_(-0.5, 0.5)
    tokens, place, centres = torch.randn(2, 30, 8), torch.randn(30, 8), cell_centres(SHAPES)
    on_both = centres[None, :, None].expand(-1, -1, 2, -1)
    x = encoder.norms[0](tokens + encoder.attention(tokens + place, tokens, SHAPES, on_both))
    expected = encoder.norms[1](encoder.feed_forward(x))
    torch.testing.assert_close(encoder(tokens, place, SHAPES, on_both), expected)
    query, position, point = torch.randn(2, 7, 8), torch.randn(2, 7, 8), torch.rand(2, 7, 2)
    there = point[:, :, None].expand(-1, -1, 2, -1)
    x = decoder.norms[0](decoder.interaction(query, position))
    x = decoder.norms[1](x + decoder.attention(x + position, tokens, SHAPES, there))
    expected = decoder.norms[2](decoder.feed_forward(x))
    torch.testing.assert_close(decoder(query, position, tokens, SHAPES, point), expected)


def test_the_second_graph_is_built_on_the_first_one_s_features():
    torch.manual_seed(0)
    graph = QueryGraph(6, 3, False, 0.1).eval()
    query, position = torch.randn(2, 9, 6), torch.randn(2, 9, 6)
    with torch.no_grad():
        first = slow_edges(graph.convolutions[0], query + position)
        expected = query + first + slow_edges(graph.convolutions[1], first)
        torch.testing.assert_close(graph(query, position), expected)


def test_attention_sees_positions_in_queries_and_keys_but_not_in_values():
    torch.manual_seed(0)
    layer = QueryAttention(8, 2, 0.0).eval()
    query, position = torch.zeros(1, 5, 8), torch.randn(1, 5, 8)
    with torch.no_grad():
        flat = layer(query, position)  # values are all alike, so wherever it looks it sees the same
    torch.testing.assert_close(flat, flat[:, :1].expand_as(flat))


def test_positions_tell_every_cell_apart_rows_first():
    positions = sine_positions(SHAPES, 16)
    assert positions.shape == (30, 16)
    fine = positions[:24].view(4, 6, 16)
    torch.testing.assert_close(fine[1, :, :8], fine[1, :1, :8].expand(6, -1))  # of the row
    torch.testing.assert_close(fine[:, 2, 8:], fine[:1, 2, 8:].expand(4, -1))  # of the column
    turn = 2 * math.pi * 1.5 / 4
    assert fine[1, 0, 0].item() == pytest.approx(math.sin(turn))
    assert fine[1, 0, 1].item() == pytest.approx(math.cos(turn))
    assert fine[1, 0, 2].item() == pytest.approx(math.sin(turn / 10), abs=1e-6)
    assert len({tuple(row.tolist()) for row in fine.flatten(0, 1)}) == 24
    torch.testing.assert_close(cell_centres(SHAPES)[25], torch.tensor([0.5, 0.25]))


def transformer(interaction: str = "graph", **more) -> tuple[Transformer, list[torch.nn.Module]]:
    torch.manual_seed(0)
    config = TransformerConfig(**{**SMALL, "interaction": interaction, "dropout": 0.0, **more})
    return Transformer(8, SHAPES, config), [torch.nn.Linear(8, 10) for _ in range(3)]


def maps(batch: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 8, *shape, generator=g) for shape in SHAPES]


@pytest.mark.parametrize("interaction", ["graph", "attention"])
def test_references_follow_the_steps_and_carry_no_gradient_but_the_first(interaction):
    model, steps = transformer(interaction)
    features, references = model(maps(), steps)
    assert [tuple(x.shape) for x in features] == [(2, 7, 8)] * 3
    first = model.reference(model.query_position).sigmoid()
    torch.testing.assert_close(references[0], first.expand(2, -1, -1))
    for i in range(2):
        moved = (inverse_sigmoid(references[i]) + steps[i](features[i])[..., :2]).sigmoid()
        torch.testing.assert_close(references[i + 1], moved)
        assert not references[i + 1].requires_grad
    assert references[0].requires_grad, "the first must learn where to begin"


@pytest.mark.parametrize("interaction", ["graph", "attention"])
def test_frames_do_not_mix(interaction):
    model, steps = transformer(interaction)
    model.eval()
    pair = maps()
    with torch.no_grad():
        both = model(pair, steps)
        alone = model([level[1:] for level in pair], steps)
    for one, other in zip(both[0] + both[1], alone[0] + alone[1], strict=True):
        torch.testing.assert_close(one[1:], other, atol=1e-5, rtol=1e-5)


def test_queries_look_where_their_reference_is():
    """Within the ring of two cells that attention starts with."""
    model, _ = transformer("attention", encoder_layers=0, decoder_layers=1)
    layer = model.decoder[0]
    level = torch.zeros(1, 24, 8, requires_grad=True)
    tokens = torch.cat([level, torch.zeros(1, 6, 8)], dim=1)
    point = torch.tensor([[[0.5 / 6, 0.5 / 4], [5.5 / 6, 3.5 / 4]]])
    query = torch.randn(1, 2, 8)
    seen = layer.attention(query, tokens, SHAPES, point[:, :, None].expand(-1, -1, 2, -1))
    seen[0, 0].sum().backward()
    reached = level.grad[0].abs().sum(1).view(4, 6) > 0
    assert reached[0, :4].any() and not reached[3, 3:].any()


def test_inverse_sigmoid_is_finite_at_the_ends_in_any_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        out = inverse_sigmoid(torch.tensor([0.0, 0.25, 1.0, -0.1, 1.1], dtype=dtype))
        assert out.dtype == torch.float32 and torch.isfinite(out).all()
        assert out[1].item() == pytest.approx(-math.log(3), rel=1e-3)
        assert out[0] < -11 and out[2] > 11


def test_full_dropout_of_the_config_reaches_every_place():
    model, _ = transformer(dropout=0.5)
    rates = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert set(rates) == {0.5} and len(rates) == 2 + 3 * 3
