"""Object-DGCNN as a whole: what students read of it, and what trains what."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cache.errors import DataError
from models.build import build_detector
from models.center_head import focal_numerator
from models.deformable import DeformableAttention
from models.gaussian import draw_gaussians
from tests.models.synthetic import QUERIES, synthetic_batch

VOXELS = {
    "preset": "object-dgcnn-voxel-0.1",
    "voxels": {"cell_m": 0.4},
    "voxel_channels": 8,
    "sparse": {"channels": [4, 8, 8, 16], "blocks": 1, "out_channels": 16},
    "backbone": {"layers": [1, 1], "filters": [16, 32], "channels": 32},
    "transformer": {"queries": 20, "decoder_layers": 2, "encoder_layers": 1, "hidden": 32},
    "heat": {"channels": 24, "hidden": 16},
}


def build(config=QUERIES):
    torch.manual_seed(0)
    return build_detector(config)


@pytest.mark.parametrize("config", [QUERIES, VOXELS], ids=["pillars, graph", "voxels, attention"])
def test_every_layer_answers_and_every_weight_learns(config):
    model, batch = build(config).train(), synthetic_batch()
    for part in model.modules():  # at first these are zero, and so is the gradient of the positions that they read
        if isinstance(part, DeformableAttention):
            torch.nn.init.normal_(part.offsets.weight, std=0.1)
    output = model(batch)
    layers, queries = model.config["transformer"]["decoder_layers"], model.config["transformer"]["queries"]
    assert output.queries.logits.shape == output.queries.boxes.shape == (layers, 2, queries, 10)
    assert output.queries.references.shape == (layers, 2, queries, 2)
    assert output.queries.embeddings.shape == (2, queries, model.bev_channels)
    parts = model.loss_parts(output, batch)
    assert {name: len(part.numerator) for name, part in parts.items()} == {"class": layers, "box": layers, "heatmap": 1}
    sum(model.loss(output, batch).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # the bias of the keys moves all weights of a softmax alike; those of sparse convolutions fall away in the norm
    assert [name for name in without if "bias" not in name] == []


def test_the_heatmap_trains_its_own_convolutions_only():
    model, batch = build().train(), synthetic_batch()
    model.loss(model(batch), batch)["heatmap"].backward()
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {"heat"}


def test_the_adaptor_makes_the_adapted_level_of_the_bev():
    """So that a store needs the map only: the adaptor's few weights make the rest."""
    model, batch = build().eval(), synthetic_batch()
    with torch.no_grad():
        output = model(batch)
        torch.testing.assert_close(model.adaptor(output.bev), output.levels["adapted"])
    assert [type(part).__name__ for part in model.adaptor] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert output.levels["adapted"].min() >= 0 and output.levels["adapted"].shape[1] == 32


def test_the_bev_is_from_before_the_transformer():
    model, batch = build().eval(), synthetic_batch()
    with torch.no_grad():
        before = model(batch)
        for parameter in model.transformer.parameters():
            parameter.add_(0.1)
        after = model(batch)
    assert torch.equal(before.bev, after.bev)
    assert not torch.allclose(before.queries.logits, after.queries.logits)


def test_without_a_heatmap_there_is_no_adaptor():
    model, batch = build({**QUERIES, "heat": None}), synthetic_batch()
    output = model.eval()(batch)
    assert model.adaptor is None and output.heads == [] and model.heat_classes == () and set(model.levels) == {"canvas"}
    assert set(model.loss(output, batch)) == {"class", "box"}


def test_the_heatmap_s_loss_is_the_centre_head_s():
    model, batch = build(), synthetic_batch()
    logits = torch.randn(2, 10, *model.grid.shape)
    part = model.heat.loss_parts(logits, batch.boxes, batch.labels)["heatmap"]
    target = torch.stack(
        [
            torch.from_numpy(draw_gaussians(b.numpy(), c.numpy(), 10, model.grid, min_radius=1))
            for b, c in zip(batch.boxes, batch.labels, strict=True)
        ]
    )
    torch.testing.assert_close(part.numerator, focal_numerator(logits, target)[None])
    assert part.normaliser.item() == (target == 1).sum()


def test_an_averaged_answer_without_queries_is_refused():
    model, batch = build().eval(), synthetic_batch()
    with torch.no_grad():
        output = dataclasses.replace(model(batch), queries=None)
    with pytest.raises(DataError, match="do not average to boxes"):
        model.decode(output)
    with pytest.raises(DataError, match="--points"):
        model(dataclasses.replace(batch, points=None))
