"""Worlds, regimes and rounds: on what and how long every row is trained, and on what it is scored.

A regime says how much is labelled and how long students train; a round says which worlds and seeds. Round 0 is for
choosing: its students are scored on the val split of their own world, as often as one likes. Every other round has a
training world and a reporting world of its own, from seeds that nothing was chosen on, and is looked at once. All is
data: it goes into the digests of results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cache.errors import ConfigError

CHOOSING = 0


@dataclass(frozen=True)
class World:
    """A simulated data set: scenes per split, key frames a scene, LiDAR sweeps before each, unlabelled frames between
    key frames, scale of the stored images, seed."""

    train_scenes: int
    val_scenes: int
    seed: int
    frames: int = 2
    sweeps: int = 4
    between: int = 0
    image_scale: float = 0.125

    @property
    def name(self) -> str:
        """For folders and people."""
        between = f"-between{self.between}" if self.between else ""
        return f"seed{self.seed}-{self.train_scenes}x{self.frames}{between}"


@dataclass(frozen=True)
class Regime:
    """scenes: of the training world; steps: of a student; teacher_steps: of its teacher, camera_steps: of a camera
    teacher; recipe: laid over every student's."""

    name: str
    about: str
    scenes: int
    steps: int
    teacher_steps: int
    camera_steps: int
    between: int = 0
    recipe: tuple[tuple[str, Any], ...] = ()


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("scarce", "300 labelled frames, 32 passes", 150, 2400, 1200, 2400),
        Regime("full", "1,000 labelled frames, 16 passes", 500, 4000, 2500, 6000),
        Regime(
            "unlabelled",
            "300 labelled frames and as many unlabelled ones between them in each epoch, 32 passes",
            150,
            4800,
            1200,
            2400,
            between=2,
            recipe=(("unlabelled_per_labelled", 1.0),),
        ),
    )
}
PRIMARY = "scarce"


@dataclass(frozen=True)
class Place:
    """The world that a round trains in, the one it scores on and the split of that, and its first seed."""

    train: World
    score: World
    split: str
    first_seed: int


@dataclass(frozen=True)
class Scale:
    """How large worlds are beside a regime's training scenes: those for choosing (val of the training world), and the
    reporting world's (its train split, which has more official names)."""

    choosing_scenes: int = 100
    reporting_scenes: int = 220
    frames: int = 2
    sweeps: int = 4


def place_of(regime: Regime, number: int, scale: Scale | None = None) -> Place:
    """Of round `number`, 0 for choosing. Seeds of worlds and trainings of two rounds are never the same."""
    if not 0 <= number < 100:
        raise ConfigError(f"--round {number}: expected 0 (choosing) to 99")
    scale = scale or Scale()
    choosing = scale.choosing_scenes if number == CHOOSING else 0
    train = World(regime.scenes, choosing, 801 + number, scale.frames, scale.sweeps, regime.between)
    if number == CHOOSING:
        return Place(train, train, "val", 0)
    score = replace(train, train_scenes=scale.reporting_scenes, seed=901 + number, between=0)
    return Place(train, score, "train", 1000 * number)
