"""A checkpoint of OpenPCDet or mmdetection3d as a detector of ours, or the reason why it is none.

The family and the encoder are told from the tensors' names; Object-DGCNN goes on in `query_teacher`. The size of a
voxel is not in the tensors: a preset's name says it, or the config that mmdetection3d writes into its files; where both
do they must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cache.errors import ConfigError, DataError
from models.build import build_detector, load_preset, load_state, preset_names, resolve_config
from models.detector import Detector
from pipeline.adapters import mmdetection3d, object_dgcnn, openpcdet
from pipeline.adapters.layouts import sparse_step
from pipeline.adapters.mapping import Plan, Report, fill
from pipeline.adapters.query_teacher import load_query_teacher
from pipeline.adapters.reading import Checkpoint, read_checkpoint
from pipeline.adapters.told import NEW_BOXES, OLD_BOXES, require_told_grid, told_classes, told_numbers

PRESETS = {
    ("voxel", 0.075): "centerpoint-voxel-0.075",
    ("voxel", 0.1): "centerpoint-voxel-0.1",
    ("pillar", 0.2): "centerpoint-pillar-0.2",
}

# What other networks have and ours has not, by the start or a part of a tensor's name. In this order.
OTHERS = (
    (r"\.feature_adapt_(cls|reg)\.", "the variant with deformable convolutions, which this project has not"),
    (r"^(img_|pts_fusion|fusion_layer|image_)", "a network that reads images too"),
    (r"^(neck\.blocks|bbox_head\.tasks)\.", "a file of tianweiy/CenterPoint, whose names have no adapter yet"),
    (r"^(roi_head|point_head|pfe)\.", "a two-stage network"),
    (r"^dense_head\.rpn_heads\.", "a network with anchors (multi-head)"),
    (r"^(dense_head|pts_bbox_head|bbox_head)\.conv_(cls|box|reg)\.", "a network with anchors"),
    (
        r"^(dense_head|pts_bbox_head)\.(transformer|decoder|heatmap_head|class_encoding)",
        "another network with a transformer",
    ),
)


@dataclass(frozen=True)
class Kind:
    """What the names of a checkpoint's tensors say."""

    family: Literal["openpcdet", "mmdetection3d", "object-dgcnn"]
    encoder: Literal["voxel", "pillar"]


def load_foreign(path: Path, teacher: str = "", overrides: Mapping[str, Any] | None = None) -> tuple[Detector, Report]:
    """The detector in evaluation mode, and what became of every tensor.

    teacher: a preset's name, which files that do not tell their voxel size need; `@old-boxes` after it says that the
    boxes are those of mmdetection3d before 1.0, `@new-boxes` that they are not; for Object-DGCNN a word on the order of
    classes too, see `query_teacher`. Other names say nothing. overrides: laid over the preset, for weights that were
    trained on another range.

    Raises DataError or ConfigError with the reason: another network, another order of classes, tensors missing or left
    over, NaN, a file that wants to run code.
    """
    checkpoint, where = read_checkpoint(path), str(path)
    kind = kind_of(checkpoint.tensors, where)
    if kind.family == object_dgcnn.NAME:
        return load_query_teacher(checkpoint, kind.encoder, teacher, overrides or {}, where)
    name, _, boxes = teacher.partition("@")
    old = _old_boxes(boxes, kind, checkpoint.meta, where)
    preset = _preset(name, kind, checkpoint.meta, where)
    changes: dict[str, Any] = {"preset": preset, **(overrides or {})}
    # Released decoding takes the best cells, neighbours included, and leaves the rest to the suppression of boxes.
    changes["head"] = {"peaks": "all", **changes.get("head", {})}
    if (kind.family, kind.encoder) == (mmdetection3d.NAME, "pillar"):
        changes |= {"pillar_layers": 1, "pillar_padding": mmdetection3d.PILLAR_PADDING}
    config = resolve_config(changes)
    _require_classes(config, checkpoint.meta, where)
    require_told_grid(config, kind.encoder, checkpoint.meta, where)
    model = build_detector(config)
    expected = model.state_dict()
    plan = _plan(kind, config, expected, checkpoint, old, where)
    state, rows = fill(plan, expected, checkpoint.tensors, where)
    load_state(model, state, where)
    family = f"{kind.family}, boxes of before 1.0" if old else kind.family
    return model.eval(), Report(family, preset, tuple(rows), changes)


def kind_of(names: Iterable[str], where: str) -> Kind:
    """Family and encoder by the tensors' names. DataError saying what the network is instead, where that is known."""
    names = list(names)

    def have(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    queries = have("pts_backbone.") and have("pts_bbox_head.reg_branches.") and object_dgcnn.QUERIES in names
    for pattern, what in OTHERS:
        others = (name for name in names if not (queries and name.startswith("pts_bbox_head.transformer.")))
        example = next((name for name in others if re.search(pattern, name)), None)
        if example is not None:
            raise DataError(f"{where}: {example} belongs to {what}; {_readable()}")
    if have("backbone_2d.") and have("dense_head.heads_list."):
        if have("backbone_3d."):
            return Kind("openpcdet", "voxel")
        if have("vfe.pfn_layers."):
            return Kind("openpcdet", "pillar")
    if queries or (have("pts_backbone.") and have("pts_bbox_head.task_heads.")):
        family: Literal["object-dgcnn", "mmdetection3d"] = "object-dgcnn" if queries else "mmdetection3d"
        if have("pts_middle_encoder."):
            return Kind(family, "voxel")
        if have("pts_voxel_encoder.pfn_layers."):
            return Kind(family, "pillar")
    raise DataError(f"{where}: its tensors ({', '.join(names[:3])}, ...) are of a network unknown here; {_readable()}")


def _readable() -> str:
    return (
        "adapters read CenterPoint for nuScenes of OpenPCDet and mmdetection3d, and Object-DGCNN, with voxels or "
        "pillars; for another network name a callable, see docs/teachers.md"
    )


def _plan(
    kind: Kind, config: Mapping[str, Any], expected: Mapping[str, Any], checkpoint: Checkpoint, old: bool, where: str
) -> Plan:
    """Our names -> theirs, for every tensor of the model."""
    family = openpcdet if kind.family == openpcdet.NAME else mmdetection3d
    backbone, tasks = config["backbone"], len(config["head"]["tasks"])
    plan = family.bev_backbone(backbone["layers"], backbone["upsample"])
    plan |= mmdetection3d.head(tasks, old) if family is mmdetection3d else openpcdet.head(tasks)
    if kind.encoder == "pillar":
        linear = checkpoint.tensors.get(mmdetection3d.PILLAR_LINEAR)
        return plan | (mmdetection3d.pillar_encoder(linear) if family is mmdetection3d else openpcdet.pillar_encoder())
    first = checkpoint.tensors.get(family.FIRST_SPARSE)
    if first is None:
        raise DataError(f"{where}: {family.FIRST_SPARSE} is missing, which tells how its sparse kernels lie")
    step = sparse_step(first, tuple(expected["encoder.input.conv.weight"].shape), family.FIRST_SPARSE, where)
    return plan | family.voxel_encoder(len(config["sparse"]["channels"]), config["sparse"]["blocks"], step)


def _preset(name: str, kind: Kind, meta: Mapping[str, Any], where: str) -> str:
    """The preset that a teacher's name says, else the one of the cell that the file tells, else of its encoder."""
    if name in preset_names():
        found = str(load_preset(name)["kind"])
        if found != f"centerpoint-{kind.encoder}":
            raise ConfigError(
                f"--teacher {name}: a {found} preset, {where} holds centerpoint-{kind.encoder} weights; name one of "
                f"{', '.join(preset for (encoder, _), preset in PRESETS.items() if encoder == kind.encoder)}"
            )
        return name
    fitting = {cell: preset for (encoder, cell), preset in PRESETS.items() if encoder == kind.encoder}
    told = told_numbers(meta, "voxel_size", 3)
    if told and told[0] in fitting:
        return fitting[told[0]]
    if told or len(fitting) > 1:
        says = f"says voxels of {told[0]:g} m, for which there is no preset" if told else "does not say its voxel size"
        raise ConfigError(
            f"{where}: {says}; name the network it was trained as: --teacher {' or '.join(fitting.values())}"
        )
    return next(iter(fitting.values()))


def _old_boxes(said: str, kind: Kind, meta: Mapping[str, Any], where: str) -> bool:
    """Whether boxes are those of mmdetection3d before 1.0. ConfigError where a file leaves it open and nobody said."""
    if said not in ("", OLD_BOXES, NEW_BOXES):
        raise ConfigError(f"--teacher ...@{said}: unknown, expected @{OLD_BOXES} or @{NEW_BOXES}")
    if kind.family != mmdetection3d.NAME:
        if said == OLD_BOXES:
            raise ConfigError(
                f"--teacher ...@{said}: {where} is OpenPCDet's, which never had those boxes; leave it out"
            )
        return False
    version = str(meta.get("mmdet3d_version", ""))
    if not said and version.startswith("0."):
        raise ConfigError(
            f"{where}: written by mmdetection3d {version}, whose files are of both box conventions; say which by "
            f"adding @{NEW_BOXES} or @{OLD_BOXES} to --teacher (the wrong one scores mASE near 0.7, mAOE near 1.5)"
        )
    return said == OLD_BOXES


def _require_classes(config: Mapping[str, Any], meta: Mapping[str, Any], where: str) -> None:
    """DataError where the file tells of another order of classes: the groups of a centre head cannot be regrouped."""
    ours = [name for task in config["head"]["tasks"] for name in task]
    theirs = told_classes(meta)
    if theirs and theirs != ours:
        raise DataError(
            f"{where}: its classes are {', '.join(theirs)}; the order read here is {', '.join(ours)}, so its heatmaps "
            "would be taken for those of other classes; train with this order, or name a callable (docs/teachers.md)"
        )
