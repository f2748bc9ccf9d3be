"""The spread of a figure over training seeds, and the paired difference of one recipe to another: the ablation table.

One seed shows nothing: two trainings of one recipe differ by more than most methods gain. Runs of the same seed share
initial weights, order and augmentation, so a difference is taken seed by seed, and its mean has Student's t interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache.errors import ConfigError

LEVEL = 0.95


@dataclass(frozen=True)
class SeedResult:
    """One run. group: its recipe, or any label; seed: of its training; figures: name -> value."""

    group: str
    seed: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """n runs: mean, and standard deviation with n - 1 (NaN for one run)."""

    n: int
    mean: float
    std: float


@dataclass(frozen=True)
class PairedGain:
    """Mean of the differences of n seeds that both have, its interval, the two-sided p of no difference, and the
    differences, by seed. NaN for the interval and p with fewer than two seeds, for the mean with none."""

    n: int
    mean: float
    low: float
    high: float
    p: float
    differences: tuple[float, ...] = ()

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class SeedRow:
    """A group's line: spread by figure, and gain over the baseline by figure (None in the baseline's own line)."""

    group: str
    seeds: tuple[int, ...]
    spread: Mapping[str, Spread]
    gain: Mapping[str, PairedGain] | None


def seed_table(
    results: Sequence[SeedResult], baseline: str, keys: Sequence[str], *, level: float = LEVEL, comparisons: int = 1
) -> list[SeedRow]:
    """A row a group, in the order in which they come, against the group `baseline`.

    comparisons: how many differences are looked at together; the intervals are widened so that all of them hold at once
    with `level` (Bonferroni). Raises ConfigError for a baseline that is not there, a seed that is twice in a group, and
    a figure that a run lacks.
    """
    groups: dict[str, dict[int, Mapping[str, float]]] = {}
    for one in results:
        of_group = groups.setdefault(one.group, {})
        if one.seed in of_group:
            raise ConfigError(f"{one.group}: two runs of seed {one.seed}; every seed may count once")
        missing = [key for key in keys if key not in one.figures]
        if missing:
            raise ConfigError(f"{one.group}, seed {one.seed}: no {', '.join(missing)}; it has {', '.join(one.figures)}")
        of_group[one.seed] = one.figures
    if baseline not in groups:
        raise ConfigError(f"no runs of the baseline {baseline!r}; there are {', '.join(groups) or 'none'}")
    out = []
    for name, runs in groups.items():
        values = {key: {seed: float(figures[key]) for seed, figures in runs.items()} for key in keys}
        base = {key: {seed: float(figures[key]) for seed, figures in groups[baseline].items()} for key in keys}
        gain = {key: paired_gain(values[key], base[key], level=level, comparisons=comparisons) for key in keys}
        rows = {key: spread(list(values[key].values())) for key in keys}
        out.append(SeedRow(name, tuple(sorted(runs)), rows, None if name == baseline else gain))
    return out


def spread(values: Sequence[float]) -> Spread:
    """Of one figure's values over seeds."""
    array = np.asarray(values, np.float64)
    std = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return Spread(len(array), float(array.mean()) if len(array) else math.nan, std)


def paired_gain(
    values: Mapping[int, float], base: Mapping[int, float], *, level: float = LEVEL, comparisons: int = 1
) -> PairedGain:
    """values - base over the seeds that both have. Student's t; comparisons: as in `seed_table`."""
    if not 0 < level < 1 or comparisons < 1:
        raise ConfigError(f"paired gain: level {level} and {comparisons} comparisons, expected 0 to 1, and 1 or more")
    both = sorted(values.keys() & base.keys())
    differences = np.array([values[seed] - base[seed] for seed in both], np.float64)
    told = tuple(differences.tolist())
    if len(both) < 2:
        return PairedGain(len(both), told[0] if told else math.nan, math.nan, math.nan, math.nan, told)
    from scipy.stats import t  # half a second to load, and only ablations need it

    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(both))
    half = float(t.ppf(1 - (1 - level) / comparisons / 2, len(both) - 1)) * error
    if error > 0:
        p = float(2 * t.sf(abs(mean) / error, len(both) - 1))
    else:
        p = 1.0 if mean == 0 else 0.0
    return PairedGain(len(both), mean, mean - half, mean + half, min(1.0, p * comparisons), told)
