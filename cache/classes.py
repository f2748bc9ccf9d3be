"""The ten detection classes and eight attributes of nuScenes, in the devkit's order, and how categories map to them.

Ids in every store are positions in these tuples; a store's header repeats the lists so that a reader may re-index.
"""

from __future__ import annotations

from collections.abc import Sequence

from cache.errors import ConfigError

DETECTION_CLASSES: tuple[str, ...] = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)

ATTRIBUTES: tuple[str, ...] = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)

BICYCLE_RACK = "static_object.bicycle_rack"

# nuScenes category -> detection class (detection_cvpr_2019); every other category is not scored.
CATEGORY_TO_CLASS: dict[str, str] = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


def class_id(category: str) -> int:
    """Detection class id of a nuScenes category name, or -1 where the metric does not score it."""
    name = CATEGORY_TO_CLASS.get(category)
    return -1 if name is None else DETECTION_CLASSES.index(name)


def require_detection_classes(found: Sequence[str], where: str) -> None:
    """Raises ConfigError where a store's classes are not nuScenes' ten, of which detectors and the metric speak."""
    if tuple(found) != DETECTION_CLASSES:
        raise ConfigError(
            f"{where}: its classes are {', '.join(found)}; detectors and metric are for "
            f"{', '.join(DETECTION_CLASSES)}: write the frames under these names"
        )
