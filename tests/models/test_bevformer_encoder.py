"""Claims about BEVFormer's encoder: what a layer does in which order, and what a cell is told of its place."""

from __future__ import annotations

import torch

from cache.grid import BevGrid
from models.bevformer_encoder import BevFormerEncoder, BevFormerEncoderConfig
from models.pillar_views import PillarViews

GRID = BevGrid(-8.0, 8.0, -6.0, 6.0, 2.0)  # 6 rows, 8 columns
CELLS, SHAPES = 48, [(4, 5), (2, 3)]


def encoder() -> BevFormerEncoder:
    """With weights that give everything a say: offsets of deformable attention begin with none."""
    torch.manual_seed(0)
    config = BevFormerEncoderConfig(layers=1, heads=2, temporal_points=2, spatial_points=4, heights=2, hidden=16)
    model = BevFormerEncoder(8, GRID, len(SHAPES), 2, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return model


def views() -> PillarViews:
    """Of one frame and two cameras that see every cell."""
    cells = torch.arange(CELLS).expand(2, -1)
    return PillarViews(
        cells, torch.ones(2, CELLS, dtype=torch.bool), torch.rand(2, CELLS, 2, 2), torch.full((1, 48), 2)
    )


@torch.no_grad()
def test_a_layer_looks_back_then_into_the_cameras_and_norms_after_every_part():
    layer, seen = encoder().layers[0], views()
    query, past, position = torch.randn(1, CELLS, 8), torch.randn(1, CELLS, 8), torch.randn(CELLS, 8)
    centres, tokens = torch.rand(CELLS, 2), torch.randn(1, 2, 26, 8)
    x = layer.norms[0](query + layer.temporal(query, position, past, GRID.shape, centres))
    x = layer.norms[1](x + layer.spatial(x, tokens, SHAPES, seen))
    expected = layer.norms[2](layer.feed_forward(x))
    found = layer(query, position, past, GRID.shape, centres, tokens, SHAPES, seen)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_a_cell_is_told_its_column_and_row_and_a_token_its_level_and_camera():
    model, given = encoder(), {}
    names = ("query", "position", "past", "shape", "centres", "tokens")
    model.layers[0].register_forward_pre_hook(lambda _, args: given.update(zip(names, args, strict=False)))
    maps = [torch.randn(1, 2, 8, *shape) for shape in SHAPES]
    bev = model(maps, views(), None)
    assert bev.shape == (1, 8, *GRID.shape)
    for row in range(GRID.height):
        for col in range(GRID.width):
            cell = row * GRID.width + col
            told = torch.cat([model.of_column[col], model.of_row[row]])
            torch.testing.assert_close(given["position"][cell], told)
            place = torch.tensor([(col + 0.5) / GRID.width, (row + 0.5) / GRID.height])
            torch.testing.assert_close(given["centres"][cell], place)
    assert torch.equal(given["past"], given["query"]), "without a past a cell looks at itself"
    for camera in range(2):
        first = maps[1][0, camera, :, 1, 2] + model.level_embedding[1] + model.camera_embedding[camera]
        torch.testing.assert_close(given["tokens"][0, camera, 20 + 1 * 3 + 2], first)
