"""What `evaluate` scored, as reports and comparisons take it: frames, truth, predictions and figures of one source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache.frame import Frame, GroundTruth
from cache.store import FrameStore
from evaluation.match_table import BoxesOf
from evaluation.metrics import Metrics
from evaluation.subsets import Subset

Kind = Literal["run", "teacher", "submission"]


@dataclass(frozen=True)
class Scored:
    """What `evaluate` scored. cache: the folder or URL of the stores; frames, truth: as they were scored, in order;
    source: the run's folder, the teacher's name or the submission's path; boxes_of: what it says; weights: of a run,
    last or best."""

    cache: str | Path
    store: FrameStore
    split: str
    subset: Subset
    frames: list[Frame]
    truth: list[GroundTruth]
    kind: Kind
    source: str
    name: str
    metrics: Metrics
    boxes_of: BoxesOf
    weights: str = "last"

    @property
    def rows(self) -> dict[str, int]:
        """Rows of the frame store by token."""
        return {frame.token: self.store.row_of(frame.token) for frame in self.frames}
