"""FitNet on BEV maps: the mean squared difference of the student's adapted map and the teacher's (Romero et al. 2015).

A row of BEVDistill's table. It is `bevdistill_dense` with its mean over channels and the teacher's raw values: over
every cell as in the table (mask = "none", of a store with every cell), or under a selector's weights. Unmasked it made
students worse wherever it was measured (BEVDistill's table; RDD, ICCV 2023, on nuScenes), so masked is the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cache.store import TeacherStore
from models.config import Config
from models.detector import Detector
from trainer.terms.adaptor import AdaptorKind
from trainer.terms.bevdistill_dense import BevDistillDense, BevDistillDenseOptions
from trainer.terms.bevdistill_dense import needs_of as dense_needs_of
from trainer.terms.term import TermNeeds


class FitNetOptions(Config):
    """mask: weights of `selector`, or none; adaptor and standardise: as of `bevdistill_dense`."""

    mask: Literal["selector", "none"] = "selector"
    selector: str = "gaussian"
    adaptor: AdaptorKind = "conv1x1"
    standardise: bool = False

    def dense(self) -> BevDistillDenseOptions:
        """The same as options of the dense term."""
        return BevDistillDenseOptions(
            selector=self.selector,
            mask="gt" if self.mask == "selector" else "none",
            adaptor=self.adaptor,
            standardise=self.standardise,
        )


def build(
    name: str,
    weight: float,
    options: FitNetOptions,
    model: Detector,
    teacher: TeacherStore,
    teacher_rows: Sequence[int],
) -> BevDistillDense:
    """The term for a student and the frames it will be trained on."""
    return BevDistillDense.build(name, weight, options.dense(), model, teacher, teacher_rows)


def needs_of(options: FitNetOptions) -> TermNeeds:
    """What the term reads under these options."""
    return dense_needs_of(options.dense())
