"""Parts of a split as filters of the metric: scenes, what their descriptions say, distance, classes, visibility.

A subset is what the devkit would be given if boxes and samples outside it had never been there: predictions are cut by
distance and class as objects are; by visibility only objects are, since a prediction has none, so predictions of the
others then count as wrong (compare rows of it between models, not with the whole). NDS over classes that share an
undefined error leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from cache.plan import Scene

CLASS_GROUPS = {
    "vehicles": ("car", "truck", "bus", "trailer", "construction_vehicle"),
    "cycles": ("motorcycle", "bicycle"),
    "people": ("pedestrian",),
    "static": ("traffic_cone", "barrier"),
}
_KEYS = "scenes=NAME+NAME, description=WORD (or !WORD for scenes without it), distance=NEAR-FAR, classes=NAME+NAME, "
_KEYS += "visibility=3+4"


@dataclass(frozen=True)
class Subset:
    """What counts; None is everything. scenes: their names; description: words that a scene's description must have, or
    not have where they begin with "!", any case; distance: from, to (m) from the ego vehicle, from <= d < to; classes;
    visibility: levels 1..4 of the objects, 0 for unknown."""

    scenes: tuple[str, ...] | None = None
    description: tuple[str, ...] = ()
    distance: tuple[float, float] | None = None
    classes: tuple[str, ...] | None = None
    visibility: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.distance is not None and not 0 <= self.distance[0] < self.distance[1]:
            raise ConfigError(f"subset: distance {self.distance}, expected 0 <= from < to, in metres")
        unknown = set(self.classes or ()) - set(DETECTION_CLASSES)
        if unknown or self.classes == ():
            raise ConfigError(f"subset: classes {', '.join(sorted(unknown))}; expected {', '.join(DETECTION_CLASSES)}")
        if self.visibility is not None and not set(self.visibility) <= {0, 1, 2, 3, 4}:
            raise ConfigError(f"subset: visibility {self.visibility}, expected 1 to 4, or 0 for unknown")

    @property
    def chooses_boxes(self) -> bool:
        """Whether boxes inside a frame are left out, not only frames."""
        return not (self.distance is None and self.classes is None and self.visibility is None)

    def has_class(self, name: str) -> bool:
        return self.classes is None or name in self.classes

    def has_scene(self, scene: Scene) -> bool:
        """Whether the frames of a scene count."""
        said = scene.description.lower()
        words = all((word.lstrip("!").lower() in said) != word.startswith("!") for word in self.description)
        return words and (self.scenes is None or scene.name in self.scenes)

    def rows(self, rows: Sequence[int], scene_of: Sequence[str], scenes: Iterable[Scene]) -> list[int]:
        """Those of a store's `rows` that count; scene_of: the scene's name of each. ConfigError where there is none, or
        where a named scene is not there."""
        known = list(scenes)
        absent = set(self.scenes or ()) - {scene.name for scene in known}
        if absent:
            raise ConfigError(f"subset: no scene {', '.join(sorted(absent))} in the frame store")
        counted = {scene.name for scene in known if self.has_scene(scene)}
        kept = [row for row, scene in zip(rows, scene_of, strict=True) if scene in counted]
        if not kept:
            raise ConfigError(f"subset {self}: none of the {len(rows)} frames is in it; choose other scenes or words")
        return kept

    def boxes(self, distance: np.ndarray, class_ids: np.ndarray, visibility: np.ndarray | None) -> np.ndarray:
        """(N,) bool of boxes at these distances (m) from the ego vehicle; visibility None: predictions, kept."""
        keep = np.ones(len(distance), bool)
        if self.distance is not None:
            keep &= (distance >= self.distance[0]) & (distance < self.distance[1])
        if self.classes is not None:
            keep &= np.isin(class_ids, [DETECTION_CLASSES.index(name) for name in self.classes])
        if self.visibility is not None and visibility is not None:
            keep &= np.isin(visibility, self.visibility)
        return keep

    @property
    def options(self) -> list[str]:
        """As `parse_subset` takes it."""
        parts = [f"scenes={'+'.join(self.scenes)}"] if self.scenes is not None else []
        parts += [f"description={word}" for word in self.description]
        if self.distance is not None:
            parts.append("distance=" + "-".join(f"{value:g}" for value in self.distance))
        if self.classes is not None:
            parts.append(f"classes={'+'.join(self.classes)}")
        if self.visibility is not None:
            parts.append(f"visibility={'+'.join(map(str, self.visibility))}")
        return parts

    def __str__(self) -> str:
        """As on the command line; "everything" where nothing is left out."""
        return " ".join(self.options) or "everything"


EVERYTHING = Subset()


def parse_subset(texts: Sequence[str]) -> Subset:
    """`["description=night", "distance=0-20", "classes=vehicles+bicycle"]` -> a Subset; ConfigError with what there is.

    Classes may be groups: vehicles, cycles, people, static."""
    out = EVERYTHING
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(f"subset {text!r}: expected KEY=VALUE of {_KEYS}")
        parts = tuple(part for part in value.split("+") if part)
        if not parts or value == "!":
            raise ConfigError(f"subset {text!r}: names nothing; expected KEY=VALUE of {_KEYS}")
        if key == "description":
            out = replace(out, description=(*out.description, value))
            continue
        if key in ("scenes", "distance", "classes", "visibility") and getattr(out, key) is not None:
            raise ConfigError(f"subset: {key} is given twice; join its values with +")
        out = replace(out, **{key: _value(key, value, parts, text)})
    return out


def _value(key: str, value: str, parts: tuple[str, ...], text: str) -> Any:
    try:
        if key == "scenes":
            return parts
        if key == "classes":
            return tuple(name for part in parts for name in CLASS_GROUPS.get(part, (part,)))
        if key == "visibility":
            return tuple(int(part) for part in parts)
        if key == "distance":
            near, _, far = value.partition("-")
            return float(near), float(far) if far else math.inf
    except ValueError:
        raise ConfigError(f"subset {text!r}: not numbers; expected one of {_KEYS}") from None
    raise ConfigError(f"subset: there is no {key!r}; expected one of {_KEYS}")
