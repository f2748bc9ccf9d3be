"""A teacher in the loop, said as terms read it: whole maps in fp32, every box and query, nothing chosen or rounded.

Written from what the words of `TeacherSaid` mean, on the teacher's answer to frames without augmentation; of the code
that writes stores it shares the selectors' weights and the places of points, which are the same function of a frame for
whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.box_points import box_points
from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from cache.store import FrameStore, TeacherStore
from models.build import load_weights
from models.center_head import BRANCHES
from models.pictures import ImageAugment, picture_geometry
from pipeline.coverage import coverage_weights
from pipeline.evidence import evidence_of
from pipeline.fields.samples import sample_points
from pipeline.inputs import batch_of, image_size_of, read_input
from trainer.said import DepthSaid, TeacherCells, TeacherSaid


@torch.no_grad()
def live_said(
    weights: Path, store: TeacherStore, frames: FrameStore, rows: Sequence[int], kept: Sequence[np.ndarray]
) -> TeacherSaid:
    """Of `rows` of the frame store; of the teacher store only coverage and list of fields are used. kept: the annotated
    boxes of each frame that the batch has."""
    model: Any = load_weights(weights)
    size = image_size_of(model)
    inputs = [read_input(frames, row, None, None, size) for row in rows]
    output = model(batch_of(inputs, [str(row) for row in rows], "cpu"))
    found = model.decode(output)
    heat = output.class_heat().numpy() if output.heads else None
    columns = []
    for i, row in enumerate(rows):
        shown = None if heat is None else heat[i]
        cloud = inputs[i].cloud if size is None else frames.points(row)
        evidence = evidence_of(frames, row, store.coverage, shown, cloud)
        columns.append(coverage_weights(store.coverage, evidence, model.grid))

    def every_cell(maps: Tensor, grid: BevGrid) -> TeacherCells:
        times = maps.shape[2] // columns[0].shape[1]
        wide = [np.kron(weights, np.ones((1, times, times), np.float32)) for weights in columns]
        cells = grid.height * grid.width
        return TeacherCells(
            torch.arange(cells).repeat(len(rows)),
            by_cell(maps),
            torch.from_numpy(np.concatenate([w.reshape(len(w), -1).T for w in wide]).astype(np.float32)),
            torch.arange(len(rows) + 1) * cells,
            tuple(store.coverage.names),
        )

    asked, heads, queries = store.further.asked, output.heads, output.queries
    levels = {item["name"]: output.levels[item["name"]].float() for item in asked.of("level")}
    full = "regression" in asked
    grids = {name: model.levels[name].grid for name in levels}
    order = [model.heat_classes.index(name) for name in DETECTION_CLASSES] if heads else []
    samples: dict[str, list[Tensor]] = {}
    inside: dict[str, list[Tensor]] = {}
    for item in asked.of("samples"):
        assert not item["level"]
        samples[str(item)], inside[str(item)] = [], []
        for i, row in enumerate(rows):
            truth = item["boxes"] == "truth"
            boxes = frames.boxes_lidar(row)[kept[i]] if truth else found[i].boxes_lidar[: item["limit"] or None]
            places = box_points(boxes, item["points"], item["enlarge"])
            values, valid = sample_points(output.bev[i].float().numpy(), model.grid, places)
            samples[str(item)].append(torch.from_numpy(values))
            inside[str(item)].append(torch.from_numpy(valid))
    best = [torch.argsort(-x.max(dim=1).values, stable=True) for x in queries.logits[-1]] if queries else []
    return TeacherSaid(
        grid=model.grid,
        cells=every_cell(output.bev.float(), model.grid),
        logits=by_cell(torch.cat([maps["heatmap"] for maps in heads], dim=1)[:, order]) if "logits" in asked else None,
        regression=by_cell(torch.cat([maps[name] for maps in heads for name in BRANCHES], dim=1)) if full else None,
        regression_columns=branch_columns(heads) if full else (),
        groups=tuple(map(tuple, model.config["head"]["tasks"])) if full else (),
        levels={name: every_cell(values, grids[name]) for name, values in levels.items()},
        level_grids=grids,
        boxes=[torch.from_numpy(each.boxes_lidar) for each in found],
        scores=[torch.from_numpy(each.scores) for each in found],
        labels=[torch.from_numpy(each.labels).long() for each in found],
        query_logits=[queries.logits[-1, i][chosen] for i, chosen in enumerate(best)] if "queries" in asked else [],
        query_boxes=[queries.boxes[-1, i][chosen] for i, chosen in enumerate(best)] if "queries" in asked else [],
        samples=samples,
        sample_inside=inside,
        depth=_depth(model, output, frames, rows) if "depth" in asked else None,
    )


def by_cell(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C) float32, a frame's cells by row and column."""
    return maps.float().permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def branch_columns(heads: Sequence[dict[str, Tensor]]) -> tuple[dict[str, slice], ...]:
    """Where each branch of each head stands when they are laid side by side."""
    out, first = [], 0
    for maps in heads:
        place = {}
        for name in BRANCHES:
            place[name] = slice(first, first + maps[name].shape[1])
            first += maps[name].shape[1]
        out.append(place)
    return tuple(out)


def _depth(model: Any, output: Any, frames: FrameStore, rows: Sequence[int]) -> DepthSaid:
    probs = output.depth_logits.float().softmax(dim=1).unflatten(0, (len(rows), -1))
    size = image_size_of(model)
    assert size is not None
    affines = [
        [picture_geometry((c.width, c.height), size, ImageAugment()).affine() for c in frames.frame(row).cameras]
        for row in rows
    ]
    edges = tuple(map(float, model.depth_edges))
    return DepthSaid(probs, edges, size[0] // probs.shape[-1], size, torch.from_numpy(np.array(affines)))
