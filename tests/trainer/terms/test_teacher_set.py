"""The teacher's objects in the student's frame, and their quality scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from shapely import affinity, box

from tests.trainer.terms.bevdistill_builders import (
    CLASSES,
    EMPTY,
    GRID,
    Frame,
    a_frame,
    a_world,
    batch_of,
    moved_boxes,
    on_grid,
    said_of,
)
from tests.trainer.terms.slow_pieces import AUGMENTS
from trainer.augment import BevAugment
from trainer.terms.box_code import encode_boxes
from trainer.terms.teacher_set import TeacherSet, TeacherSetOptions, quality_of, teacher_set


def objects_of(frames: list[Frame], **options: Any) -> tuple[TeacherSet, torch.Tensor]:
    parsed, batch = TeacherSetOptions(**options), batch_of(frames)
    objects = teacher_set(said_of(frames), batch, parsed, GRID)
    return objects, quality_of(objects, batch, parsed)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    one, other = (
        affinity.translate(
            affinity.rotate(box(-v[3] / 2, -v[4] / 2, v[3] / 2, v[4] / 2), v[6], use_radians=True), v[0], v[1]
        )
        for v in (a, b)
    )
    return one.intersection(other).area / one.union(other).area


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_decoded_boxes_and_their_quality_equal_the_slow_formula(gamma: float) -> None:
    frames = a_world(2, frames=4)
    objects, quality = objects_of(frames, gamma=gamma)
    at = 0
    for number, frame in enumerate(frames):
        moved = moved_boxes(frame.said_boxes, frame.augment.matrix())
        for rank, box_ in enumerate(moved):
            if not on_grid(box_[0], box_[1]):
                continue
            assert (objects.sample[at], objects.rank[at]) == (number, rank)
            wanted_code = encode_boxes(torch.from_numpy(box_)[None])[0]
            assert torch.allclose(objects.codes[at], wanted_code, atol=1e-12, equal_nan=True)
            score, label = frame.said_scores[rank], int(frame.said_labels[rank])
            assert objects.probs[at].tolist() == [score if c == label else 0.0 for c in range(CLASSES)]
            ious = [overlap(frame.said_boxes[rank], t) for t, c in zip(frame.boxes, frame.labels, strict=True)
                    if c == label]  # fmt: skip
            assert quality[at].item() == pytest.approx(score**gamma * max(ious, default=0.0) ** (1 - gamma), abs=1e-6)
            at += 1
    assert at == len(objects.sample) == sum(objects.counts)
    assert objects.counts[EMPTY] == 0
    assert len({round(q, 6) for q in quality.tolist()}) > 3


def test_without_annotations_the_score_alone_counts() -> None:
    frames = a_world(2, frames=3)
    labelled, known = objects_of(frames)
    frames[0] = dataclasses.replace(frames[0], labelled=False)
    objects, quality = objects_of(frames)
    mine = objects.sample == 0
    assert torch.equal(quality[mine], objects.scores[mine])
    assert torch.equal(quality[~mine], known[labelled.sample != 0])
    assert not torch.allclose(known[labelled.sample == 0], quality[mine])


def test_queries_come_with_the_scores_of_all_classes_and_the_best_ones_first() -> None:
    frames = [a_frame(3), a_frame(4, AUGMENTS[3])]
    objects, quality = objects_of(frames, objects="queries", quality="score", top=2)
    assert objects.counts == (2, 2)
    wanted = torch.from_numpy(np.stack([f.query_logits[r] for f in frames for r in range(2)])).sigmoid()
    assert torch.allclose(objects.probs, wanted)
    assert torch.equal(quality, wanted.amax(dim=1))
    _, alike = objects_of(frames, quality="none")
    assert alike.tolist() == [1.0] * 8


def test_objects_that_leave_the_students_grid_are_left_out() -> None:
    frame = a_frame(3)
    frame.said_boxes[0, :2] = [4.5, 0.1]
    stays, _ = objects_of([frame])
    leaves, _ = objects_of([dataclasses.replace(frame, augment=BevAugment(scale=1.2))])
    assert stays.counts[0] == 4
    assert 0 in stays.rank.tolist()
    assert 0 not in leaves.rank.tolist()


def test_a_false_object_among_annotated_ones_has_no_quality() -> None:
    frame = a_frame(3)
    frame.said_boxes[0, :2], frame.boxes[:, :2] = [4.0, 3.0], [-3.0, -3.0]
    objects, quality = objects_of([frame])
    assert quality[objects.rank == 0].item() == 0
