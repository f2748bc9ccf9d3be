"""Checkpoints of Object-DGCNN: nothing missing, nothing left over, and the answers of the foreign network itself."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, DataError
from models.detector import Batch
from pipeline.adapters.foreign import kind_of, load_foreign
from pipeline.adapters.opening import open_teacher
from tests.pipeline.foreign_networks import SPCONV_1, stored
from tests.pipeline.foreign_query_networks import CLASSES, ObjectDgcnn
from tests.pipeline.test_adapters import RANGES, clouds, save

SAID = "@old-boxes@bevdistill-order"


def overrides(kind: str) -> dict:
    (x_min, x_max), (y_min, y_max) = RANGES[kind]
    return {f"{kind}s": {"x_min": x_min, "x_max": x_max, "y_min": y_min, "y_max": y_max}}


VARIANTS = {
    "BEVDistill's": lambda: ObjectDgcnn("voxel"),
    "voxels, mean, new boxes": lambda: ObjectDgcnn("voxel", learned=False, queries=40, old_boxes=False),
    "pillars and graphs": lambda: ObjectDgcnn("pillar", queries=50),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_gives_the_answers_of_the_network_it_came_from(name, tmp_path):
    network = VARIANTS[name]()
    kind, boxes = network.kind, "old-boxes" if network.old_boxes else "new-boxes"
    path = save(stored(network), tmp_path / "foreign.pth", "mmdetection3d")
    order = "bevdistill-order" if kind == "voxel" else "object-dgcnn-order"
    model, report = load_foreign(path, f"mine@{boxes}@{order}", overrides(kind))
    points = clouds(kind)
    with torch.inference_mode():
        output = model(Batch(points=points, tokens=["a", "b"]))
        theirs = network.answer(points, *RANGES[kind])
        found = model.decode(output)
    for ours, wanted in ((output.bev, theirs["bev"]), (output.levels.get("adapted"), theirs.get("adapted"))):
        assert (ours is None) == (wanted is None)
        if wanted is not None:
            scale = wanted.abs().max().item()
            assert scale > 1
            torch.testing.assert_close(ours, wanted, atol=1e-3 * scale, rtol=0)
    rows = [network.classes.index(name) for name in DETECTION_CLASSES]
    if network.heat:
        heat = theirs["heatmap"][:, rows]
        torch.testing.assert_close(output.heads[0]["heatmap"], heat, atol=1e-3 * heat.abs().max().item(), rtol=0)
        assert model.heat_classes == DETECTION_CLASSES
    logits, boxes = theirs["logits"][..., rows], theirs["codes"]
    assert logits.std(dim=2).min() > 0.01, "queries differ, so that a mix-up shows"
    torch.testing.assert_close(output.queries.logits, logits, atol=5e-3 * logits.abs().max().item(), rtol=0)
    torch.testing.assert_close(output.queries.boxes[..., :2], boxes[..., :2], atol=2e-2, rtol=0)
    for (wanted, scores, names), ours in zip(network.found(theirs), found, strict=True):
        assert len(ours) == len(scores) == 300
        np.testing.assert_allclose(ours.scores, scores, atol=5e-3)
        labels = np.array([DETECTION_CLASSES.index(name) for name in names])
        same = ours.labels == labels
        difference = ours.boxes_lidar - wanted
        difference[:, 6] = np.remainder(difference[:, 6] + math.pi, 2 * math.pi) - math.pi
        same &= np.abs(difference).max(axis=1) < 0.1
        assert same.mean() > 0.97, "equal scores may change places, little else"
    assert {row.foreign for row in report.rows if row.foreign} == set(network.w)
    assert (report.config["transformer"]["interaction"] == "graph") == network.graph
    assert report.config["transformer"].get("graph_order", "nearest") == ("farthest" if network.graph else "nearest")


@pytest.fixture(scope="module")
def bevdistill(tmp_path_factory):
    """BEVDistill's state dict with the kernels of spconv 1, and its file."""
    state = stored(ObjectDgcnn("voxel"), SPCONV_1)
    return state, save(state, tmp_path_factory.mktemp("queries") / "teacher.pth", "mmdetection3d")


def test_names_and_shapes_are_those_of_the_released_configuration(bevdistill):
    state, path = bevdistill
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["pts_voxel_encoder.vfe_layers.1.0.weight"] == (64, 128)
    assert shapes["pts_bbox_head.query_embedding.weight"] == (300, 512)
    assert shapes["pts_bbox_head.transformer.decoder.layers.5.attentions.0.attn.in_proj_weight"] == (768, 256)
    assert shapes["pts_bbox_head.task_heads.0.heatmap.0.conv.weight"] == (64, 256, 3, 3)
    opened = open_teacher(path, f"object-dgcnn-voxel-0.1{SAID}")
    assert opened.adapter == "object-dgcnn, boxes of before 1.0 as object-dgcnn-voxel-0.1"
    model = opened.model
    assert model.bev_channels == 256 and model.grid.shape == (128, 128) and not model.training
    learnt = (".weight", ".bias", "_weight", "_bias", ".level_embeds")
    theirs = sum(tensor.numel() for name, tensor in state.items() if name.endswith(learnt))
    without = 2 * 2 * (16 + 32 + 64 + 128)  # biases in sparse blocks
    assert theirs == sum(p.numel() for p in model.parameters()) - without
    filled = {row.ours for row in opened.report.rows if row.ours}
    assert filled == {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}


def test_what_the_file_does_not_tell_must_be_said(bevdistill, tmp_path):
    state, path = bevdistill
    small = overrides("voxel")
    with pytest.raises(ConfigError, match=r"does not say its version.*@old-boxes.*@new-boxes"):
        load_foreign(path, "mine@bevdistill-order", small)
    with pytest.raises(
        ConfigError, match=r"does not tell the order of its classes.*@bevdistill-order \(car, truck, trailer"
    ):
        load_foreign(path, "mine@old-boxes", small)
    with pytest.raises(ConfigError, match="@wlh: unknown, expected @old-boxes, @new-boxes, @bevdistill-order"):
        load_foreign(path, "mine@wlh", small)
    with pytest.raises(ConfigError, match="cannot both be"):
        load_foreign(path, f"mine{SAID}@object-dgcnn-order", small)
    with pytest.raises(ConfigError, match=r"a centerpoint-voxel preset, .* holds object-dgcnn-voxel weights"):
        load_foreign(path, f"centerpoint-voxel-0.1{SAID}", small)
    told = save(state, tmp_path / "told.pth", "mmdetection3d", meta={"CLASSES": CLASSES, "mmdet3d_version": "1.0.0rc4"})
    report = load_foreign(told, "mine", small)[1]
    assert report.family == "object-dgcnn"
    with pytest.raises(ConfigError, match=r"its classes are car, truck, trailer, .* leave the words out"):
        load_foreign(told, "mine@object-dgcnn-order", small)
    old = save(state, tmp_path / "old.pth", "mmdetection3d", meta={"CLASSES": CLASSES, "mmdet3d_version": "0.17.1"})
    with pytest.raises(ConfigError, match=r"mmdetection3d 0\.17\.1"):
        load_foreign(old, "mine", small)
    nine = save(state, tmp_path / "nine.pth", "mmdetection3d", meta={"CLASSES": CLASSES[:9]})
    with pytest.raises(DataError, match="expected the ten of the nuScenes detection task"):
        load_foreign(nine, "mine@old-boxes", small)
    wide = "point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]"
    path = save(state, tmp_path / "wide.pth", "mmdetection3d", meta={"CLASSES": CLASSES, "config": wide})
    with pytest.raises(ConfigError, match="says point_cloud_range"):
        load_foreign(path, "mine@old-boxes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("pts_bbox_head.reg_branches.5.4.bias"), r"1 tensors missing: .*reg_branches.5.4.bias \(10,\)"),
        (
            lambda s: s.update({"pts_bbox_head.iou.weight": torch.zeros(1)}),
            r"without a place: pts_bbox_head.iou.weight",
        ),
        (
            lambda s: s.update({"pts_bbox_head.transformer.reference_points.weight": torch.zeros(3, 256)}),
            r"of another shape: .*reference_points.weight \(3, 256\) for our \(2, 256\)",
        ),
        (
            lambda s: s.update({"pts_bbox_head.transformer.level_embeds": torch.full((4, 256), math.nan)}),
            r"level_embeds holds 1024 values that are NaN",
        ),
    ],
    ids=["missing", "left over", "3-D references", "NaN"],
)
def test_a_file_that_does_not_fit_is_refused_by_the_tensor(bevdistill, tmp_path, change, words):
    state = dict(bevdistill[0])
    change(state)
    with pytest.raises(DataError, match=words):
        load_foreign(save(state, tmp_path / "bad.pth", "mmdetection3d"), f"mine{SAID}", overrides("voxel"))


def test_weights_of_the_loss_are_ignored_by_name(bevdistill, tmp_path):
    state = {**bevdistill[0], "pts_bbox_head.code_weights": torch.ones(10)}
    path = save(state, tmp_path / "x.pth", "mmdetection3d")
    rows = load_foreign(path, f"mine{SAID}", overrides("voxel"))[1].rows
    assert [row.done for row in rows if row.foreign == "pts_bbox_head.code_weights"] == ["ignored: weights of the loss"]


def test_students_and_other_transformers_are_still_refused_for_what_they_are(bevdistill):
    names = list(bevdistill[0])
    assert kind_of(names, "x").family == "object-dgcnn"
    for extra, what in (
        ("img_backbone.conv1.weight", "reads images too"),
        ("neck.blocks.0.1.weight", "tianweiy/CenterPoint"),
        ("bbox_head.tasks.0.hm.0.weight", "tianweiy/CenterPoint"),
    ):
        with pytest.raises(DataError, match=re.escape(what)):
            kind_of([*names, extra], "x")
    without = [name for name in names if "query_embedding" not in name]
    with pytest.raises(DataError, match="another network with a transformer"):
        kind_of(without, "x")
