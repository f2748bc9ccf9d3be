"""Claims about the centre head: targets, clean losses, and that decoding perfect maps gives the boxes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.classes import DETECTION_CLASSES
from cache.errors import DataError
from cache.grid import BevGrid
from models.center_head import BRANCHES, SIX_TASKS, CenterHead, CenterHeadConfig, GroupTargets, focal_numerator, smooth
from models.gaussian import draw_gaussians
from tests.models.synthetic import boxes_of

GRID = BevGrid(-51.2, 51.2, -51.2, 51.2, 1.6)
SMALL_GRID = BevGrid(-9.6, 9.6, -9.6, 9.6, 1.6)
ONE_TASK = (DETECTION_CLASSES,)


def head_of(**options) -> CenterHead:
    torch.manual_seed(0)
    return CenterHead(8, GRID, CenterHeadConfig(shared_channels=16, branch_channels=8, **options))


def perfect_maps(targets: list[GroupTargets]) -> list[dict[str, torch.Tensor]]:
    """The maps of a head without error: the heatmap's logit, and the regressed values at the centre cells."""
    out = []
    for target in targets:
        batch, _, height, width = target.heatmap.shape
        maps = {"heatmap": torch.logit(target.heatmap * 0.9, eps=1e-6)}
        columns = target.values.split(list(BRANCHES.values()), dim=1)
        for (name, channels), values in zip(BRANCHES.items(), columns, strict=True):
            maps[name] = torch.zeros(batch, channels, height, width)
            maps[name][target.sample, :, target.row, target.col] = values
        out.append(maps)
    return out


def spread_boxes(seed: int, count: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes whose centre cells are at least two cells apart, so that no peak hides another."""
    g = torch.Generator().manual_seed(seed)
    boxes, labels = boxes_of(g, count)
    places = torch.randperm(100, generator=g)[:count]
    boxes[:, 0] = (places % 10 - 5) * 9.6 + torch.rand(count, generator=g) * 3
    boxes[:, 1] = (places // 10 - 5) * 9.6 + torch.rand(count, generator=g) * 3
    return boxes, labels


def sorted_rows(boxes, labels) -> np.ndarray:
    rows = np.concatenate([np.asarray(boxes, np.float64), np.asarray(labels, np.float64)[:, None]], axis=1)
    rows[:, 6] = np.arctan2(np.sin(rows[:, 6]), np.cos(rows[:, 6]))
    return rows[np.lexsort(rows[:, :2].round(2).T)]


@pytest.mark.parametrize("tasks", [ONE_TASK, SIX_TASKS])
@pytest.mark.parametrize("peaks", ["hard", "soft", "all"])
def test_targets_decode_to_the_boxes_they_came_from(tasks, peaks):
    head = head_of(tasks=tasks, min_radius=1, peaks=peaks, score_threshold=0.5)
    frames = [spread_boxes(seed) for seed in (1, 2)]
    targets = head.targets([b for b, _ in frames], [label for _, label in frames])
    for (boxes, labels), found in zip(frames, head.decode(perfect_maps(targets)), strict=True):
        assert len(found) == len(boxes)
        np.testing.assert_allclose(sorted_rows(found.boxes_lidar, found.labels), sorted_rows(boxes, labels), atol=2e-5)
        assert found.boxes_lidar.dtype == np.float32
        assert found.labels.dtype == np.int32


def test_targets_of_a_hand_case():
    head = head_of(tasks=(("car", "bus"), ("pedestrian",)), min_radius=1)
    box = torch.tensor([[3.0, -4.1, -0.5, 4.0, 2.0, 1.5, math.pi / 6, 1.0, -2.0]])
    first, second = head.targets([box, box[:0]], [torch.tensor([2]), torch.tensor([], dtype=torch.long)])
    col, row = math.floor((3.0 + 51.2) / 1.6), math.floor((-4.1 + 51.2) / 1.6)
    assert (first.sample.tolist(), first.row.tolist(), first.col.tolist()) == ([0], [row], [col])
    expected = [(3 + 51.2) / 1.6 - col, (-4.1 + 51.2) / 1.6 - row, -0.5, math.log(4), math.log(2), math.log(1.5)]
    expected += [0.5, math.sqrt(3) / 2, 1, -2]
    torch.testing.assert_close(first.values[0], torch.tensor(expected), atol=1e-5, rtol=0)
    assert first.heatmap[0, 1, row, col] == 1
    assert first.heatmap[0, 0].sum() == 0  # no car
    assert first.heatmap[1].sum() == 0  # the other frame is empty
    assert second.heatmap.sum() == 0
    assert len(second.sample) == 0


def rotated(boxes: torch.Tensor, angle: float, mirror: bool) -> torch.Tensor:
    """Boxes after a turn by `angle` about z and then, if asked, a flip of x."""
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]])
    out = boxes.clone()
    out[:, :2], out[:, 7:9], out[:, 6] = boxes[:, :2] @ turn.T, boxes[:, 7:9] @ turn.T, boxes[:, 6] + angle
    if mirror:
        out[:, 0], out[:, 7], out[:, 6] = -out[:, 0], -out[:, 7], math.pi - out[:, 6]
    return out


@pytest.mark.parametrize(("angle", "mirror"), [(0.3, False), (math.pi / 2, False), (0.0, True), (-0.4, True)])
def test_decoded_geometry_follows_a_turn_or_flip(angle, mirror):
    head = head_of(tasks=ONE_TASK, min_radius=1, score_threshold=0.5)
    boxes, labels = spread_boxes(4, 12)
    boxes[:, :2] *= 0.6  # stays on the grid when turned
    moved = rotated(boxes, angle, mirror)
    (found,) = head.decode(perfect_maps(head.targets([moved], [labels])))
    np.testing.assert_allclose(sorted_rows(found.boxes_lidar, found.labels), sorted_rows(moved, labels), atol=2e-5)


def slow_focal(logits: torch.Tensor, target: torch.Tensor) -> float:
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = min(max(1 / (1 + math.exp(-x)), 1e-4), 1 - 1e-4)
        total -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    return total


def test_focal_loss_equals_the_loop():
    g = torch.Generator().manual_seed(1)
    logits, target = torch.randn(2, 3, 5, 4, generator=g) * 4, torch.rand(2, 3, 5, 4, generator=g)
    target[0, 1, 2, 3] = target[1, 0, 0, 0] = 1
    assert focal_numerator(logits, target).item() == pytest.approx(slow_focal(logits, target), rel=1e-5)


def test_loss_equals_a_loop_over_objects():
    head = head_of(tasks=ONE_TASK, min_radius=1)
    boxes, labels = spread_boxes(6, 7)
    boxes[2, 7:9] = float("nan")
    heads = head(torch.randn(1, 8, 64, 64))
    targets = head.targets([boxes], [labels])
    parts = head.loss_parts(heads, targets)
    sums = dict.fromkeys(BRANCHES, 0.0)
    for box in boxes.double():
        x, y = (float(box[0]) + 51.2) / 1.6, (float(box[1]) + 51.2) / 1.6
        col, row = math.floor(x), math.floor(y)
        wanted = {
            "center": [x - col, y - row],
            "height": [float(box[2])],
            "dim": box[3:6].log().tolist(),
            "rot": [math.sin(box[6]), math.cos(box[6])],
            "vel": box[7:9].tolist(),
        }
        for name, values in wanted.items():
            found = heads[0][name][0, :, row, col].tolist()
            sums[name] += sum(abs(f - w) for f, w in zip(found, values, strict=True) if not math.isnan(w))
    for name, expected in sums.items():
        assert parts[name].numerator.item() == pytest.approx(expected, rel=1e-4), name
        assert parts[name].normaliser.tolist() == [7]
        weight = 0.25 * (0.2 if name == "vel" else 1)
        assert parts[name].value().item() == pytest.approx(weight * expected / 7, rel=1e-4)


def slow_loss(maps, boxes, labels, beta) -> torch.Tensor:
    """The loss of one frame and one group in float64, object by object and cell by cell, from the paper's formulas."""
    _, classes, height, width = maps["heatmap"].shape
    total, count = torch.zeros((), dtype=torch.float64), len(boxes)
    target = torch.from_numpy(
        draw_gaussians(
            boxes.numpy(), labels.numpy(), classes, SMALL_GRID, min_radius=1
        )  # held to a loop by its own test
    )
    for c in range(classes):
        for row in range(height):
            for col in range(width):
                p, wanted = maps["heatmap"][0, c, row, col].sigmoid(), float(target[c, row, col])
                if wanted == 1:
                    total = total - (1 - p) ** 2 * p.log() / count
                else:
                    total = total - (1 - wanted) ** 4 * p**2 * (1 - p).log() / count
    for box, label in zip(boxes.double(), labels.tolist(), strict=True):
        x, y = (box[0] + 9.6) / 1.6, (box[1] + 9.6) / 1.6
        row, col = int(y), int(x)
        at = {name: maps[name][0, :, row, col] for name in BRANCHES}
        rot = torch.stack([box[6].sin(), box[6].cos()])
        error = (at["center"] - torch.stack([x - col, y - row])).abs().sum() + (at["height"] - box[2]).abs().sum()
        error = error + (at["dim"] - box[3:6].log()).abs().sum()
        turned = (at["rot"] - rot).abs().sum()
        if label == 1:
            turned = torch.minimum(turned, (at["rot"] + rot).abs().sum())
        total = total + 0.25 * (error + turned) / count
        for found, wanted in zip(at["vel"], box[7:9], strict=True):
            off = (found - wanted).abs()
            if not bool(wanted.isnan()):
                off = off**2 / (2 * beta) if bool(off < beta) else off - beta / 2
                total = total + 0.25 * 0.2 * off / count
    return total


def test_loss_and_gradients_equal_a_loop_in_float64():
    """Down to every map of the head, with a velocity unknown and a barrier headed the wrong way."""
    config = CenterHeadConfig(
        tasks=(("car", "barrier"),), min_radius=1, velocity_smooth=2.0, headless=("barrier",), shared_channels=8
    )
    head = CenterHead(8, SMALL_GRID, config)
    g = torch.Generator().manual_seed(0)
    boxes, _ = boxes_of(g, 6)
    boxes[:, 0], boxes[:, 1] = torch.arange(6) * 3.1 - 8, torch.arange(6) * -2.9 + 8
    boxes[3, 7:9] = float("nan")
    channels = torch.tensor([0, 1, 1, 0, 1, 0])
    labels = torch.tensor([DETECTION_CLASSES.index(("car", "barrier")[c]) for c in channels])
    maps = {name: torch.randn(1, width, *SMALL_GRID.shape, generator=g) for name, width in BRANCHES.items()}
    maps["heatmap"] = torch.randn(1, 2, *SMALL_GRID.shape, generator=g)
    fast = {name: value.clone().requires_grad_() for name, value in maps.items()}
    slow = {name: value.double().requires_grad_() for name, value in maps.items()}
    found = sum(part.value() for part in head.loss_parts([fast], head.targets([boxes], [labels])).values())
    expected = slow_loss(slow, boxes, channels, 2.0)
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name in maps:
        assert fast[name].grad.any()
        torch.testing.assert_close(fast[name].grad.double(), slow[name].grad, rtol=1e-4, atol=1e-7, msg=name)


def test_smooth_errors_equal_torch_and_zero_leaves_l1():
    error = torch.linspace(0, 9, 50)
    torch.testing.assert_close(smooth(error, 2.0), F.smooth_l1_loss(error, torch.zeros(50), reduction="none", beta=2.0))
    assert smooth(error, 0.0) is error


def test_objects_at_rest_let_go_of_the_velocity_near_zero_under_the_smooth_loss():
    """Near 0, with 3 of 4 objects at rest, the gradient of L1 points at 0 and that of the smooth loss at the mover."""
    speeds = torch.tensor([0.0, 0.0, 0.0, 6.0])
    for beta, sign in ((0.0, 1), (2.0, -1)):
        guess = torch.full((4,), 0.3, requires_grad=True)
        smooth((guess - speeds).abs(), beta).sum().backward()
        assert guess.grad.sum().sign() == sign


def test_parts_of_two_halves_add_up_to_the_parts_of_the_whole():
    head = head_of(tasks=SIX_TASKS).eval()
    frames = [spread_boxes(seed, 9) for seed in (7, 8)]
    bev = torch.randn(2, 8, 64, 64)
    boxes, labels = [b for b, _ in frames], [label for _, label in frames]
    whole = head.loss_parts(head(bev), head.targets(boxes, labels))
    halves = [head.loss_parts(head(bev[i : i + 1]), head.targets(boxes[i : i + 1], labels[i : i + 1])) for i in (0, 1)]
    for name, part in whole.items():
        torch.testing.assert_close(
            part.numerator, halves[0][name].numerator + halves[1][name].numerator, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(part.normaliser, halves[0][name].normaliser + halves[1][name].normaliser)


def test_unknown_velocity_gives_no_gradient():
    head = head_of(tasks=ONE_TASK)
    boxes, labels = spread_boxes(9, 3)
    boxes[:, 7:9] = float("nan")
    parts = head.loss_parts(head(torch.randn(1, 8, 64, 64)), head.targets([boxes], [labels]))
    assert parts["vel"].value() == 0
    parts["vel"].value().backward()
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())


def test_a_headless_class_may_be_predicted_either_way_round():
    head = head_of(tasks=ONE_TASK, headless=("barrier",), min_radius=1)
    boxes, _ = spread_boxes(11, 6)
    for label, equal in ((9, True), (0, False)):
        targets = head.targets([boxes], [torch.full((6,), label)])
        maps = perfect_maps(targets)
        right = head.loss_parts(maps, targets)["rot"].value()
        maps[0]["rot"] = -maps[0]["rot"]
        opposite = head.loss_parts(maps, targets)["rot"].value()
        assert right == 0
        assert (opposite == 0) == equal


def test_soft_peaks_keep_a_neighbour_of_like_score_and_push_down_a_skirt():
    logit = torch.logit(torch.tensor([[0.8, 0.79, 0.001, 0.9, 0.3]]), eps=1e-6)
    maps = {name: torch.zeros(1, channels, 64, 64) for name, channels in BRANCHES.items()}
    maps["heatmap"] = torch.full((1, 1, 64, 64), -12.0)
    maps["heatmap"][0, 0, 5:6, 10:15] = logit
    scores = {}
    for peaks in ("hard", "soft", "all"):
        (found,) = head_of(tasks=(("car",),), peaks=peaks, score_threshold=0.02).decode([maps])
        scores[peaks] = found.scores.tolist()
    assert scores["hard"] == pytest.approx([0.9, 0.8])
    assert scores["all"] == pytest.approx([0.9, 0.8, 0.79, 0.3])
    assert scores["soft"] == pytest.approx([0.9, 0.8, 0.79 * (0.79 / 0.8) ** 2, 0.3 / 9])


def test_cells_whose_scores_underflow_do_not_crowd_out_a_peak():
    """0 of a neighbourhood of 0 is no score; taken for NaN it would rank before all."""
    maps = {name: torch.zeros(1, channels, 64, 64) for name, channels in BRANCHES.items()}
    maps["heatmap"] = torch.full((1, 1, 64, 64), -150.0)
    maps["heatmap"][0, 0, 5, 5] = 3.0
    for peaks in ("hard", "soft", "all"):
        (found,) = head_of(tasks=(("car",),), peaks=peaks, max_boxes=20, score_threshold=0.1).decode([maps])
        assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-3))]), peaks


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", BRANCHES)
def test_a_box_with_a_number_that_is_not_finite_is_not_said(name, value):
    """Of a branch that overflowed in fp16; sizes are held within bounds, so an infinite one is large and no more."""
    head = head_of(tasks=(("car",),), score_threshold=0.1)
    maps = {branch: torch.zeros(1, channels, 64, 64) for branch, channels in BRANCHES.items()}
    maps["heatmap"] = torch.full((1, 1, 64, 64), -12.0)
    maps["heatmap"][0, 0, 5, [5, 20]] = 3.0
    maps[name][0, 0, 5, 5] = value
    (found,) = head.decode([maps])
    held = math.isinf(value) and name in ("dim", "rot")
    assert len(found) == 1 + held
    assert np.isfinite(found.boxes_lidar).all()


def test_no_object_gives_a_finite_loss():
    head = head_of(tasks=SIX_TASKS)
    none = torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)
    parts = head.loss_parts(head(torch.randn(2, 8, 64, 64)), head.targets([none[0]] * 2, [none[1]] * 2))
    total = sum(part.value() for part in parts.values())
    total.backward()
    assert math.isfinite(total.item())
    assert total > 0
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    assert all(parts[name].value() == 0 for name in BRANCHES)


def test_boxes_off_the_grid_of_no_size_or_of_no_group_are_left_out():
    head = head_of(tasks=(("car",),))
    boxes, _ = spread_boxes(10, 5)
    boxes[1, 0], boxes[2, 3], boxes[3, 6] = 99.0, 0.0, float("nan")
    (target,) = head.targets([boxes], [torch.tensor([0, 0, 0, 0, 5])])
    assert len(target.sample) == 1


def test_a_batch_without_annotations_is_refused():
    with pytest.raises(DataError, match="annotations"):
        head_of().targets([], [])


def test_scores_fall_and_detections_stay_within_the_limits():
    head = head_of(tasks=SIX_TASKS, max_boxes=20, score_threshold=0.05)
    for found in head.eval().decode(head(torch.randn(2, 8, 64, 64) * 3)):
        assert 0 < len(found) <= 20
        assert (np.diff(found.scores) <= 0).all()
        assert found.scores.min() >= 0.05
        assert np.isfinite(found.boxes_lidar).all()


def test_circle_suppression_uses_the_radius_of_the_class():
    boxes = torch.tensor([[0.1, 0.1, 0, 1, 1, 1, 0, 0, 0], [2.9, 0.1, 0, 1, 1, 1, 0, 0, 0.0]])
    for radii, expected in (({}, 2), ({"car": 3.0}, 1), ({"car": 2.5}, 2), ({"bus": 3.0}, 2)):
        head = head_of(tasks=ONE_TASK, min_radius=0, peaks="all", score_threshold=0.5, circle_nms_m=radii)
        (found,) = head.decode(perfect_maps(head.targets([boxes], [torch.tensor([0, 0])])))
        assert len(found) == expected, radii


def test_rotated_suppression_replaces_the_circle_of_its_classes():
    """Two long boxes side by side, and the second one again, moved by two cells: an overlap of a half."""
    boxes = torch.tensor([[0.1, 0.1, 0, 10, 2, 1, 0, 0, 0], [0.1, 2.9, 0, 10, 2, 1, 0, 0, 0], [3.4, 2.9] + [0] * 7])
    boxes[2, 2:] = boxes[1, 2:]
    for options, expected in (
        ({}, 3),
        ({"rotated_nms_iou": {"car": 0.4}}, 2),
        ({"rotated_nms_iou": {"car": 0.6}}, 3),
        ({"circle_nms_m": {"car": 3.5}}, 1),
        ({"circle_nms_m": {"car": 3.5}, "rotated_nms_iou": {"car": 0.4}}, 2),
        ({"circle_nms_m": {"car": 3.5}, "rotated_nms_iou": {"bus": 0.4}}, 1),
        ({"circle_nms_m": {"car": 3.5}, "rotated_nms_iou": {"car": 0.0}}, 1),
    ):
        head = head_of(tasks=ONE_TASK, min_radius=0, peaks="all", score_threshold=0.5, **options)
        (found,) = head.decode(perfect_maps(head.targets([boxes], [torch.zeros(3, dtype=torch.long)])))
        assert len(found) == expected, options


@pytest.mark.parametrize("overlaps", [{"lorry": 0.2}, {"car": 1.0}, {"car": -0.1}])
def test_an_overlap_of_no_class_or_out_of_range_is_refused(overlaps):
    with pytest.raises(ValueError, match="rotated_nms_iou"):
        CenterHeadConfig(rotated_nms_iou=overlaps)
