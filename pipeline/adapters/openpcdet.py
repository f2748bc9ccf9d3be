"""OpenPCDet's CenterPoint for nuScenes, voxels and pillars: where its names and conventions differ from ours.

Its convolutions have biases before norms, as our presets do; every stage without a change of resolution is brought up
by a transposed convolution; headings are (cos, sin).
"""

from __future__ import annotations

from pipeline.adapters.layouts import COS_SIN, DECONVOLUTION
from pipeline.adapters.mapping import Plan, Step, affine, conv_norm

NAME = "openpcdet"
FIRST_SPARSE = "backbone_3d.conv_input.0.weight"
BRANCHES = {"center": "center", "height": "center_z", "dim": "dim", "rot": "rot", "vel": "vel", "heatmap": "hm"}


def voxel_encoder(stages: int, blocks: int, sparse: Step) -> Plan:
    """A stage begins with its halving: conv2.0 halves, conv2.1 and conv2.2 are blocks."""
    theirs = "backbone_3d."
    plan = sparse_ends(theirs, sparse)
    for i in range(stages):
        ours, stage = f"encoder.stages.{i}", f"{theirs}conv{i + 1}"
        if i:
            plan |= conv_norm((f"{ours}.down.conv", f"{ours}.down.norm"), (f"{stage}.0.0", f"{stage}.0.1"), sparse)
        for j in range(blocks):
            plan |= residual_block(f"{ours}.blocks.{j}", f"{stage}.{j + (i > 0)}", sparse)
    return plan


def sparse_ends(theirs: str, sparse: Step) -> Plan:
    """The sparse encoder's first and last convolution; named alike in both families."""
    plan: Plan = {}
    for ours, name in (("encoder.input", "conv_input"), ("encoder.output", "conv_out")):
        plan |= conv_norm((f"{ours}.conv", f"{ours}.norm"), (f"{theirs}{name}.0", f"{theirs}{name}.1"), sparse)
    return plan


def residual_block(ours: str, theirs: str, sparse: Step) -> Plan:
    """Two convolutions; named alike in both families."""
    plan: Plan = {}
    for n in (1, 2):
        names = (f"{ours}.conv{n}", f"{ours}.norm{n}"), (f"{theirs}.conv{n}", f"{theirs}.bn{n}")
        plan |= conv_norm(*names, sparse, bias=f"{ours}.bias{n}")
    return plan


def pillar_encoder() -> Plan:
    """Two layers; the first sees 11 features."""
    plan: Plan = {}
    for i, ours in enumerate(("encoder.first", "encoder")):
        theirs = f"vfe.pfn_layers.{i}"
        plan |= conv_norm((f"{ours}.linear", f"{ours}.norm"), (f"{theirs}.linear", f"{theirs}.norm"))
    return plan


def bev_backbone(layers: tuple[int, ...], upsample: tuple[float, ...]) -> Plan:
    """Its stages begin with a padding layer, so every index is one more than ours."""
    plan: Plan = {}
    for s, extra in enumerate(layers):
        ours, theirs = f"backbone.blocks.{s}", f"backbone_2d.blocks.{s}"
        for i in range(0, 3 * (extra + 1), 3):
            plan |= conv_norm((f"{ours}.{i}", f"{ours}.{i + 1}"), (f"{theirs}.{i + 1}", f"{theirs}.{i + 2}"))
    for s, scale in enumerate(upsample):
        ours, theirs = f"backbone.neck.deblocks.{s}", f"backbone_2d.deblocks.{s}"
        steps = (DECONVOLUTION,) if scale == 1 else ()
        plan |= conv_norm((f"{ours}.0", f"{ours}.1"), (f"{theirs}.0", f"{theirs}.1"), *steps)
    return plan


def head(tasks: int) -> Plan:
    """Shared convolution, then per task group a hidden and a last convolution for every map."""
    plan = conv_norm(("head.shared.0", "head.shared.1"), ("dense_head.shared_conv.0", "dense_head.shared_conv.1"))
    for t in range(tasks):
        for name, foreign in BRANCHES.items():
            ours, theirs = f"head.tasks.{t}.{name}", f"dense_head.heads_list.{t}.{foreign}"
            plan |= conv_norm((f"{ours}.0", f"{ours}.1"), (f"{theirs}.0.0", f"{theirs}.0.1"))
            plan |= affine(f"{ours}.3", f"{theirs}.1", *((COS_SIN,) if name == "rot" else ()))
    return plan
