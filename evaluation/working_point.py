"""A score to act on, by class, and what a model says at it of every frame: a report's view of a detector in use.

The metric counts every prediction at every score. Someone who uses a detector chooses one score; here that is, by
class, the one with the best F1 at the threshold of the TP errors (2 m) over the whole split, so it flatters a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.classes import DETECTION_CLASSES
from evaluation.match_table import MatchTable

WORTH_SHOWING = 5  # boxes, of truth and of the model, below which a frame's F1 says little


def working_scores(table: MatchTable) -> np.ndarray:
    """(10,) float64 by class id: the score with the best F1, the higher of equals; inf where nothing is found."""
    out = np.full(len(DETECTION_CLASSES), np.inf)
    for label in range(len(DETECTION_CLASSES)):
        rows = np.nonzero(table.class_ids == label)[0]
        objects = int((table.objects.class_ids == label).sum())
        rows = rows[np.argsort(table.scores[rows], kind="stable")[::-1]]
        hits, scores = table.taken[rows] >= 0, table.scores[rows]
        if not hits.any():
            continue
        said = np.arange(1, len(rows) + 1)
        f1 = 2 * np.cumsum(hits) / (said + objects)
        last_of_its_score = np.concatenate([scores[1:] < scores[:-1], [True]])  # a score takes all that have it
        out[label] = scores[np.argmax(np.where(last_of_its_score, f1, -1.0))]
    return out


@dataclass(frozen=True)
class FrameCounts:
    """By frame (F,): right and wrong predictions that reach their class's working score, and missed objects."""

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """(F,) float64; 1 where there is nothing to find and nothing said."""
        of = 2 * self.right + self.wrong + self.missed
        return np.where(of > 0, 2 * self.right / np.maximum(of, 1), 1.0)


def frame_counts(table: MatchTable, working: np.ndarray) -> FrameCounts:
    """What the model says at its working scores, frame by frame. Matches of better-scored predictions do not depend on
    the others, so they stand."""
    said = table.scores >= working[table.class_ids]
    frames, hit = len(table.tokens), table.taken >= 0
    right = np.bincount(table.frame[said & hit], minlength=frames)
    wrong = np.bincount(table.frame[said & ~hit], minlength=frames)
    return FrameCounts(right, wrong, np.bincount(table.objects.frame, minlength=frames) - right)


def found_at(table: MatchTable, working: np.ndarray) -> np.ndarray:
    """(G,) bool: objects that are found by a prediction which reaches its class's working score."""
    out = np.zeros(len(table.objects), bool)
    out[table.taken[(table.scores >= working[table.class_ids]) & (table.taken >= 0)]] = True
    return out


def worst_frames(table: MatchTable, counts: FrameCounts, most: int) -> list[int]:
    """Frames of the lowest F1, of equals those with more mistakes, one a scene: frames of a scene fail alike. Frames
    with fewer than five boxes are left out, unless there are no others."""
    boxes = counts.right + counts.wrong + counts.missed
    order = np.lexsort((-(counts.wrong + counts.missed), counts.f1))
    ranked = [*(n for n in order if boxes[n] >= WORTH_SHOWING)] or [*(n for n in order if boxes[n])]
    of_scene: dict[int, int] = {}
    for frame in ranked:
        of_scene.setdefault(int(table.scene[frame]), int(frame))
    return list(of_scene.values())[:most]


def typical_frame(table: MatchTable, counts: FrameCounts) -> int | None:
    """The frame of the median F1 among those that could be the worst."""
    boxes = counts.right + counts.wrong + counts.missed
    frames = np.nonzero(boxes >= WORTH_SHOWING)[0]
    if not len(frames):
        return None
    return int(frames[np.argsort(counts.f1[frames], kind="stable")[len(frames) // 2]])
