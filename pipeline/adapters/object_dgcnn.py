"""Object-DGCNN as its authors and BEVDistill released it, on mmdetection3d: where names and conventions are not ours.

Its box is (x, y, log w, log l, z, log h, sin, cos, vx, vy), sizes and yaw as the version of mmdetection3d has them; a
query's position and content are one tensor; its graph convolutions are 1 x 1 convolutions of edges.
Source of the names: the released heads and transformers (zehuichen123/BEVDistill, WangYueFt/detr3d) and the modules of
mmdetection 2 and mmcv 1 that their configs build; no released checkpoint was at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cache.classes import DETECTION_CLASSES
from pipeline.adapters.mapping import Plan, Step, Take, affine, conv_norm

NAME = "object-dgcnn"
QUERIES = "pts_bbox_head.query_embedding.weight"
LEARNED_VOXELS = "pts_voxel_encoder.vfe_layers.0.0.weight"
EDGES = "pts_bbox_head.transformer.decoder.layers.0.attentions.0.conv1.0.weight"
HIDDEN = "pts_bbox_head.transformer.decoder.layers.0.ffns.0.layers.0.0.weight"
HEAT = "pts_bbox_head.task_heads.0.heatmap.0.conv.weight"

# Orders of classes that released files have, by the word that says so; a file's own metadata is as good.
ORDERS = {
    "bevdistill-order": tuple(
        "car truck trailer bus construction_vehicle bicycle motorcycle pedestrian traffic_cone barrier".split()
    ),
    "object-dgcnn-order": tuple(
        "car truck construction_vehicle bus trailer barrier motorcycle bicycle pedestrian traffic_cone".split()
    ),
}

# Rows of the last linear layer of a box branch -> ours: x, y, z, log l, log w, log h, sin, cos, vx, vy.
NEW_ROWS = Step("box (x, y, l, w, z, h, ...) to (x, y, z, l, w, h, ...)", lambda w: w[[0, 1, 4, 2, 3, 5, 6, 7, 8, 9]])


def _old_rows(w: Tensor) -> Tensor:
    """yaw' = -yaw - pi/2, so sin yaw = -cos yaw' and cos yaw = -sin yaw'."""
    rows = w[[0, 1, 4, 3, 2, 5, 7, 6, 8, 9]]
    rows[6:8] *= -1
    return rows


OLD_ROWS = Step("box (x, y, w, l, z, h, sin yaw', ...), yaw' = -yaw - pi/2, to ours", _old_rows)
EDGE_KERNEL = Step("1 x 1 convolution of edges to a linear layer", lambda w: w.flatten(1))


def class_rows(order: Sequence[str]) -> Step:
    """Rows of a layer that gives one number per class, from `order` to ours."""
    rows = [list(order).index(name) for name in DETECTION_CLASSES]
    return Step("classes into our order", lambda w: w[rows])


def voxel_features() -> Plan:
    """Two layers, linear and norm each."""
    plan: Plan = {}
    for i, ours in enumerate(("encoder.voxel_features.first", "encoder.voxel_features")):
        theirs = f"pts_voxel_encoder.vfe_layers.{i}"
        plan |= conv_norm((f"{ours}.linear", f"{ours}.norm"), (f"{theirs}.0", f"{theirs}.1"))
    return plan


def bev_pyramid(layers: Sequence[int], first: int) -> Plan:
    """SECOND's stages named as ours; lateral and output convolutions for the stages from `first` on."""
    plan: Plan = {}
    for s, extra in enumerate(layers):
        ours, theirs = f"backbone.blocks.{s}", f"pts_backbone.blocks.{s}"
        for i in range(0, 3 * (extra + 1), 3):
            plan |= conv_norm((f"{ours}.{i}", f"{ours}.{i + 1}"), (f"{theirs}.{i}", f"{theirs}.{i + 1}"))
    for s in range(len(layers) - first):
        for ours, theirs in (("laterals", "lateral_convs"), ("outputs", "fpn_convs")):
            plan |= _conv_module(f"backbone.{ours}.{s}", f"pts_neck.{theirs}.{s}")
    return plan


def transformer(encoder_layers: int, decoder_layers: int, channels: int, graph: bool) -> Plan:
    """graph: edge convolutions between the queries in place of attention. channels: of a token."""
    base = "pts_bbox_head.transformer"
    plan = affine("transformer.reference", f"{base}.reference_points")
    plan["transformer.level_embedding"] = Take(f"{base}.level_embeds")
    first, second = (
        Step("its first half", lambda w: w[:, :channels]),
        Step("its second half", lambda w: w[:, channels:]),
    )
    plan["transformer.query_position"] = Take(QUERIES, (first,))
    plan["transformer.query_content"] = Take(QUERIES, (second,))
    for part, layers in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        for i in range(layers):
            ours, theirs = f"transformer.{part}.{i}", f"{base}.{part}.layers.{i}"
            for j in range(2 if part == "encoder" else 3):
                plan |= affine(f"{ours}.norms.{j}", f"{theirs}.norms.{j}")
            plan |= affine(f"{ours}.feed_forward.widen", f"{theirs}.ffns.0.layers.0.0")
            plan |= affine(f"{ours}.feed_forward.narrow", f"{theirs}.ffns.0.layers.1")
            plan |= _deformable(f"{ours}.attention", f"{theirs}.attentions.{int(part == 'decoder')}")
            if part == "decoder":
                plan |= _interaction(f"{ours}.interaction", f"{theirs}.attentions.0", graph)
    return plan


def head(decoder_layers: int, classes: Step, old_boxes: bool) -> Plan:
    """A class and a box branch per layer of the decoder."""
    plan: Plan = {}
    for i in range(decoder_layers):
        ours, theirs = f"head.classes.{i}", f"pts_bbox_head.cls_branches.{i}"
        for j in (0, 1, 3, 4):  # linear and layer norm, twice
            plan |= affine(f"{ours}.{j}", f"{theirs}.{j}")
        plan |= affine(f"{ours}.6", f"{theirs}.6", classes)
        ours, theirs = f"head.boxes.{i}", f"pts_bbox_head.reg_branches.{i}"
        for j in (0, 2):
            plan |= affine(f"{ours}.{j}", f"{theirs}.{j}")
        plan |= affine(f"{ours}.4", f"{theirs}.4", OLD_ROWS if old_boxes else NEW_ROWS)
    return plan


def heat(classes: Step) -> Plan:
    """The heatmap beside the queries: a shared convolution, two more, and the one that gives the classes."""
    theirs = "pts_bbox_head.task_heads.0.heatmap"
    plan = _conv_module("heat.shared", "pts_bbox_head.shared_conv")
    for i in range(2):
        ours = (f"heat.heat.{3 * i}", f"heat.heat.{3 * i + 1}")
        plan |= conv_norm(ours, (f"{theirs}.{i}.conv", f"{theirs}.{i}.bn"))
    return plan | affine("heat.heat.6", f"{theirs}.2", classes)


def _conv_module(ours: str, theirs: str) -> Plan:
    return conv_norm((f"{ours}.0", f"{ours}.1"), (f"{theirs}.conv", f"{theirs}.bn"))


def _deformable(ours: str, theirs: str) -> Plan:
    names = {"offsets": "sampling_offsets", "weights": "attention_weights", "value": "value_proj"}
    plan: Plan = {}
    for name, foreign in {**names, "output": "output_proj"}.items():
        plan |= affine(f"{ours}.{name}", f"{theirs}.{foreign}")
    return plan


def _interaction(ours: str, theirs: str, graph: bool) -> Plan:
    plan: Plan = {}
    if graph:
        for i in range(2):
            names = (f"{ours}.convolutions.{i}.linear", f"{ours}.convolutions.{i}.norm")
            plan |= conv_norm(names, (f"{theirs}.conv{i + 1}.0", f"{theirs}.conv{i + 1}.1"), EDGE_KERNEL)
        return plan
    plan |= affine(f"{ours}.attention.out_proj", f"{theirs}.attn.out_proj")
    for part in ("in_proj_weight", "in_proj_bias"):
        plan[f"{ours}.attention.{part}"] = Take(f"{theirs}.attn.{part}")
    return plan
