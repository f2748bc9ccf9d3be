"""The metric of a split whose scenes count several times or not at all, for bootstrap intervals over scenes.

Matches never cross frames, so those of a resampled split are known: only how often each counts changes. Per draw that
leaves one running sum over a class's predictions in order of score and a reading at 101 recalls, between the points
that the copies would have: what scoring copies of the scenes would give, to rounding, tens of times faster. Copies of a
prediction rank side by side: where predictions of one scene have equal scores, whole copies would interleave.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), 13: percentile intervals. Scenes are what is drawn,
since frames of a scene show the same things. They tell how far a figure depends on which scenes were recorded, not how
much it would move with another training seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache.classes import DETECTION_CLASSES
from cache.errors import ConfigError
from evaluation.match_table import MatchTable, require_same_frames
from evaluation.metrics import SUMMARY_KEYS, TP_ERRORS, UNDEFINED_ERRORS
from evaluation.recall_curves import RECALLS

DRAWS = 300
LEVEL = 0.95
LEAST_SCENES = 2


@dataclass(frozen=True)
class Figures:
    """Of one way to count the scenes: summary (7,) in the order of `SUMMARY_KEYS`, NaN where the metric has none;
    ap (C, T) and tp_errors (C, 5), by the table's classes, thresholds and `TP_ERRORS`."""

    summary: np.ndarray
    ap: np.ndarray
    tp_errors: np.ndarray


@dataclass(frozen=True)
class _ClassRanking:
    """One class in order of score, best first. scene, scores (n,); hit (T): positions of the matches at each threshold;
    errors (5, m) of the matches of the TP errors, 0 where not known (5, m); objects (S,) by scene."""

    scene: np.ndarray
    scores: np.ndarray
    hit: list[np.ndarray]
    errors: np.ndarray
    known: np.ndarray
    objects: np.ndarray


class SceneMetric:
    """The metric's figures as a function of how often each scene counts. Sorts once; a call costs some 10 ms at the
    size of nuScenes val."""

    def __init__(self, table: MatchTable) -> None:
        self.table = table
        self._rankings = [_ranking(table, name) for name in table.classes]

    def figures(self, times: np.ndarray) -> Figures:
        """times (S,): how often each scene counts, whole numbers of 0 or more. A class whose objects all lie in scenes
        that do not count has AP 0, as the metric has it for a class without objects."""
        config, at, times = self.table.config, self.table.tp_column, np.asarray(times, np.int64)
        first = round(100 * config.min_recall) + 1
        ap = np.zeros((len(self._rankings), len(config.dist_ths)))
        errors = np.ones((len(self._rankings), len(TP_ERRORS)))
        for row, (name, ranking) in enumerate(zip(self.table.classes, self._rankings, strict=True)):
            counts = times[ranking.scene]
            upto = np.cumsum(counts)
            objects = int(ranking.objects @ times)
            for column, hit in enumerate(ranking.hit):
                curve = _curve(ranking, hit, counts, upto, objects, with_scores=column == at)
                if curve is None:
                    continue
                above = np.maximum(curve[0][first:] - config.min_precision, 0.0)
                ap[row, column] = above.mean() / (1.0 - config.min_precision)
                if column == at:
                    errors[row] = _mean_errors(ranking, hit, counts, curve[1], first)
            undefined = [key in UNDEFINED_ERRORS.get(name, ()) for key in TP_ERRORS]
            errors[row, undefined] = np.nan
        return Figures(self._summary(ap, errors), ap, errors)

    def _summary(self, ap: np.ndarray, errors: np.ndarray) -> np.ndarray:
        known = ~np.isnan(errors)
        counts = known.sum(axis=0)
        means = np.where(known, errors, 0.0).sum(axis=0) / np.where(counts, counts, np.nan)
        mean_ap, weight = ap.mean(axis=1).mean(), self.table.config.mean_ap_weight
        gains = np.maximum(0.0, 1.0 - means[counts > 0])
        nds = (weight * mean_ap + gains.sum()) / (weight + len(gains))
        return np.array([mean_ap, nds, *means])


@dataclass(frozen=True)
class Interval:
    """low and high of the share `LEVEL` of the draws."""

    low: float
    high: float

    @property
    def beside_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Bootstrap:
    """R draws of S scenes. summary (R, 7), class_ap (R, C): figures of each draw; classes: of the columns."""

    scenes: int
    seed: int
    classes: tuple[str, ...]
    summary: np.ndarray
    class_ap: np.ndarray

    @property
    def draws(self) -> int:
        return len(self.summary)

    def of(self, key: str) -> Interval:
        """Of mAP, NDS or a mean error; NaN where the metric has none."""
        return interval(self.summary[:, SUMMARY_KEYS.index(key)])

    def of_class(self, name: str) -> Interval:
        """Of a class's AP, mean over the thresholds."""
        return interval(self.class_ap[:, self.classes.index(name)])

    def minus(self, base: Bootstrap) -> Bootstrap:
        """The differences, draw by draw: both must have been drawn together."""
        if (self.scenes, self.seed, self.draws, self.classes) != (base.scenes, base.seed, base.draws, base.classes):
            raise ConfigError("bootstrap: a paired difference needs the same draws of the same scenes and classes")
        return Bootstrap(
            self.scenes, self.seed, self.classes, self.summary - base.summary, self.class_ap - base.class_ap
        )


def interval(values: np.ndarray) -> Interval:
    """Percentile interval of `LEVEL`; NaN where a value is."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def scene_draws(scenes: int, draws: int, seed: int) -> np.ndarray:
    """(draws, scenes) int64: how often each scene is drawn, with replacement, as many as there are."""
    return np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1.0 / scenes), size=draws)


def bootstrap(metrics: Mapping[str, SceneMetric], *, draws: int = DRAWS, seed: int = 0) -> dict[str, Bootstrap]:
    """Figures of the same draws for every model, so that differences are paired. Empty with fewer than two scenes,
    where nothing can be drawn. Raises DataError where the models were not scored on the same frames, ConfigError for
    fewer than 2 draws."""
    if draws < 2:
        raise ConfigError(f"bootstrap: {draws} draws, expected 2 or more")
    require_same_frames({name: metric.table for name, metric in metrics.items()})
    scenes = len(next(iter(metrics.values())).table.scene_names)
    if scenes < LEAST_SCENES:
        return {}
    times = scene_draws(scenes, draws, seed)
    out = {}
    for name, metric in metrics.items():
        drawn = [metric.figures(one) for one in times]
        summary = np.array([one.summary for one in drawn])
        class_ap = np.array([one.ap.mean(axis=1) for one in drawn])
        out[name] = Bootstrap(scenes, seed, metric.table.classes, summary, class_ap)
    return out


def whole(scenes: int) -> np.ndarray:
    """Every scene once: the split as it is."""
    return np.ones(scenes, np.int64)


def chosen(names: Sequence[str], counted: set[str]) -> np.ndarray:
    """The scenes `counted` once, the others not at all."""
    return np.array([name in counted for name in names], np.int64)


def _ranking(table: MatchTable, name: str) -> _ClassRanking:
    label = DETECTION_CLASSES.index(name)
    rows = np.nonzero(table.class_ids == label)[0]
    rows = rows[np.argsort(table.scores[rows], kind="stable")[::-1]]  # of equal scores the later one first
    hits = table.hits[rows]
    of_class = table.objects.class_ids == label
    objects = np.bincount(table.scene[table.objects.frame[of_class]], minlength=len(table.scene_names))
    errors = table.errors[rows[hits[:, table.tp_column]]].T.copy()
    return _ClassRanking(
        table.scene[table.frame[rows]].astype(np.int64),
        table.scores[rows],
        [np.nonzero(column)[0] for column in hits.T],
        np.nan_to_num(errors, nan=0.0),
        ~np.isnan(errors),
        objects,
    )


def _curve(
    ranking: _ClassRanking, hit: np.ndarray, counts: np.ndarray, upto: np.ndarray, objects: int, with_scores: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Precision and score at the 101 recalls, as np.interp would read them between the points of all copies; None where
    nothing is found. upto: running sum of counts."""
    hit = hit[counts[hit] > 0]
    if not objects or not len(hit):
        return None
    found = np.cumsum(counts[hit])  # matches up to and with each match's last copy
    before = found - counts[hit]
    wrong = (upto[hit] - counts[hit]) - before  # false positives that rank before it
    recalls, total, most = np.linspace(0, 1, RECALLS), float(objects), int(found[-1])
    number = np.floor(recalls * total).astype(np.int64)  # matches whose recall is not above: the last bit decides
    number += (number + 1) / total <= recalls
    number -= number / total > recalls
    precision, score = np.zeros(RECALLS), np.zeros(RECALLS)
    if number[-1] >= most and (end := np.nonzero((number == most) & (recalls == most / total))[0]).size:
        precision[end] = most / upto[-1]
        score[end] = ranking.scores[np.searchsorted(upto, upto[-1])]
    between = np.nonzero(number < most)[0]
    left = number[between]
    nearest = np.searchsorted(found, left, side="right")  # the match that is number left + 1
    share = (recalls[between] - left / total) / ((left + 1) / total - left / total)
    low, high = left / np.maximum(left + wrong[nearest], 1), (left + 1) / (left + 1 + wrong[nearest])
    starts = (left == 0) & (wrong[nearest] == 0)  # the first prediction is right: np.interp's value left of all points
    low[starts] = high[starts]
    precision[between] = (high - low) * share + low
    if with_scores:
        high = ranking.scores[hit[nearest]]
        earlier = np.maximum(upto[hit[nearest]] - counts[hit[nearest]], 1)
        low = ranking.scores[np.searchsorted(upto, earlier)]  # of the prediction that ranks just before it
        same = starts | (left > before[nearest])  # which is a copy of its own
        low[same] = high[same]
        score[between] = (high - low) * share + low
    return precision, score


def _mean_errors(
    ranking: _ClassRanking, hit: np.ndarray, counts: np.ndarray, curve_scores: np.ndarray, first: int
) -> np.ndarray:
    """(5,) means over the recalls reached of each error's running mean, read off at the curve's scores."""
    reached = np.nonzero(curve_scores)[0]
    last = int(reached[-1]) if len(reached) else 0
    if last < first:
        return np.ones(len(TP_ERRORS))
    drawn = np.nonzero(counts[hit])[0]
    times, scores = counts[hit[drawn]], ranking.scores[hit[drawn]]
    errors, known = ranking.errors[:, drawn], ranking.known[:, drawn]
    sums, numbers = np.cumsum(errors * times, axis=1), np.cumsum(known * times, axis=1)

    def mean_to(match: np.ndarray, copies_after: np.ndarray) -> np.ndarray:
        """(5, Q) running means up to a copy of each match asked for: all of its copies but so many."""
        return _ratio(
            sums[:, match] - errors[:, match] * copies_after, numbers[:, match] - known[:, match] * copies_after
        )

    asked = curve_scores[first : last + 1]
    # np.interp over the copies in rising score: from the first copy of the match below to the last of the one above
    lower = np.searchsorted(-scores, -asked, side="left")
    below = lower == len(scores)
    lower = np.minimum(lower, len(scores) - 1)
    upper = np.maximum(lower - 1, 0)
    gap = scores[upper] - scores[lower]
    share = np.divide(asked - scores[lower], gap, out=np.zeros(len(asked)), where=gap > 0)
    low, high = mean_to(lower, times[lower] - 1), mean_to(upper, np.zeros(len(upper), np.int64))
    read = (high - low) * share + low
    read = np.where(lower == 0, low, read)
    read = np.where(below, mean_to(lower, np.zeros(len(lower), np.int64)), read)
    return np.where(numbers[:, -1] > 0, read.mean(axis=1), 1.0)  # 1 for an error that no match has


def _ratio(sums: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Running means, 0 before the first known value."""
    return np.divide(sums, numbers, out=np.zeros_like(sums), where=numbers > 0)
