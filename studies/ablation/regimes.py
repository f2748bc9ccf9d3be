"""Worlds, regimes and rounds: on what and how long every row is trained, and on what it is scored.

A regime says how much is labelled and how long students train; a round says which worlds and seeds. Round 0 is for
choosing: its students are scored on the val split of their own world, as often as one likes. Every other round has a
training world and a reporting world of its own, from seeds that nothing was chosen on, and is looked at once. All is
data: it goes into the digests of results.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cache.errors import ConfigError

CHOOSING = 0
ROUNDS, SEEDS_OF_A_ROUND = 100, 1000


@dataclass(frozen=True)
class World:
    """A simulated data set: scenes per split, key frames a scene, LiDAR sweeps before each, scale of the stored images,
    seed; labelled_scenes: how many of the training scenes keep their annotations (0: all)."""

    train_scenes: int
    val_scenes: int
    seed: int
    frames: int = 2
    sweeps: int = 4
    image_scale: float = 0.125
    labelled_scenes: int = 0

    @property
    def name(self) -> str:
        """For folders and people."""
        labelled = f"-labelled{self.labelled_scenes}" if self.labelled_scenes else ""
        return f"seed{self.seed}-{self.train_scenes}x{self.frames}{labelled}"

    def written(self) -> dict[str, Any]:
        """As digests have it: worlds of before, which told the frames between key frames as well, keep their names, and
        results from them their keys."""
        values = asdict(self) | {"between": 0}
        if not self.labelled_scenes:
            del values["labelled_scenes"]
        return values


@dataclass(frozen=True)
class Regime:
    """scenes: annotated ones of the training world, unlabelled_scenes: others beside them; steps: of a student;
    teacher_steps: of its teacher, camera_steps: of a camera teacher; recipe: laid over every student's."""

    name: str
    about: str
    scenes: int
    steps: int
    teacher_steps: int
    camera_steps: int
    unlabelled_scenes: int = 0
    recipe: tuple[tuple[str, Any], ...] = ()


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("scarce", "300 labelled frames, 32 passes", 150, 2400, 3000, 2400),
        Regime("full", "1,000 labelled frames, 16 passes", 500, 4000, 6000, 6000),
        Regime(
            "unlabelled",
            "300 labelled frames, and 600 unlabelled ones of other scenes, half of which an epoch has; 21 passes",
            150,
            3200,
            3000,
            2400,
            unlabelled_scenes=300,
            recipe=(("unlabelled_per_labelled", 1.0),),
        ),
        Regime(
            "unlabelled-long",
            "as unlabelled, half as long again; 32 passes",
            150,
            4800,
            3000,
            2400,
            unlabelled_scenes=300,
            recipe=(("unlabelled_per_labelled", 1.0),),
        ),
    )
}
PRIMARY = "unlabelled"


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


def first_seed_of(number: int) -> int:
    """Of the trainings of round `number`: 0, 1000, 2000 and so on."""
    return SEEDS_OF_A_ROUND * number


def place_of(regime: Regime, number: int, scale: Scale | None = None) -> Place:
    """Of round `number`, 0 for choosing. Seeds of worlds and trainings of two rounds are never the same."""
    if not 0 <= number < ROUNDS:
        raise ConfigError(f"--round {number}: expected 0 (choosing) to {ROUNDS - 1}")
    scale = scale or Scale()
    choosing = scale.choosing_scenes if number == CHOOSING else 0
    labelled = regime.scenes if regime.unlabelled_scenes else 0
    scenes = regime.scenes + regime.unlabelled_scenes
    train = World(scenes, choosing, 801 + number, scale.frames, scale.sweeps, labelled_scenes=labelled)
    if number == CHOOSING:
        return Place(train, train, "val", first_seed_of(number))
    score = replace(train, train_scenes=scale.reporting_scenes, seed=901 + number, labelled_scenes=0)
    return Place(train, score, "train", first_seed_of(number))
