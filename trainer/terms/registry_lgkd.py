"""BEV-LGKD's terms, and those of other feature distillation works, by the name that recipes use."""

from __future__ import annotations

from trainer.terms import TermKind
from trainer.terms import lgkd_depth as depth
from trainer.terms import lgkd_feature as feature
from trainer.terms import lgkd_response as response

TERMS: dict[str, TermKind] = {
    "lgkd_feature": TermKind(feature.LgkdFeatureOptions, feature.needs_of, feature.LgkdFeature.build),
    "lgkd_depth": TermKind(depth.LgkdDepthOptions, depth.needs_of, depth.LgkdDepth.build),
    "lgkd_response": TermKind(response.LgkdResponseOptions, response.needs_of, response.LgkdResponse.build),
}
