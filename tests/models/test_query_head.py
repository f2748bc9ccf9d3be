"""The head of queries: its box code, its loss term by term against a slow form, and its decoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cache.errors import DataError
from cache.grid import BevGrid
from models.detector import QueryOutput, total_of
from models.matching import match_queries
from models.query_head import QueryHead, QueryHeadConfig
from tests.models.synthetic import boxes_of

GRID = BevGrid(-40.0, 40.0, -30.0, 30.0, 2.0)
LAYERS, QUERIES = 2, 6


def head(**more) -> QueryHead:
    torch.manual_seed(0)
    return QueryHead(8, LAYERS, GRID, QueryHeadConfig(**more))


def output(frames: int = 2, seed: int = 0) -> QueryOutput:
    g = torch.Generator().manual_seed(seed)
    boxes = torch.randn(LAYERS, frames, QUERIES, 10, generator=g) * torch.tensor([20.0, 15.0] + [1.0] * 8)
    logits = torch.randn(LAYERS, frames, QUERIES, 10, generator=g) - 2
    return QueryOutput(logits, boxes, boxes[..., :2].clone(), torch.randn(frames, QUERIES, 8, generator=g))


def objects(counts=(3, 2), seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    pairs = [boxes_of(g, count) for count in counts]
    for boxes, _ in pairs:
        boxes[:, :2] *= 0.7  # onto the grid
    return [boxes for boxes, _ in pairs], [labels for _, labels in pairs]


def test_boxes_are_metres_of_the_grid_and_references_those_that_a_layer_began_from():
    model = head()
    features = [torch.randn(2, QUERIES, 8) for _ in range(LAYERS)]
    references = [torch.rand(2, QUERIES, 2).requires_grad_() for _ in range(LAYERS)]
    said = model(features, references)
    assert said.logits.shape == said.boxes.shape == (LAYERS, 2, QUERIES, 10)
    for i in range(LAYERS):
        code = model.boxes[i](features[i])
        x = torch.sigmoid(code[..., 0] + torch.logit(references[i][..., 0]))
        torch.testing.assert_close(said.boxes[i, ..., 0], -40 + 80 * x)
        y = torch.sigmoid(code[..., 1] + torch.logit(references[i][..., 1]))
        torch.testing.assert_close(said.boxes[i, ..., 1], -30 + 60 * y)
        torch.testing.assert_close(said.boxes[i, ..., 2:], code[..., 2:])
        wanted = references[i] * torch.tensor([80.0, 60.0]) - torch.tensor([40.0, 30.0])
        torch.testing.assert_close(said.references[i], wanted.detach())
    assert not said.references.requires_grad and said.boxes.requires_grad
    assert torch.equal(said.embeddings, features[-1])
    for branch in model.classes:
        torch.testing.assert_close(branch[-1].bias.sigmoid(), torch.full((10,), 0.01))


def test_boxes_are_said_in_fp32_under_autocast():
    model = head()
    features, references = [torch.randn(2, QUERIES, 8)] * LAYERS, [torch.rand(2, QUERIES, 2)] * LAYERS
    plain = model(features, references)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(features, references)
    assert torch.equal(plain.boxes, half.boxes) and half.logits.dtype == torch.bfloat16


def slow_parts(model: QueryHead, said: QueryOutput, boxes, labels) -> tuple[list[float], list[float], list[int]]:
    """Focal and L1 numerators and matches per layer, number by number, given the matches."""
    targets = model.targets(boxes, labels)
    found = match_queries(said.logits, said.boxes, targets, class_weight=2.0, box_weight=0.25)
    focal, distance, matched = [], [], []
    for layer in range(LAYERS):
        focal_sum = l1_sum = 0.0
        pairs = {}
        item = 0
        for b, (frame, names) in enumerate(zip(boxes, labels, strict=True)):
            for box, label in zip(frame.double().tolist(), names.tolist(), strict=True):
                pairs[(b, int(found[layer, item]))] = (box, label)
                item += 1
        for b in range(len(boxes)):
            for q in range(QUERIES):
                box, label = pairs.get((b, q), (None, None))
                for c in range(10):
                    p = 1 / (1 + math.exp(-float(said.logits[layer, b, q, c])))
                    focal_sum -= 0.25 * (1 - p) ** 2 * math.log(p) if c == label else 0.75 * p**2 * math.log(1 - p)
                if box is not None:
                    x, y, z, length, width, height, yaw, vx, vy = box
                    sizes = [math.log(length), math.log(width), math.log(height)]
                    wanted = [x, y, z, *sizes, math.sin(yaw), math.cos(yaw), vx, vy]
                    for i, value in enumerate(wanted):
                        if not math.isnan(value):
                            error = abs(float(said.boxes[layer, b, q, i]) - value)
                            l1_sum += error * (0.2 if i > 7 else 1.0)
        focal.append(focal_sum)
        distance.append(l1_sum)
        matched.append(len(pairs))
    return focal, distance, matched


@pytest.mark.parametrize("unknown", [False, True], ids=["all known", "NaN velocity"])
def test_the_loss_equals_the_slow_form(unknown):
    model, said, (boxes, labels) = head(), output(), objects()
    if unknown:
        boxes[0][1, 7:] = math.nan
        boxes[1][0, 8] = math.nan
    parts = model.loss_parts(said, model.targets(boxes, labels))
    focal, distance, matched = slow_parts(model, said, boxes, labels)
    torch.testing.assert_close(parts["class"].numerator, torch.tensor(focal), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["box"].numerator, torch.tensor(distance), rtol=1e-4, atol=1e-4)
    assert parts["class"].normaliser.tolist() == parts["box"].normaliser.tolist() == matched == [5, 5]
    value = total_of(parts)
    expected = 0.25 * sum(d / m for d, m in zip(distance, matched, strict=True))
    assert float(value["box"]) == pytest.approx(expected, rel=1e-4)
    assert (parts["class"].weight, parts["box"].weight) == (2.0, 0.25)


def test_small_errors_of_velocities_count_by_their_square_and_large_ones_as_before():
    said, (boxes, labels) = output(), objects()
    plain, smooth = head(), head(velocity_smooth=0.5)
    targets = plain.targets(boxes, labels)
    found = match_queries(said.logits, said.boxes, targets, class_weight=2.0, box_weight=0.25)
    less = []
    for layer in range(LAYERS):
        sample_boxes = said.boxes[layer, targets.sample, found[layer], 8:]
        errors = (sample_boxes - targets.boxes[:, 8:]).abs().flatten().tolist()
        less.append(0.2 * sum(e - (e * e if e < 0.5 else e - 0.25) for e in errors))
    pair = [model.loss_parts(said, targets)["box"].numerator for model in (plain, smooth)]
    torch.testing.assert_close(pair[0] - pair[1], torch.tensor(less), atol=1e-4, rtol=1e-4)
    assert min(less) > 0


def test_velocities_are_said_in_their_unit():
    torch.manual_seed(0)
    plain, tens = head(), head(velocity_unit=10.0)
    tens.load_state_dict(plain.state_dict())
    features, references = [torch.randn(2, QUERIES, 8)] * LAYERS, [torch.rand(2, QUERIES, 2)] * LAYERS
    one, ten = plain(features, references).boxes, tens(features, references).boxes
    torch.testing.assert_close(ten[..., 8:], 10 * one[..., 8:])
    assert torch.equal(ten[..., :8], one[..., :8])


def test_a_batch_is_the_sum_of_its_frames():
    """So that ranks and accumulation may split it anywhere."""
    model, said, (boxes, labels) = head(), output(3), objects((3, 0, 2))
    whole = model.loss_parts(said, model.targets(boxes, labels))
    for name in whole:
        parts = []
        for b in range(3):
            one = QueryOutput(said.logits[:, b : b + 1], said.boxes[:, b : b + 1], said.references, said.embeddings)
            parts.append(model.loss_parts(one, model.targets(boxes[b : b + 1], labels[b : b + 1]))[name])
        torch.testing.assert_close(whole[name].numerator, sum(part.numerator for part in parts))
        assert torch.equal(whole[name].normaliser, sum(part.normaliser for part in parts))


def test_a_right_answer_costs_nothing_and_a_wrong_one_is_pulled_to_it():
    model, (boxes, labels) = head(), objects((2,))
    targets = model.targets(boxes, labels)
    said = output(1)
    right = said.boxes.clone()
    right[:, 0, :2] = targets.boxes
    logits = torch.full_like(said.logits, -12.0)
    logits[:, 0, [0, 1], labels[0]] = 12.0
    parts = model.loss_parts(QueryOutput(logits, right, said.references, said.embeddings), targets)
    assert parts["box"].numerator.abs().max() < 1e-5 and parts["class"].numerator.max() < 1e-3
    wrong = right.clone().requires_grad_()
    shifted = wrong + torch.tensor([0.5] + [0.0] * 9)
    parts = model.loss_parts(QueryOutput(logits, shifted, said.references, said.embeddings), targets)
    parts["box"].value().backward()
    assert (wrong.grad[:, 0, :2, 0] > 0).all() and not wrong.grad[:, 0, 2:].any()


def test_frames_without_objects_have_a_class_loss_only():
    model, said = head(), output(2)
    boxes, labels = [torch.zeros(0, 9)] * 2, [torch.zeros(0, dtype=torch.long)] * 2
    parts = model.loss_parts(said, model.targets(boxes, labels))
    assert parts["box"].numerator.tolist() == [0, 0] == parts["box"].normaliser.tolist()
    assert float(parts["class"].value()) > 0


def test_objects_that_no_query_can_say_are_left_out():
    boxes, labels = objects((5,))
    boxes[0][0, 0] = 41.0
    boxes[0][1, 3] = 0.0
    boxes[0][2, 6] = math.nan
    targets = head().targets(boxes, labels)
    assert targets.counts == (2,)
    assert torch.equal(targets.labels, labels[0][3:])
    torch.testing.assert_close(targets.boxes[:, 3:6].exp(), boxes[0][3:, 3:6])
    with pytest.raises(DataError, match="a loss needs boxes and labels of every frame"):
        head().targets([], [])


def test_decoding_gives_back_the_boxes_that_were_said():
    model, (boxes, labels) = head(max_boxes=4), objects((3,))
    said = output(1)
    code, logits = said.boxes.clone(), torch.full_like(said.logits, -9.0)
    code[-1, 0, :3] = model.targets(boxes, labels).boxes
    for i, label in enumerate(labels[0].tolist()):
        logits[-1, 0, i, label] = 3.0 - i
    logits[-1, 0, 0, (int(labels[0][0]) + 1) % 10] = 1.5  # one query for two classes
    [found] = model.decode(QueryOutput(logits, code, said.references, said.embeddings))
    assert found.labels.tolist() == [
        int(labels[0][0]),
        int(labels[0][1]),
        (int(labels[0][0]) + 1) % 10,
        int(labels[0][2]),
    ]
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3.0, -2.0, -1.5, -1.0])), rtol=1e-5)
    expected = boxes[0][[0, 1, 0, 2]].numpy()
    expected[:, 6] = np.arctan2(np.sin(expected[:, 6]), np.cos(expected[:, 6]))
    np.testing.assert_allclose(found.boxes_lidar, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("number", range(10))
def test_a_box_with_a_number_that_is_not_finite_is_not_said(number, value):
    """Of a branch that overflowed in fp16; an infinite size is held within bounds, an infinite sine is a heading."""
    model, said = head(), output(1)
    said.boxes[-1, 0, 0, number] = value
    [found] = model.decode(said)
    assert len(found) and np.isfinite(found.boxes_lidar).all()


def test_decoding_keeps_centres_in_range_and_scores_above_the_threshold():
    model, said = head(centre_range=(-10, -10, -1, 10, 10, 1), score_threshold=0.05), output(2)
    found = model.decode(said)
    for b, of_frame in enumerate(found):
        centres = said.boxes[-1, b, :, :3]
        inside = ((centres >= torch.tensor([-10, -10, -1])) & (centres <= torch.tensor([10, 10, 1]))).all(1)
        expected = sorted(said.logits[-1, b, inside].sigmoid().flatten().tolist(), reverse=True)
        np.testing.assert_allclose(of_frame.scores, [score for score in expected if score >= 0.05], rtol=1e-5)
    assert 0 < sum(len(of_frame) for of_frame in found) < 2 * QUERIES * 10
