"""Which further fields a teacher can give, from one answer of it, and the layout of those that are asked for.

Everything is decided here, before a store is begun: sizes and columns go into its header. Costs one forward pass.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from cache.adaptor import Adaptor
from cache.bev import BevEncoding
from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from cache.field_list import Asked, FieldList
from cache.further import LEVEL_LETTERS, LIMIT_LETTERS, QUERY_CODE, DepthBins, Further, levels_of
from models.detector import Detector, DetectorOutput
from pipeline.fields.adaptor import adaptor_module, folded_adaptor
from pipeline.fields.raw import heat_classes_of, level_names, regressed
from pipeline.inputs import image_size_of


def further_of(asked: FieldList, model: Detector, output: DetectorOutput, bev: BevEncoding) -> Further:
    """The layout of `asked` from an answer `output` of `model` to one frame; bev: encoding of the feature.

    ConfigError, naming what this teacher can give, where it does not give an item.
    """
    offered = offered_by(model, output)
    for item in asked.items:
        _require(item, offered, model, output)
    if len(asked.of("level")) > len(LEVEL_LETTERS):
        raise ConfigError(f"--fields: {len(asked.of('level'))} levels, a store holds up to {len(LEVEL_LETTERS)}")
    limits = {item["limit"] for item in asked.of("samples")} - {0}
    if len(limits) > len(LIMIT_LETTERS):
        raise ConfigError(f"--fields: samples of {len(limits)} limits, a store holds up to {len(LIMIT_LETTERS)}")
    maps = {"": output.bev, **output.levels}
    known = {
        item["name"]: {"channels": maps[item["name"]].shape[1], "grid": model.levels[item["name"]].grid.to_dict()}
        for item in asked.of("level")
    }
    for name in level_names(asked):
        expected = (model.levels[name].channels, *model.levels[name].grid.shape)
        if tuple(maps[name].shape[1:]) != expected:
            raise ConfigError(
                f"--fields: level {name} came as {tuple(maps[name].shape[1:])}, its detector says {expected}; correct "
                "what its `levels` say"
            )
    branches = tuple(regressed(output.heads)) if "regression" in asked else ()
    queries = (0, 0)
    if "queries" in asked and output.queries is not None:
        count, classes = output.queries.logits.shape[2:]
        code = output.queries.boxes.shape[-1]
        if (classes, code) != (len(DETECTION_CLASSES), QUERY_CODE):
            raise ConfigError(
                f"--fields: queries of {classes} classes and {code} numbers a box, expected {len(DETECTION_CLASSES)} "
                f"and {QUERY_CODE}, see models.detector.QueryOutput"
            )
        queries = min(asked.of("queries")[0]["top"] or count, count), classes
    try:
        levels = levels_of(asked, known, model.grid, bev)
    except ConfigError as error:
        raise ConfigError(f"--fields: level: {error}; leave it out") from None
    return Further(
        bev,
        asked,
        classes=len(DETECTION_CLASSES) if "logits" in asked else 0,
        regression=branches,
        groups=_groups(model, output) if branches else (),
        levels=levels,
        queries=queries,
        channels={item.name: int(maps[item["level"]].shape[1]) for item in asked.of("samples")},
        depth=_depth_bins(model, output) if "depth" in asked else None,
    )


def adaptor_of(asked: FieldList, model: Detector) -> Adaptor | None:
    """The adaptor for the header, where it is asked for."""
    module = adaptor_module(model)
    return folded_adaptor(module) if "adaptor" in asked and module is not None else None


def offered_by(model: Detector, output: DetectorOutput) -> FieldList:
    """What a teacher can give, as one would ask for it; samples, which any can, at the feature's map only."""
    items = [Asked("samples"), Asked("samples", (("boxes", "teacher"),))]
    heats = bool(output.heads) and all("heatmap" in maps for maps in output.heads)
    if heats and sorted(heat_classes_of(model)) == sorted(DETECTION_CLASSES):
        items.append(Asked("logits"))
    if regressed(output.heads):
        items.append(Asked("regression"))
    levels = set(output.levels) & set(getattr(model, "levels", {}))
    items += [Asked("level", (("name", name),)) for name in sorted(levels)]
    if output.queries is not None:
        items.append(Asked("queries"))
    if output.depth_logits is not None and isinstance(getattr(model, "depth_edges", None), torch.Tensor):
        items.append(Asked("depth"))
    if adaptor_module(model) is not None:
        items.append(Asked("adaptor"))
    return FieldList(tuple(items))


def _require(item: Asked, offered: FieldList, model: Detector, output: DetectorOutput) -> None:
    known = {other["name"] for other in offered.of("level")}
    level = item["level"] if item.kind == "samples" else item["name"] if item.kind == "level" else ""
    if (item.kind in offered and item.kind != "level" and not level) or level in known:
        return
    why = ""
    if item.kind == "logits" and output.heads:
        lacking = sorted(set(DETECTION_CLASSES) - set(heat_classes_of(model)))
        why = (
            f", whose heat is of {len(heat_classes_of(model))} classes, without {', '.join(lacking)}" if lacking else ""
        )
    raise ConfigError(f"--fields: {item} is not among what this teacher gives{why}: {offered}; leave it out")


def _groups(model: Detector, output: DetectorOutput) -> tuple[tuple[str, ...], ...]:
    """The class names of each task group, empty where the detector does not say them."""
    sizes = [int(maps["heatmap"].shape[1]) if "heatmap" in maps else 0 for maps in output.heads]
    names = heat_classes_of(model)
    if sum(sizes) != len(names):
        return ()
    ends = np.cumsum([0, *sizes]).tolist()
    return tuple(names[start:end] for start, end in itertools.pairwise(ends))


def _depth_bins(model: Detector, output: DetectorOutput) -> DepthBins:
    """Of a camera teacher's answer to one frame."""
    assert output.depth_logits is not None
    size = image_size_of(model)
    edges = tuple(map(float, model.depth_edges.tolist()))  # type: ignore[attr-defined]
    cameras, bins, height, width = output.depth_logits.shape
    if size is None or len(edges) != bins + 1 or size[0] % width or size[0] // width * height != size[1]:
        raise ConfigError(
            f"--fields: depth: {bins} bins on {height} x {width} cells, with {len(edges)} edges and images of {size}; "
            "expected an edge more than bins, and a whole stride"
        )
    return DepthBins(edges, size[0] // width, size, cameras, height, width)
