"""Subsets as text and as filters of scenes and boxes; that they score as the devkit does is in test_array_metric."""

from __future__ import annotations

import numpy as np
import pytest

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from cache.plan import Scene
from evaluation.subsets import EVERYTHING, Subset, parse_subset

SCENES = (
    Scene("a" * 32, "scene-0001", "val", "Night, big street, rain"),
    Scene("b" * 32, "scene-0002", "val", "Rain, parked cars"),
    Scene("c" * 32, "scene-0003", "val", "Parking lot"),
)


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        ([], [0, 1, 2, 3]),
        (["description=night"], [0, 3]),
        (["description=!night"], [1, 2]),
        (["description=rain", "description=!night"], [1]),
        (["scenes=scene-0002+scene-0003"], [1, 2]),
        (["scenes=scene-0002+scene-0003", "description=RAIN"], [1]),
    ],
)
def test_scenes_are_chosen_by_name_and_by_what_is_said_of_them(texts: list[str], rows: list[int]) -> None:
    names = ["scene-0001", "scene-0002", "scene-0003", "scene-0001"]
    assert parse_subset(texts).rows(range(4), names, SCENES) == rows


def test_a_subset_survives_its_own_text() -> None:
    texts = ["scenes=a+b", "description=night", "description=!rain", "distance=5-20.5", "visibility=0+4"]
    subset = parse_subset([*texts, "classes=cycles+car"])
    assert subset.classes == ("motorcycle", "bicycle", "car") and subset.distance == (5.0, 20.5)
    assert parse_subset(str(subset).split()) == subset
    assert str(EVERYTHING) == "everything" and parse_subset([]) == EVERYTHING
    assert parse_subset(["distance=20-"]).distance == (20.0, np.inf)


def test_the_options_of_a_subset_are_read_back_words_with_spaces_too() -> None:
    subset = parse_subset(["description=heavy rain", "description=!night", "distance=20-", "classes=car", "scenes=a+b"])
    assert "description=heavy rain" in subset.options and parse_subset(subset.options) == subset


def test_boxes_are_chosen_by_distance_class_and_visibility_and_predictions_have_none() -> None:
    subset = Subset(distance=(10.0, 20.0), classes=("car", "bus"), visibility=(3, 4))
    distance, labels = np.array([9.9, 10.0, 19.9, 20.0, 15.0, 15.0]), np.array([0, 0, 2, 0, 1, 0])
    assert DETECTION_CLASSES[2] == "bus"
    truth = subset.boxes(distance, labels, np.array([4, 4, 3, 4, 4, 1]))
    assert truth.tolist() == [False, True, True, False, False, False]
    assert subset.boxes(distance, labels, None).tolist() == [False, True, True, False, False, True]


def test_the_same_key_twice_is_refused_but_for_descriptions() -> None:
    with pytest.raises(ConfigError, match=r"distance is given twice; join its values"):
        parse_subset(["distance=0-5", "distance=5-9"])
