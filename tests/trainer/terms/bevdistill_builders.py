"""Tiny worlds for the tests of BEVDistill's terms: a few frames with all that a teacher may say and a student answers.

Everything is float64 where a term may see it so, so that values can be compared to 1e-10; frames are separate records
that are joined into a batch, so that a batch can be taken apart again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.cells import Cells, gather_cells
from cache.classes import DETECTION_CLASSES
from cache.grid import BevGrid
from models.detector import Batch, DetectorOutput, LossPart, QueryOutput
from models.gaussian import foreground_mask
from tests.trainer.terms import slow_pieces
from tests.trainer.terms.slow_pieces import AUGMENTS, gradients, slow_at, total
from trainer.augment import BevAugment
from trainer.said import TeacherCells, TeacherSaid
from trainer.terms.box_code import encode_boxes

GRID = BevGrid(-4.8, 4.8, -4.0, 4.0, 0.8)  # 10 rows, 12 columns
STUDENT, TEACHER, EMBEDDING = 3, 4, 5
SAMPLES = "samples(boxes=teacher,points=1x1)"
LAYERS, QUERIES, CLASSES = 2, 7, len(DETECTION_CLASSES)
GROUPS = (("car", "truck"), ("pedestrian", "barrier"))  # no heat of the six others
HEAT_CLASSES = tuple(name for group in GROUPS for name in group)
BRANCHES = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
SELECTORS = ("gaussian", "footprint", "dense")
EMPTY = 1  # the number of the frame without an object


@dataclass(frozen=True)
class Frame:
    """One frame: what was annotated, what the teacher said of it (canonical), and the student's answer (augmented)."""

    augment: BevAugment
    boxes: np.ndarray
    labels: np.ndarray
    teacher_map: np.ndarray
    cells: Cells
    cell_logits: np.ndarray
    adapted: Cells
    said_boxes: np.ndarray
    said_scores: np.ndarray
    said_labels: np.ndarray
    query_logits: np.ndarray
    query_boxes: np.ndarray
    samples: np.ndarray
    inside: np.ndarray
    answer: dict[str, Tensor]
    labelled: bool = True


def a_frame(seed: int, augment: BevAugment = AUGMENTS[0], objects: int = 4, every_cell: bool = True) -> Frame:
    """A frame of `objects` annotated boxes, of which the teacher says all but one, with a false one in its place."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((objects, 9))
    boxes[:, 0], boxes[:, 1] = rng.uniform(-3.5, 3.5, objects), rng.uniform(-3, 3, objects)
    boxes[:, 3:6], boxes[:, 6] = rng.uniform(0.8, 2.5, (objects, 3)), rng.uniform(-3, 3, objects)
    boxes[:, 7:9] = rng.normal(0, 1, (objects, 2))
    labels = rng.choice([0, 1, 5, 9, 2], objects)
    said = boxes + rng.normal(0, 0.15, boxes.shape) * [1, 1, 1, 0.3, 0.3, 0.3, 0.5, 1, 1]
    said_labels = labels.copy()
    if objects:
        said[-1, :2] = rng.uniform(-3, 3, 2)
    if objects > 2:
        said_labels[1] = (said_labels[1] + 1) % CLASSES
        said[2, 7:9] = np.nan  # a teacher that does not know
    mask = foreground_mask(boxes, GRID, dilate=1)
    footprint = (mask > 0.3).astype(np.float32)
    weights = np.stack([mask, footprint, np.full(GRID.shape, 1.0 if every_cell else 0.0, np.float32)])
    teacher_map = rng.normal(0, 1, (TEACHER, *GRID.shape))
    cells = gather_cells(teacher_map, weights, "float32")
    cells = dataclasses.replace(cells, values=teacher_map.reshape(TEACHER, -1).T[cells.index])
    codes = encode_boxes(torch.from_numpy(np.nan_to_num(said))).numpy()
    query_logits = rng.normal(-2, 1, (objects, CLASSES))
    query_logits[np.arange(objects), said_labels] += 3
    return Frame(
        augment,
        boxes,
        labels.astype(np.int64),
        teacher_map,
        cells,
        rng.normal(-1, 1, (len(cells), CLASSES)),
        dataclasses.replace(cells, values=np.abs(rng.normal(0, 1, (len(cells), TEACHER)))),
        said,
        np.sort(rng.uniform(0.1, 0.95, objects))[::-1].copy(),
        said_labels.astype(np.int64),
        query_logits,
        codes,
        rng.normal(0, 1, (objects, 1, TEACHER)),
        np.ones((objects, 1), bool),
        an_answer(rng),
    )


def an_answer(rng: np.random.Generator) -> dict[str, Tensor]:
    """A student's answer to one frame, as leaves."""
    height, width = GRID.shape
    queries = rng.normal(0, 0.5, (LAYERS, QUERIES, 10))
    queries[..., 0] = rng.uniform(-4, 4, (LAYERS, QUERIES))
    queries[..., 1] = rng.uniform(-3.5, 3.5, (LAYERS, QUERIES))
    out = {
        "bev": rng.normal(0, 1, (STUDENT, height, width)),
        "query_logits": rng.normal(-1, 1, (LAYERS, QUERIES, CLASSES)),
        "query_boxes": queries,
        "embeddings": rng.normal(0, 1, (QUERIES, EMBEDDING)),
    }
    for group, names in enumerate(GROUPS):
        out[f"{group}.heatmap"] = rng.normal(-1, 1, (len(names), height, width))
        for branch, channels in BRANCHES.items():
            out[f"{group}.{branch}"] = rng.normal(0, 0.5, (channels, height, width))
    return {name: torch.from_numpy(values).requires_grad_() for name, values in out.items()}


def a_world(seed: int = 0, frames: int = 3, every_cell: bool = True) -> list[Frame]:
    """Frames under different augmentations; number EMPTY has no object."""
    return [
        a_frame(100 * seed + i, AUGMENTS[i % len(AUGMENTS)], 0 if i == EMPTY else 4, every_cell) for i in range(frames)
    ]


def output_of(frames: Sequence[Frame]) -> DetectorOutput:
    """The student's answer to the frames, differentiable by their leaves."""

    def stacked(name: str, dim: int = 0) -> Tensor:
        return torch.stack([frame.answer[name] for frame in frames], dim=dim)

    heads = [{name: stacked(f"{group}.{name}") for name in ("heatmap", *BRANCHES)} for group in range(len(GROUPS))]
    boxes = stacked("query_boxes", 1)
    queries = QueryOutput(stacked("query_logits", 1), boxes, boxes.detach()[..., :2], stacked("embeddings"))
    return DetectorOutput(stacked("bev"), heads, queries=queries)


def moved_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`trainer.augment.move_boxes` in float64, box by box."""
    out = np.array(boxes)
    linear = matrix[:2, :2]
    for box in out:
        box[:3] = (matrix @ [*box[:3], 1.0])[:3]
        box[3:6] *= matrix[2, 2]
        box[6] = np.arctan2(*(linear @ [np.cos(box[6]), np.sin(box[6])])[::-1])
        box[7:9] = linear @ box[7:9]
    return out


def batch_of(frames: Sequence[Frame]) -> Batch:
    """The batch; frames without labels come without boxes, as they are read."""
    matrices = [frame.augment.matrix() for frame in frames]
    boxes = [moved_boxes(f.boxes, m) if f.labelled else np.zeros((0, 9)) for f, m in zip(frames, matrices, strict=True)]
    return Batch(
        boxes=[torch.from_numpy(b) for b in boxes],
        labels=[torch.from_numpy(f.labels if f.labelled else f.labels[:0]) for f in frames],
        tokens=[str(i) for i in range(len(frames))],
        bev_augmentation=torch.from_numpy(np.stack(matrices)),
        labelled=torch.tensor([f.labelled for f in frames]),
    )


def cells_of(cells: Sequence[Cells]) -> TeacherCells:
    return TeacherCells(
        torch.from_numpy(np.concatenate([c.index for c in cells]).astype(np.int64)),
        torch.from_numpy(np.concatenate([c.values for c in cells])),
        torch.from_numpy(np.concatenate([c.weights for c in cells])).double(),
        torch.from_numpy(np.cumsum([0, *(len(c) for c in cells)])),
        SELECTORS,
    )


def said_of(frames: Sequence[Frame]) -> TeacherSaid:
    """All that the teacher said of the frames."""

    def each(name: str) -> list[Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(getattr(frame, name))) for frame in frames]

    return TeacherSaid(
        GRID,
        cells_of([frame.cells for frame in frames]),
        logits=torch.cat(each("cell_logits")),
        levels={"adapted": cells_of([frame.adapted for frame in frames])},
        level_grids={"adapted": GRID},
        boxes=each("said_boxes"),
        scores=each("said_scores"),
        labels=each("said_labels"),
        query_logits=each("query_logits"),
        query_boxes=each("query_boxes"),
        samples={SAMPLES: each("samples")},
        sample_inside={SAMPLES: each("inside")},
    )


def parts_of(term: nn.Module, frames: Sequence[Frame]) -> dict[str, LossPart]:
    return term(output_of(frames), batch_of(frames), said_of(frames))


def loss_of(term: nn.Module, frames: Sequence[Frame]) -> Tensor:
    return total(parts_of(term, frames))


def leaves_of(frames: Sequence[Frame]) -> list[Tensor]:
    return [leaf for frame in frames for leaf in frame.answer.values()]


def require_equal(term: nn.Module, frames: Sequence[Frame], slow: Callable[[], Tensor]) -> None:
    """Value and every gradient of the term equal those of `slow`, to 1e-9."""
    inputs = [*leaves_of(frames), *term.parameters()]
    found, wanted = loss_of(term, frames), slow()
    assert abs(found.item() - wanted.item()) < 1e-10 * max(1, abs(wanted.item())), (found.item(), wanted.item())
    assert abs(wanted.item()) > 1e-3  # something was compared
    for one, other in zip(gradients(found, inputs), gradients(wanted, inputs), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-11)


def a_student(**changes: Any) -> Any:
    """As much of a detector as a term's constructor looks at."""
    values = {"grid": GRID, "bev_channels": STUDENT, "heat_classes": HEAT_CLASSES, "config": {"kind": "test"}}
    return SimpleNamespace(**{**values, "modules": lambda: iter(()), **changes})


def bilinear(values: Tensor, x: float, y: float) -> Tensor:
    """(C,) of a map (C, H, W) at x, y metres, border values held."""
    return slow_at(values, x, y, GRID)


def centre_of(index: int) -> tuple[float, float]:
    """x, y (m) of a flat cell."""
    return slow_pieces.centre_of(int(index), GRID)


def moved(augment: BevAugment, x: float, y: float) -> tuple[float, float]:
    out = augment.matrix() @ [x, y, 0.0, 1.0]
    return float(out[0]), float(out[1])


def on_grid(x: float, y: float) -> bool:
    return slow_pieces.on_grid(x, y, GRID)
