"""Every distillation term by the name that recipes use, and what changes labels, likewise."""

from __future__ import annotations

from trainer.terms import (
    bevdistill_contrast,
    bevdistill_dense,
    bevdistill_heat,
    bevdistill_instance,
    bevdistill_sparse,
    box_features,
    crkd_response,
    distillbev,
    fitnet,
    gid_logits,
    lgkd_depth,
    lgkd_feature,
    lgkd_response,
    monodistill,
    relabel,
    response_term,
    set2set,
    sparsekd_logits,
    sparsekd_regression,
    tigbev,
    unidistill,
    unidistill_response,
    uvtr,
)
from trainer.terms.term import RelabelKind, TermKind

TERMS: dict[str, TermKind] = {
    # BEVDistill, and the other rows of its comparison
    "bevdistill_dense": TermKind(
        bevdistill_dense.BevDistillDenseOptions, bevdistill_dense.needs_of, bevdistill_dense.BevDistillDense.build
    ),
    "bevdistill_sparse": TermKind(
        bevdistill_sparse.BevDistillSparseOptions, bevdistill_sparse.needs_of, bevdistill_sparse.BevDistillSparse.build
    ),
    "bevdistill_contrast": TermKind(
        bevdistill_contrast.BevDistillContrastOptions,
        bevdistill_contrast.needs_of,
        bevdistill_contrast.BevDistillContrast.build,
    ),
    "bevdistill_instance": TermKind(
        bevdistill_instance.BevDistillInstanceOptions,
        bevdistill_instance.needs_of,
        bevdistill_instance.BevDistillInstance.build,
    ),
    "bevdistill_heat": TermKind(
        bevdistill_heat.BevDistillHeatOptions, bevdistill_heat.needs_of, bevdistill_heat.BevDistillHeat.build
    ),
    "fitnet": TermKind(fitnet.FitNetOptions, fitnet.needs_of, fitnet.FitNet.build),
    "set2set": TermKind(set2set.Set2SetOptions, set2set.needs_of, set2set.build),
    "monodistill": TermKind(monodistill.MonoDistillOptions, monodistill.needs_of, monodistill.MonoDistill.build),
    "uvtr": TermKind(uvtr.UvtrOptions, uvtr.needs_of, uvtr.Uvtr.build),
    # SparseKD, and the baselines of its benchmark
    "sparsekd_logits": TermKind(
        sparsekd_logits.SparseKdLogitsOptions, sparsekd_logits.needs_of, sparsekd_logits.SparseKdLogits.build
    ),
    "sparsekd_regression": TermKind(
        sparsekd_regression.SparseKdRegressionOptions,
        sparsekd_regression.needs_of,
        sparsekd_regression.SparseKdRegression.build,
    ),
    "kd_logits": TermKind(
        sparsekd_logits.KdLogitsOptions, sparsekd_logits.needs_of, sparsekd_logits.SparseKdLogits.build
    ),
    "gid_logits": TermKind(gid_logits.GidLogitsOptions, gid_logits.needs_of, gid_logits.GidLogits.build),
    "fg": TermKind(fitnet.FgOptions, fitnet.needs_of, fitnet.FitNet.build),
    "mimic": TermKind(box_features.MimicOptions, box_features.needs_of, box_features.BoxFeatures.build),
    "gid_features": TermKind(box_features.GidFeaturesOptions, box_features.needs_of, box_features.BoxFeatures.build),
    # BEV-LGKD, and other works on features and responses
    "lgkd_feature": TermKind(lgkd_feature.LgkdFeatureOptions, lgkd_feature.needs_of, lgkd_feature.LgkdFeature.build),
    "lgkd_depth": TermKind(lgkd_depth.LgkdDepthOptions, lgkd_depth.needs_of, lgkd_depth.LgkdDepth.build),
    "lgkd_response": TermKind(
        lgkd_response.LgkdResponseOptions, response_term.needs_of, lgkd_response.LgkdResponse.build
    ),
    "distillbev": TermKind(distillbev.DistillBevOptions, distillbev.needs_of, distillbev.DistillBev.build),
    "unidistill_feature": TermKind(
        unidistill.UniDistillFeatureOptions, unidistill.needs_of, unidistill.UniDistillFeature.build
    ),
    "unidistill_relation": TermKind(unidistill.PointOptions, unidistill.needs_of, unidistill.UniDistillRelation.build),
    "unidistill_response": TermKind(
        unidistill_response.UniDistillResponseOptions,
        response_term.needs_of,
        unidistill_response.UniDistillResponse.build,
    ),
    "tigbev_inner": TermKind(tigbev.TigBevOptions, tigbev.needs_of, tigbev.TigBevInner.build),
    "crkd_response": TermKind(
        crkd_response.CrkdResponseOptions, response_term.needs_of, crkd_response.CrkdResponse.build
    ),
}

# Called before the detection loss, whose labels they change.
RELABELS: dict[str, RelabelKind] = {
    "sparsekd_label": RelabelKind(relabel.LabelDistillationOptions, relabel.needs_of, relabel.LabelDistillation),
}
