"""mmdetection3d's CenterPoint for nuScenes, voxels and pillars: where its names and conventions differ from ours.

Its convolutions have no bias before a norm; its sparse stages end with the halving that ours begin with; headings are
(sin, cos) as ours. Boxes of versions before 1.0 are w, l, h with another yaw.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.adapters.layouts import NO_Z_OFFSET, OLD_SIZES, OLD_YAW
from pipeline.adapters.mapping import Plan, Step, affine, conv_norm
from pipeline.adapters.openpcdet import residual_block, sparse_ends

NAME = "mmdetection3d"
FIRST_SPARSE = "pts_middle_encoder.conv_input.0.weight"
PILLAR_LINEAR = "pts_voxel_encoder.pfn_layers.0.linear.weight"
PILLAR_PADDING = 20  # points that a pillar is padded to
BRANCHES = {"center": "reg", "height": "height", "dim": "dim", "rot": "rot", "vel": "vel", "heatmap": "heatmap"}


def voxel_encoder(stages: int, blocks: int, sparse: Step) -> Plan:
    """Their encoder_layer1.2 is the halving into our stage 1."""
    theirs = "pts_middle_encoder."
    plan = sparse_ends(theirs, sparse)
    for i in range(stages):
        ours, layer = f"encoder.stages.{i}", f"{theirs}encoder_layers.encoder_layer{i + 1}"
        if i:
            halving = f"{theirs}encoder_layers.encoder_layer{i}.{blocks}"
            plan |= conv_norm((f"{ours}.down.conv", f"{ours}.down.norm"), (f"{halving}.0", f"{halving}.1"), sparse)
        for j in range(blocks):
            plan |= residual_block(f"{ours}.blocks.{j}", f"{layer}.{j}", sparse)
    return plan


def pillar_encoder(linear: Tensor | None) -> Plan:
    """One layer. linear: its weights (64, 11); some files of 2021 have 10 columns, without the offset in z."""
    theirs = "pts_voxel_encoder.pfn_layers.0"
    steps = (NO_Z_OFFSET,) if linear is not None and linear.shape[1:] == (10,) else ()
    return conv_norm(("encoder.linear", "encoder.norm"), (f"{theirs}.linear", f"{theirs}.norm"), *steps)


def bev_backbone(layers: tuple[int, ...], upsample: tuple[float, ...]) -> Plan:
    """Named as ours; stages of unchanged resolution pass a plain 1 x 1 convolution."""
    plan: Plan = {}
    for s, extra in enumerate(layers):
        ours, theirs = f"backbone.blocks.{s}", f"pts_backbone.blocks.{s}"
        for i in range(0, 3 * (extra + 1), 3):
            plan |= conv_norm((f"{ours}.{i}", f"{ours}.{i + 1}"), (f"{theirs}.{i}", f"{theirs}.{i + 1}"))
    for s in range(len(upsample)):
        ours, theirs = f"backbone.neck.deblocks.{s}", f"pts_neck.deblocks.{s}"
        plan |= conv_norm((f"{ours}.0", f"{ours}.1"), (f"{theirs}.0", f"{theirs}.1"))
    return plan


def head(tasks: int, old_boxes: bool) -> Plan:
    """old_boxes: of versions before 1.0."""
    changes = {"dim": (OLD_SIZES,), "rot": (OLD_YAW,)} if old_boxes else {}
    theirs = "pts_bbox_head.shared_conv"
    plan = conv_norm(("head.shared.0", "head.shared.1"), (f"{theirs}.conv", f"{theirs}.bn"))
    for t in range(tasks):
        for name, foreign in BRANCHES.items():
            ours, theirs = f"head.tasks.{t}.{name}", f"pts_bbox_head.task_heads.{t}.{foreign}"
            plan |= conv_norm((f"{ours}.0", f"{ours}.1"), (f"{theirs}.0.conv", f"{theirs}.0.bn"))
            plan |= affine(f"{ours}.3", f"{theirs}.1", *changes.get(name, ()))
    return plan
