"""Claims about label distillation: which of the teacher's boxes become labels, where, and in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from cache.grid import BevGrid
from models.center_head import CenterHead, CenterHeadConfig
from models.detector import Batch, total_of
from tests.models.test_rotated_iou import slow_iou
from tests.trainer.terms.sparsekd_builders import FINE, World
from trainer.augment import BevAugment, move_boxes
from trainer.said import TeacherSaid
from trainer.terms.registry import RELABELS
from trainer.terms.relabel import RELEASED, LabelDistillation, LabelDistillationOptions

CAR, PEDESTRIAN = 0, DETECTION_CLASSES.index("pedestrian")

SEEN = [0, 1, 3, 4, 6]  # of a box, its rectangle


def a_box(x: float, y: float = 0.0, l: float = 4.0, w: float = 2.0, yaw: float = 0.0) -> list[float]:
    return [x, y, 0.0, l, w, 1.5, yaw, 1.0, 0.0]


def frame(
    annotated: list[list[float]],
    found: list[tuple[list[float], float, int]],
    labels: list[int] | None = None,
    **more: Any,
) -> tuple[Batch, TeacherSaid]:
    """One frame; annotated boxes are cars unless labels say otherwise."""
    boxes = torch.tensor(annotated).reshape(-1, 9)
    mine = torch.tensor(labels if labels is not None else [CAR] * len(annotated), dtype=torch.int64)
    theirs = torch.tensor([box for box, _, _ in found]).reshape(-1, 9)
    said = TeacherSaid(
        FINE,
        boxes=[theirs],
        scores=[torch.tensor([score for _, score, _ in found])],
        labels=[torch.tensor([label for _, _, label in found], dtype=torch.int64)],
    )
    return Batch(boxes=[boxes], labels=[mine], tokens=["a"], **more), said


def run(batch: Batch, said: TeacherSaid, **options: Any) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """x of the boxes, labels and counts."""
    out = LabelDistillation("label", LabelDistillationOptions(**options))(batch, said)
    counts = {key.removeprefix("label/"): value for key, value in out.counts.items()}
    return out.batch.boxes[0][:, 0].numpy(), out.batch.labels[0].numpy(), counts


def test_sure_boxes_join_the_annotated_ones_and_unsure_ones_do_not() -> None:
    batch, said = frame([a_box(0)], [(a_box(20), 0.9, CAR), (a_box(30), 0.55, CAR), (a_box(40), 0.55, PEDESTRIAN)])
    x, labels, counts = run(batch, said, thresholds={"pedestrian": 0.5})
    assert x.tolist() == [0, 20, 40] and labels.tolist() == [CAR, CAR, PEDESTRIAN]
    assert counts == {"kept": 2, "dropped": 1, "duplicates": 0, "capped": 0, "relabelled": 0}
    assert len(batch.boxes[0]) == 1  # the given batch stays as it was


def test_duplicates_go_by_distance_within_a_class() -> None:
    found = [(a_box(1.0), 0.9, CAR), (a_box(1.2), 0.9, PEDESTRIAN), (a_box(10), 0.8, CAR), (a_box(11), 0.7, CAR)]
    batch, said = frame([a_box(0)], found)
    x, labels, counts = run(batch, said)
    assert x.tolist() == pytest.approx([0, 1.2, 10]) and labels.tolist() == [CAR, PEDESTRIAN, CAR]
    assert counts["duplicates"] == 2
    assert run(batch, said, distance_m=0.5)[0].tolist() == pytest.approx([0, 1.0, 1.2, 10, 11])
    assert run(batch, said, distances_m={"car": 1.1})[0].tolist() == pytest.approx([0, 1.2, 10])
    near, theirs = frame([a_box(0)], [(a_box(0.5), 0.9, PEDESTRIAN)], labels=[PEDESTRIAN])
    assert len(run(near, theirs, distances_m={"car": 1.1})[0]) == 2  # half a metre apart are two people


def test_duplicates_go_by_overlap_as_the_greedy_rule_has_it() -> None:
    world = World(61, objects=(6, 6, 6, 6))
    said, batch = world.said(), world.batch()
    options = LabelDistillationOptions(threshold=0.3, duplicates="iou", iou=0.05)
    out = LabelDistillation("label", options)(batch, said).batch
    for b in range(world.frames):
        boxes, scores, labels = world.found[b]
        boxes = move_boxes(boxes, world.augments[b].matrix())
        kept = [(box, int(label)) for box, label in zip(batch.boxes[b].numpy(), batch.labels[b], strict=True)]
        for i in np.argsort(-scores, kind="stable"):
            alike = [o for o, label in kept if label == labels[i] and slow_iou(o[SEEN], boxes[i][SEEN]) > 0.05]
            if scores[i] >= 0.3 and not alike:
                kept.append((boxes[i], int(labels[i])))
        assert np.allclose(out.boxes[b].numpy(), np.stack([box for box, _ in kept]), atol=1e-5)
        assert out.labels[b].tolist() == [label for _, label in kept]


def test_annotated_boxes_are_never_duplicates_of_each_other() -> None:
    batch, said = frame([a_box(0), a_box(0.1)], [])
    for how in ("none", "distance", "iou"):
        assert len(run(batch, said, duplicates=how)[0]) == 2


def test_the_released_form_puts_teachers_first_and_removes_nothing() -> None:
    batch, said = frame([a_box(0)], [(a_box(0.2), 0.9, CAR), (a_box(0.1), 0.7, CAR)])
    out = LabelDistillation("label", RELEASED)(batch, said).batch
    assert out.boxes[0][:, 0].tolist() == pytest.approx([0.2, 0.1, 0])
    capped = LabelDistillation("label", RELEASED.model_copy(update={"cap": 2}))(batch, said)
    assert capped.batch.boxes[0][:, 0].tolist() == pytest.approx([0.2, 0.1]) and capped.counts["label/capped"] == 1
    x, _, counts = run(batch, said, duplicates="none", cap=2)
    assert x.tolist() == pytest.approx([0, 0.2]) and counts["kept"] == 1 and counts["capped"] == 1
    assert RELEASED.cap == 500


def test_boxes_may_be_kept_by_overlap_with_annotations_instead_of_by_score() -> None:
    found = [(a_box(0.5), 0.1, CAR), (a_box(20), 0.99, CAR), (a_box(30), 0.99, PEDESTRIAN)]
    batch, said = frame([a_box(0)], found)
    x, _, _ = run(batch, said, by_iou={"car": 0.5}, duplicates="none")
    assert x.tolist() == pytest.approx([0, 30, 0.5])  # best score first; the sure car at 20 m has no annotated partner
    other, _ = frame([a_box(0)], [], labels=[PEDESTRIAN])
    assert run(other, said, by_iou={"car": 0.5}, duplicates="none")[0].tolist() == [0, 30]
    nobody, _ = frame([], [])
    assert run(nobody, said, by_iou={"car": 0.5})[0].tolist() == [30]  # annotated, and without a car
    unlabelled, _ = frame([], [], labelled=torch.tensor([False]))
    assert run(unlabelled, said, by_iou={"car": 0.5})[0].tolist() == [20, 30]  # the score decides


def test_boxes_move_with_the_augmentation_exactly() -> None:
    world = World(62)
    out = LabelDistillation("label", LabelDistillationOptions(threshold=0.0, duplicates="none", first="teacher"))(
        world.batch(), world.said()
    ).batch
    for b in range(world.frames):
        wanted = move_boxes(world.found[b][0], world.augments[b].matrix())
        assert np.allclose(out.boxes[b][: len(wanted)].numpy(), wanted, atol=1e-5)
        assert torch.equal(out.boxes[b][len(wanted) :], world.batch().boxes[b])
    plain = World(62, augments=[BevAugment()] * 4)
    out = LabelDistillation("label", RELEASED)(plain.batch(), plain.said()).batch
    assert {tuple(row) for row in out.boxes[0].tolist()} >= {tuple(row) for row in plain.boxes[0].tolist()}


def test_on_unlabelled_frames_the_teachers_boxes_are_the_labels() -> None:
    batch, said = frame([], [(a_box(20), 0.9, CAR), (a_box(20.5), 0.8, CAR)], labelled=torch.tensor([False]))
    out = LabelDistillation("label", LabelDistillationOptions())(batch, said)
    assert out.batch.boxes[0][:, 0].tolist() == [20] and out.batch.labelled is None  # type: ignore[attr-defined]
    assert out.counts["label/relabelled"] == 1
    left = LabelDistillation("label", LabelDistillationOptions(unlabelled="leave"))(batch, said)
    assert len(left.batch.boxes[0]) == 0 and left.batch.labelled.tolist() == [False]  # type: ignore[attr-defined]
    assert left.counts["label/kept"] == 0
    annotated, theirs = frame([a_box(0)], [(a_box(20), 0.9, CAR)])
    assert run(annotated, theirs, unlabelled="leave")[0].tolist() == [0, 20]  # annotated frames are joined all the same


def test_frames_without_any_box_stay_empty_and_their_loss_finite() -> None:
    batch, said = frame([], [])
    out = LabelDistillation("label", LabelDistillationOptions())(batch, said).batch
    assert out.boxes[0].shape == (0, 9) and out.labels[0].shape == (0,)
    assert total(detection_loss(out)).isfinite()


def test_the_detection_loss_on_merged_labels_falls_towards_the_teachers_boxes() -> None:
    torch.manual_seed(0)
    batch, said = frame([a_box(0)], [(a_box(5, 3), 0.9, CAR)])
    merged = LabelDistillation("label", LabelDistillationOptions())(batch, said).batch
    head = CenterHead(4, GRID, CONFIG)
    bev = torch.randn(1, 4, *GRID.shape).requires_grad_()
    optimiser = torch.optim.Adam([bev, *head.parameters()], lr=0.02)
    for _ in range(40):
        loss = total(total_of(head.loss_parts(head(bev), head.targets(merged.boxes, merged.labels))))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    heat = head.eval()(bev)[0]["heatmap"][0, 0].sigmoid()
    col, row = int((5 - GRID.x_min) / GRID.cell_m), int((3 - GRID.y_min) / GRID.cell_m)
    assert heat[row, col] > 0.5 > heat[0, 0]


def test_one_batch_of_two_frames_is_two_batches_of_one() -> None:
    world = World(63)
    options = LabelDistillationOptions(threshold=0.4)
    whole = LabelDistillation("label", options)(world.batch(), world.said())
    counts: dict[str, int] = {}
    for b in range(world.frames):
        one = LabelDistillation("label", options)(world.batch([b]), world.said([b]))
        assert torch.equal(one.batch.boxes[0], whole.batch.boxes[b])
        counts = {key: counts.get(key, 0) + value for key, value in one.counts.items()}
    assert counts == whole.counts


def test_lists_that_do_not_fit_and_unknown_classes_are_refused() -> None:
    world = World(64)
    with pytest.raises(ConfigError, match="4 frames with 1 lists"):
        LabelDistillation("label", LabelDistillationOptions())(world.batch(), world.said([0]))
    with pytest.raises(ValueError, match="unknown classes"):
        LabelDistillationOptions(thresholds={"vehicle": 0.5})
    options, build = RELABELS["sparsekd_label"].options, RELABELS["sparsekd_label"].build
    assert build("label", options()).needs.teacher_fields == ("boxes", "scores", "labels")


GRID = BevGrid(-8.0, 8.0, -8.0, 8.0, 1.0)
CONFIG = CenterHeadConfig(tasks=(("car",),), shared_channels=8, branch_channels=8, min_radius=1)


def detection_loss(batch: Batch) -> dict[str, Tensor]:
    head = CenterHead(4, GRID, CONFIG)
    bev = torch.zeros(len(batch.boxes), 4, *GRID.shape)
    return total_of(head.loss_parts(head(bev), head.targets(batch.boxes, batch.labels)))


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()
