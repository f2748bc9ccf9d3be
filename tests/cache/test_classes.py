"""Classes and attributes are the devkit's, in its order."""

from __future__ import annotations

import pytest

from cache.classes import ATTRIBUTES, BICYCLE_RACK, CATEGORY_TO_CLASS, DETECTION_CLASSES, class_id


def test_names_and_order_are_the_devkits() -> None:
    constants = pytest.importorskip("nuscenes.eval.detection.constants")
    assert list(DETECTION_CLASSES) == constants.DETECTION_NAMES
    assert list(ATTRIBUTES) == constants.ATTRIBUTE_NAMES


def test_categories_map_as_the_devkit_maps_them() -> None:
    utils = pytest.importorskip("nuscenes.eval.detection.utils")
    others = [
        "animal",
        "human.pedestrian.stroller",
        "vehicle.emergency.police",
        "static_object.bicycle_rack",
        "vehicle.ego",
    ]
    for category in [*CATEGORY_TO_CLASS, *others]:
        name = utils.category_to_detection_name(category)
        assert class_id(category) == (-1 if name is None else DETECTION_CLASSES.index(name))


def test_every_class_is_reached_and_racks_are_not_scored() -> None:
    assert {class_id(category) for category in CATEGORY_TO_CLASS} == set(range(10))
    assert class_id(BICYCLE_RACK) == class_id("no.such.category") == -1
