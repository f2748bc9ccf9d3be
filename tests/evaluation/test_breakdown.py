"""Working scores, worst frames and parts of a split, each against the obvious way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cache.classes import DETECTION_CLASSES
from cache.frame import Detections
from cache.plan import Scene
from evaluation.array_metric import evaluate
from evaluation.breakdown import DISTANCES, breakdown
from evaluation.match_table import detections_of
from evaluation.resampling import SceneMetric
from evaluation.subsets import Subset
from evaluation.working_point import frame_counts, typical_frame, working_scores, worst_frames
from tests.evaluation.test_resampling import World, table_of, world


@pytest.mark.parametrize("seed", range(6))
def test_the_working_score_has_the_best_f1_of_all_scores(seed: int) -> None:
    table = table_of(world(300 + seed, ties=seed % 2 == 0))
    found = working_scores(table)
    for label in range(10):
        mine, objects = table.class_ids == label, int((table.objects.class_ids == label).sum())
        best: list[tuple[float, float]] = []
        for score in np.unique(table.scores[mine]):
            said = mine & (table.scores >= score)
            best.append((2 * int((table.taken[said] >= 0).sum()) / (int(said.sum()) + objects), float(score)))
        f1, score = max(best, default=(0.0, math.inf))
        assert found[label] == (score if f1 else math.inf)


def test_frames_are_counted_at_the_working_scores_and_the_worst_come_first() -> None:
    one = world(310, scenes=4)
    table = table_of(one)
    working = working_scores(table)
    counts = frame_counts(table, working)
    for place, frame in enumerate(one[0]):
        kept = one[2][frame.token]
        kept = Detections(*(x[kept.scores.astype(np.float64) >= working[kept.labels]] for x in vars(kept).values()))
        alone = table_of(([frame], [one[1][place]], {frame.token: kept}))
        right = int((alone.taken >= 0).sum())
        expected = (right, len(alone.taken) - right, len(alone.objects) - right)
        assert (counts.right[place], counts.wrong[place], counts.missed[place]) == expected
    worst = worst_frames(table, counts, 3)
    assert len({int(table.scene[frame]) for frame in worst}) == len(worst) == 3
    boxes = counts.right + counts.wrong + counts.missed
    assert counts.f1[worst[0]] == counts.f1[boxes >= 5].min()
    assert counts.f1[worst].tolist() == sorted(counts.f1[worst])
    middle = typical_frame(table, counts)
    assert middle is not None and (counts.f1[boxes >= 5] <= counts.f1[middle]).mean() >= 0.5


def test_frames_without_boxes_are_no_worst_frames() -> None:
    frames, truth, said = world(311, scenes=2, frames=1)
    none = Detections.empty()
    table = table_of(
        (frames, [replace(t, num_lidar_pts=t.num_lidar_pts * 0) for t in truth], dict.fromkeys(said, none))
    )
    counts = frame_counts(table, working_scores(table))
    assert counts.f1.tolist() == [1.0, 1.0] and worst_frames(table, counts, 3) == []
    assert typical_frame(table, counts) is None


def parts_of(one: World, scenes: tuple[Scene, ...] = (), subset: Subset | None = None) -> dict[tuple[str, str], object]:
    table = table_of(one, subset)
    working = working_scores(table)
    found = breakdown(table, SceneMetric(table), working, one[0], one[1], detections_of(one[2]), scenes)
    return {(part.group, part.name): part for part in found}


def test_distance_bins_are_scored_as_the_subset_is_over_classes_that_have_objects_there() -> None:
    one = world(320)
    found = parts_of(one)
    names = [name for group, name in found if group == "distance"]
    assert names == ["0 to 10 m", "10 to 20 m", "20 to 30 m", "30 to 40 m", "40 m and more"]
    total = 0
    for (low, high), name in zip(DISTANCES, names, strict=True):
        part = found["distance", name]
        metrics = evaluate(*one, subset=Subset(distance=(low, high)))
        table = table_of(one, Subset(distance=(low, high)))
        present = [DETECTION_CLASSES[label] for label in np.unique(table.objects.class_ids)]
        assert part.classes == len(present)
        assert part.mean_ap == pytest.approx(np.mean([metrics.class_ap(name) for name in present]), abs=1e-12)
        total += part.objects
    assert total == evaluate(*one).truth_counts.outside_racks


def test_scenes_are_told_apart_by_what_is_said_of_them() -> None:
    one = world(321, scenes=4)
    said = ("Night, rain", "Rain, cars", "Parking lot", "Night")
    scenes = tuple(Scene(f"{n:032x}", f"scene-{n:04d}", "val", text) for n, text in enumerate(said))
    found = parts_of(one, scenes)
    expected = {"“night” in the description: 2 scenes": {0, 3}, "“rain” in the description: 2 scenes": {0, 1}}
    expected["neither: 1 scenes"] = {2}
    assert {name for group, name in found if group == "scenes"} == set(expected)
    for name, numbers in expected.items():
        kept = [n for n in range(len(one[0])) if n // 4 in numbers]
        some = [one[0][n] for n in kept]
        part = (some, [one[1][n] for n in kept], {frame.token: one[2][frame.token] for frame in some})
        metrics, table = evaluate(*part), table_of(part)
        present = [DETECTION_CLASSES[label] for label in np.unique(table.objects.class_ids)]
        expected_ap = np.mean([metrics.class_ap(name) for name in present])
        assert found["scenes", name].mean_ap == pytest.approx(expected_ap, abs=1e-12)
    undescribed = tuple(replace(scene, description="") for scene in scenes)
    assert not any(group == "scenes" for group, _ in parts_of(one, undescribed))


def test_sizes_and_visibility_count_objects_and_never_make_a_map_of_them() -> None:
    frames, truth, said = world(322)
    random = np.random.default_rng(1)
    truth = [replace(t, visibility=random.integers(0, 5, len(t)).astype(np.int32)) for t in truth]
    table = table_of((frames, truth, said))
    found = parts_of((frames, truth, said))
    for level, name in ((1, "0 to 40 % visible"), (4, "80 to 100 %"), (0, "unknown")):
        of = table.objects.visibility == level
        part = found["visibility", name]
        assert part.objects == of.sum() and math.isnan(part.mean_ap)
        assert part.found == table.objects.found[of, 2].mean()
        taken = [n for n in range(len(table.taken)) if table.taken[n] >= 0 and of[table.taken[n]]]
        np.testing.assert_allclose(part.errors, np.nanmean(table.errors[taken], axis=0))
    sizes = [part for (group, _), part in found.items() if group == "longer side"]
    assert sum(part.objects for part in sizes) == len(table.objects)
    assert all(part.found_working <= part.found for part in found.values())


def test_a_part_of_the_split_is_broken_down_within_itself() -> None:
    found = parts_of(world(323), subset=Subset(distance=(15.0, 25.0)))
    assert [name for group, name in found if group == "distance"] == ["10 to 20 m", "20 to 30 m"]
