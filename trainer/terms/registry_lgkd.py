"""BEV-LGKD's terms, and those of other feature and response distillation works, by the name that recipes use."""

from __future__ import annotations

from trainer.terms import (
    TermKind,
    crkd_response,
    distillbev,
    lgkd_depth,
    lgkd_feature,
    lgkd_response,
    tigbev,
    unidistill,
    unidistill_response,
)

TERMS: dict[str, TermKind] = {
    "lgkd_feature": TermKind(lgkd_feature.LgkdFeatureOptions, lgkd_feature.needs_of, lgkd_feature.LgkdFeature.build),
    "lgkd_depth": TermKind(lgkd_depth.LgkdDepthOptions, lgkd_depth.needs_of, lgkd_depth.LgkdDepth.build),
    "lgkd_response": TermKind(
        lgkd_response.LgkdResponseOptions, lgkd_response.needs_of, lgkd_response.LgkdResponse.build
    ),
    "distillbev": TermKind(distillbev.DistillBevOptions, distillbev.needs_of, distillbev.DistillBev.build),
    "unidistill_feature": TermKind(
        unidistill.UniDistillFeatureOptions, unidistill.needs_of, unidistill.UniDistillFeature.build
    ),
    "unidistill_relation": TermKind(unidistill.PointOptions, unidistill.needs_of, unidistill.UniDistillRelation.build),
    "unidistill_response": TermKind(
        unidistill_response.UniDistillResponseOptions,
        unidistill_response.needs_of,
        unidistill_response.UniDistillResponse.build,
    ),
    "tigbev_inner": TermKind(tigbev.TigBevOptions, tigbev.needs_of, tigbev.TigBevInner.build),
    "crkd_response": TermKind(
        crkd_response.CrkdResponseOptions, crkd_response.needs_of, crkd_response.CrkdResponse.build
    ),
}
