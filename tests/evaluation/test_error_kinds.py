"""Kinds of errors and what mending one of them gives, held against the definition written as loops."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cache.classes import DETECTION_CLASSES
from cache.frame import Detections
from evaluation.array_metric import evaluate
from evaluation.error_kinds import ERROR_KINDS, KINDS, summarise_errors
from evaluation.match_table import MatchTable, detections_of, match_table
from evaluation.recall_curves import average_precision, recall_curve
from evaluation.working_point import working_scores
from tests.evaluation.test_resampling import World, table_of, world
from tests.evaluation.worlds import made_up_frame, made_up_truth


class Slow:
    """docs/evaluation.md, "Kinds of errors", a loop a sentence. Boxes are (frame, class, x, y[, score]) in global
    coordinates, those that the metric counts."""

    def __init__(self, objects: list[tuple], predictions: list[tuple]) -> None:
        self.objects, self.predictions = objects, predictions
        # of equal scores the later prediction goes first
        self.ranked = sorted(range(len(predictions)), key=lambda n: (predictions[n][4], n), reverse=True)
        self.taken: dict[int, int] = {}
        for n in self.ranked:
            free = [o for o in self._of_frame(n, same=True) if o not in self.taken.values()]
            best = min(free, key=lambda o: self._apart(n, o), default=None)
            if best is not None and self._apart(n, best) < 2:
                self.taken[n] = best
        self.kind, self.target = {}, {}
        for n in self.ranked:
            self.kind[n], self.target[n] = self._kind(n)

    def _apart(self, n: int, o: int) -> float:
        return math.hypot(self.predictions[n][2] - self.objects[o][2], self.predictions[n][3] - self.objects[o][3])

    def _of_frame(self, n: int, same: bool) -> list[int]:
        frame, label = self.predictions[n][:2]
        return [o for o, it in enumerate(self.objects) if it[0] == frame and (it[1] == label) == same]

    def _kind(self, n: int) -> tuple[str, int | None]:
        if n in self.taken:
            return "right", None
        own = min(self._of_frame(n, same=True), key=lambda o: self._apart(n, o), default=None)
        other = min(self._of_frame(n, same=False), key=lambda o: self._apart(n, o), default=None)
        if own is not None and self._apart(n, own) < 2:
            return "duplicate", None
        if own is not None and self._apart(n, own) < 4:
            return "localisation", own
        if other is not None and self._apart(n, other) < 2:
            return "class", other
        return "background", None

    def missed(self, least: dict[int, float] | None = None) -> list[int]:
        said = [n for n in self.ranked if least is None or self.predictions[n][4] >= least[self.predictions[n][1]]]
        accounted = {self.taken[n] for n in said if n in self.taken} | {self.target[n] for n in said}
        return [o for o in range(len(self.objects)) if o not in accounted]

    def ap(self, label: int, fixed: str | None) -> float:
        mended: list[tuple[float, int, bool]] = []
        free = set(range(len(self.objects))) - set(self.taken.values())
        claimed: set[int] = set()
        for n in self.ranked:
            own_class, score, kind = self.predictions[n][1], self.predictions[n][4], self.kind[n]
            if kind != fixed:
                if own_class == label:
                    mended.append((score, n, kind == "right"))
            elif fixed in ("localisation", "class"):
                o = self.target[n]
                if self.objects[o][1] == label and o in free - claimed:
                    claimed.add(o)
                    mended.append((score, n, True))
        objects = sum(it[1] == label for it in self.objects)
        if fixed == "missed":
            left = objects - sum(self.objects[o][1] == label for o in self.missed())
            if objects and not left:
                return 0.0 if mended else 1.0
            objects = left
        mended.sort(key=lambda it: it[:2], reverse=True)
        hits, scores = np.array([it[2] for it in mended], bool), np.array([it[0] for it in mended])
        return average_precision(recall_curve(hits, scores, objects, "x"), 0.1, 0.1)


def flat(table: MatchTable, one: World) -> Slow:
    """What counts of the world, as loops take it: through the metric's own filters, box by box."""
    from evaluation.box_arrays import detection_arrays, places_of, truth_arrays
    from evaluation.metric_filters import filtered

    places = places_of(one[0], one[1])
    truth = filtered(truth_arrays(one[1]), places, table.config)[0]
    said = filtered(detection_arrays(one[0], [one[2][f.token] for f in one[0]]), places, table.config)[0]
    objects = [(f, c, *b[:2]) for f, c, b in zip(truth.frame, truth.class_ids, truth.boxes, strict=True)]
    columns = zip(said.frame, said.class_ids, said.boxes, said.scores, strict=True)
    return Slow(objects, [(f, c, *b[:2], s) for f, c, b, s in columns])


def hard_world(seed: int, *, ties: bool) -> World:
    """Half of the predictions up to four metres beside what they are about."""
    frames, truth, said = world(seed, scenes=2, frames=3, ties=ties)
    random = np.random.default_rng(seed)
    for token, one in said.items():
        moved = random.uniform(-4, 4, (len(one), 9)) * (np.arange(9) < 2) * (random.random((len(one), 1)) < 0.5)
        said[token] = replace(one, boxes_lidar=(one.boxes_lidar + moved).astype(np.float32))
    return frames, truth, said


@pytest.mark.parametrize("seed", range(10))
def test_kinds_counts_and_gains_are_those_of_the_loops(seed: int) -> None:
    one = hard_world(200 + seed, ties=seed % 2 == 0)
    table = table_of(one)
    slow = flat(table, one)
    assert [KINDS[k] for k in table.kind] == [slow.kind[n] for n in range(len(table.scores))]
    targets = [None if t < 0 else t for t in table.target.tolist()]
    assert targets == [slow.target[n] for n in range(len(table.scores))]
    working = working_scores(table)
    found = summarise_errors(table, working)
    counts = Counter(slow.kind.values())
    assert found.counts == {**{kind: counts[kind] for kind in KINDS[1:]}, "missed": len(slow.missed())}
    said = Counter(slow.kind[n] for n in slow.kind if slow.predictions[n][4] >= working[slow.predictions[n][1]])
    missed = slow.missed({label: working[label] for label in range(10)})
    assert found.confident == {**{kind: said[kind] for kind in KINDS[1:]}, "missed": len(missed)}
    base = [slow.ap(DETECTION_CLASSES.index(name), None) for name in table.classes]
    assert found.mean_ap == pytest.approx(np.mean(base), abs=1e-12)
    for column, kind in enumerate(ERROR_KINDS):
        fixed = [slow.ap(DETECTION_CLASSES.index(name), kind) for name in table.classes]
        np.testing.assert_allclose(found.class_gain[:, column], np.subtract(fixed, base), rtol=0, atol=1e-12)
        assert found.gain[kind] == pytest.approx(np.mean(fixed) - np.mean(base), abs=1e-12)
    assert found.counts["class"] and found.counts["localisation"] and found.counts["duplicate"]  # the worlds are hard


def test_the_map_that_errors_are_told_by_is_the_metrics_at_two_metres() -> None:
    one = world(210)
    found = summarise_errors(table_of(one), np.full(10, np.inf))
    metrics = evaluate(*one)
    assert found.mean_ap == pytest.approx(np.mean([row[2.0] for row in metrics.ap.values()]), abs=1e-12)
    assert found.confident["missed"] == metrics.truth_counts.outside_racks  # at no score nothing is found
    assert sum(found.confident[kind] for kind in KINDS[1:]) == 0


def placed(offsets: list[tuple[str, float, float]]) -> tuple[World, MatchTable]:
    """One car ten metres ahead, and predictions of a class at a distance from it, with a score."""
    random = np.random.default_rng(1)
    frame = made_up_frame(random, 0)
    truth = made_up_truth(random, frame, boxes=1, racks=0)
    boxes = truth.boxes_global.copy()
    boxes[0, :2] = frame.ego_to_global.translation[:2] + np.array([10.0, 0.0])
    boxes[0, 3:6], boxes[0, 10:] = (1.9, 4.5, 1.6), 0.0
    truth = replace(truth, boxes_global=boxes, class_ids=np.zeros(1, np.int32), num_lidar_pts=np.ones(1, np.int32))
    from evaluation.boxes import truth_to_canonical

    at = np.repeat(truth_to_canonical(frame, truth)[0], len(offsets), axis=0)
    at[:, 0] += [apart for _, apart, _ in offsets]
    labels = np.array([DETECTION_CLASSES.index(name) for name, _, _ in offsets], np.int32)
    said = Detections(at, np.array([score for *_, score in offsets], np.float32), labels)
    one = ([frame], [truth], {frame.token: said})
    return one, match_table([frame], [truth], detections_of(one[2]))


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ([("car", 0.5, 0.9), ("car", 1.0, 0.8)], ["right", "duplicate"]),
        ([("car", 3.0, 0.9)], ["localisation"]),
        ([("car", 4.5, 0.9)], ["background"]),
        ([("truck", 1.0, 0.9)], ["class"]),
        ([("truck", 3.0, 0.9)], ["background"]),
        ([("car", 1.5, 0.5), ("car", 0.1, 0.9), ("bus", 0.1, 0.95)], ["duplicate", "right", "class"]),
    ],
)
def test_each_kind_by_its_plainest_case(said: list[tuple[str, float, float]], kinds: list[str]) -> None:
    table = placed(said)[1]
    assert [KINDS[k] for k in table.kind] == kinds


def test_an_object_that_an_error_is_about_is_not_missed_and_mending_it_finds_it() -> None:
    for said in ([("car", 3.0, 0.9)], [("truck", 1.0, 0.9)]):
        found = summarise_errors(placed(said)[1], np.zeros(10))
        assert found.counts["missed"] == 0 and found.mean_ap == 0
        kind = "localisation" if said[0][0] == "car" else "class"
        assert found.gain[kind] == pytest.approx(0.1) and found.gain["missed"] == 0  # one class of ten is perfect then


def test_nothing_said_is_all_missed_and_would_be_perfect_without_those() -> None:
    found = summarise_errors(placed([])[1], np.full(10, np.inf))
    assert found.counts == {"duplicate": 0, "localisation": 0, "class": 0, "background": 0, "missed": 1}
    assert found.gain["missed"] == pytest.approx(0.1) and found.gain["background"] == 0
