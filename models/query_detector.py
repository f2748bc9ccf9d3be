"""What detectors of queries share, whatever they look at: their loss and their boxes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cache.errors import DataError
from cache.frame import Detections
from models.batch_checks import require_judged
from models.detector import Batch, DetectorOutput, LossPart, total_of
from models.heat_head import HeatHead
from models.query_head import QueryHead


class QueryDetector(nn.Module):
    """Base of a `models.detector.Detector` with a query head and perhaps a heatmap beside it."""

    config: dict[str, Any]
    head: QueryHead
    heat: HeatHead | None

    def loss_parts(self, output: DetectorOutput, batch: Batch) -> dict[str, LossPart]:
        if output.queries is None:
            raise DataError("the output holds no queries, which the loss of a detector of queries is of")
        require_judged(batch, len(output.bev), self.config)
        targets = self.head.targets(batch.boxes, batch.labels, output.bev.device)
        parts = self.head.loss_parts(output.queries, targets, batch.labelled)
        if self.heat is not None:
            parts |= self.heat.loss_parts(output.heads[0]["heatmap"], batch.boxes, batch.labels, batch.labelled)
        return parts

    def loss(self, output: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        return total_of(self.loss_parts(output, batch))

    def decode(self, output: DetectorOutput) -> list[Detections]:
        """Without suppression. DataError where the output was put together from several, and so holds no queries."""
        if output.queries is None:
            raise DataError("the output holds no queries: answers of several views or models do not average to boxes")
        return self.head.decode(output.queries)
