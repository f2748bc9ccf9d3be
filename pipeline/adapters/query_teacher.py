"""A checkpoint of Object-DGCNN as a detector of ours: what its tensors tell, and what has to be said beside them.

The variant is in the tensors: learned or mean voxels, graph or attention between the queries, heatmap or none. The
convention of its boxes and the order of its classes are not; the file's metadata or words after the preset's name say
those, and without either the file is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError, DataError
from models.build import build_detector, load_preset, load_state, preset_names, resolve_config
from models.detector import Detector
from pipeline.adapters import mmdetection3d, object_dgcnn
from pipeline.adapters.layouts import sparse_step
from pipeline.adapters.mapping import Plan, Report, fill
from pipeline.adapters.reading import Checkpoint
from pipeline.adapters.told import NEW_BOXES, OLD_BOXES, require_told_grid, told_classes

PRESETS = {"voxel": "object-dgcnn-voxel-0.1", "pillar": "object-dgcnn-pillar-0.2"}


def load_query_teacher(
    checkpoint: Checkpoint, encoder: str, teacher: str, overrides: Mapping[str, Any], where: str
) -> tuple[Detector, Report]:
    """The detector in evaluation mode, and what became of every tensor.

    encoder: `voxel` or `pillar`; teacher: a preset's name, or any other, and words after it, each behind an @:
    old-boxes or new-boxes, and a key of `object_dgcnn.ORDERS`. Raises DataError or ConfigError with the reason.
    """
    name, *words = teacher.split("@")
    known = (OLD_BOXES, NEW_BOXES, *object_dgcnn.ORDERS)
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"--teacher ...@{unknown[0]}: unknown, expected @{', @'.join(known)}")
    preset = _preset(name, encoder, where)
    old = _old_boxes(words, checkpoint.meta, where)
    classes = object_dgcnn.class_rows(_order(words, checkpoint.meta, where))
    changes = {"preset": preset, **_with(_variant(checkpoint.tensors, encoder), overrides)}
    config = resolve_config(changes)
    require_told_grid(config, encoder, checkpoint.meta, where)
    model = build_detector(config)
    expected = model.state_dict()
    plan = _plan(checkpoint, encoder, config, expected, where)
    plan |= object_dgcnn.head(config["transformer"]["decoder_layers"], classes, old) | object_dgcnn.heat(classes)
    state, rows = fill(plan, expected, checkpoint.tensors, where)
    load_state(model, state, where)
    family = f"{object_dgcnn.NAME}, boxes of before 1.0" if old else object_dgcnn.NAME
    return model.eval(), Report(family, preset, tuple(rows), changes)


def _plan(
    checkpoint: Checkpoint, encoder: str, config: Mapping[str, Any], expected: Mapping[str, Tensor], where: str
) -> Plan:
    """Our names -> theirs, for every tensor before the head."""
    backbone, transformer = config["backbone"], config["transformer"]
    plan = object_dgcnn.bev_pyramid(backbone["layers"], backbone["first"])
    plan |= object_dgcnn.transformer(
        transformer["encoder_layers"],
        transformer["decoder_layers"],
        backbone["channels"],
        transformer["interaction"] == "graph",
    )
    if encoder == "pillar":
        return plan | mmdetection3d.pillar_encoder(checkpoint.tensors.get(mmdetection3d.PILLAR_LINEAR))
    first = checkpoint.tensors.get(mmdetection3d.FIRST_SPARSE)
    if first is None:
        raise DataError(f"{where}: {mmdetection3d.FIRST_SPARSE} is missing, which tells how its sparse kernels lie")
    step = sparse_step(first, tuple(expected["encoder.input.conv.weight"].shape), mmdetection3d.FIRST_SPARSE, where)
    stages, blocks = len(config["sparse"]["channels"]), config["sparse"]["blocks"]
    return plan | object_dgcnn.voxel_features() | mmdetection3d.voxel_encoder(stages, blocks, step)


def _preset(name: str, encoder: str, where: str) -> str:
    """The preset that a teacher's name says, else the published one of the encoder."""
    if name not in preset_names():
        return PRESETS[encoder]
    kind = str(load_preset(name)["kind"])
    if kind != f"object-dgcnn-{encoder}":
        raise ConfigError(
            f"--teacher {name}: a {kind} preset, {where} holds object-dgcnn-{encoder} weights; name {PRESETS[encoder]}"
        )
    return name


def _variant(tensors: Mapping[str, Tensor], encoder: str) -> dict[str, Any]:
    """What of the preset the tensors themselves decide."""
    transformer: dict[str, Any] = {"interaction": "graph" if object_dgcnn.EDGES in tensors else "attention"}
    if object_dgcnn.EDGES in tensors:  # these weights were trained so, whatever the paper says
        transformer["graph_order"] = "farthest"
    for key, name in (("queries", object_dgcnn.QUERIES), ("hidden", object_dgcnn.HIDDEN)):
        if name in tensors and tensors[name].dim() == 2:
            transformer[key] = len(tensors[name])
    changes: dict[str, Any] = {"transformer": transformer}
    if object_dgcnn.HEAT not in tensors:
        changes["heat"] = None
    elif encoder == "pillar":  # the published preset has none
        changes["heat"] = {}
    if encoder == "pillar":
        return {**changes, "pillar_layers": 1, "pillar_padding": mmdetection3d.PILLAR_PADDING}
    return {**changes, "voxel_features": "learned" if object_dgcnn.LEARNED_VOXELS in tensors else "mean"}


def _with(told: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` over `told`, tables key by key."""
    out = dict(told)
    for key, value in overrides.items():
        below = out.get(key)
        out[key] = {**below, **value} if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return out


def _old_boxes(words: Sequence[str], meta: Mapping[str, Any], where: str) -> bool:
    """Whether boxes are those of mmdetection3d before 1.0. ConfigError where neither the file nor anybody says."""
    said = {word for word in words if word in (OLD_BOXES, NEW_BOXES)}
    if len(said) == 1:
        return said == {OLD_BOXES}
    version = str(meta.get("mmdet3d_version", ""))
    if not said and version[:1].isdigit() and not version.startswith("0."):
        return False
    tells = f"written by mmdetection3d {version}" if version else "does not say its version of mmdetection3d"
    raise ConfigError(
        f"{where}: {tells}; say of which convention its boxes are by adding @{OLD_BOXES} (before 1.0, as the released "
        f"Object-DGCNN and BEVDistill were) or @{NEW_BOXES} to --teacher (the wrong one scores mASE near 0.7, mAOE "
        "near 1.5)"
    )


def _order(words: Sequence[str], meta: Mapping[str, Any], where: str) -> Sequence[str]:
    """The order of the file's classes. ConfigError where neither the file nor anybody says, or both and they differ."""
    said = [word for word in words if word in object_dgcnn.ORDERS]
    told = told_classes(meta)
    orders = {tuple(told)} - {()} | {object_dgcnn.ORDERS[word] for word in said}
    if len(orders) > 1:
        raise ConfigError(
            f"{where}: its classes are {', '.join(told)}, --teacher says @{' @'.join(said)}; leave the words out"
            if told
            else f"--teacher: @{' and @'.join(said)} cannot both be; name one"
        )
    if not orders:
        known = "; ".join(f"@{word} ({', '.join(order)})" for word, order in object_dgcnn.ORDERS.items())
        raise ConfigError(f"{where}: does not tell the order of its classes; add one to --teacher: {known}")
    [order] = orders
    if sorted(order) != sorted(DETECTION_CLASSES):
        raise DataError(
            f"{where}: its classes are {', '.join(order)}, expected the ten of the nuScenes detection task in any "
            "order; name a callable for another list (docs/teachers.md)"
        )
    return order
