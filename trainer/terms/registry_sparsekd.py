"""SparseKD's terms, and the baselines of its benchmark, by name; and what changes labels, by name."""

from __future__ import annotations

from trainer.terms import TermKind, box_features, gid_logits, relabel, sparsekd_logits
from trainer.terms import masked_features as masked
from trainer.terms import sparsekd_regression as regression

TERMS: dict[str, TermKind] = {
    "sparsekd_logits": TermKind(
        sparsekd_logits.SparseKdLogitsOptions, sparsekd_logits.needs_of, sparsekd_logits.SparseKdLogits.build
    ),
    "sparsekd_regression": TermKind(
        regression.SparseKdRegressionOptions, regression.needs_of, regression.SparseKdRegression.build
    ),
    "kd_logits": TermKind(
        sparsekd_logits.KdLogitsOptions, sparsekd_logits.needs_of, sparsekd_logits.SparseKdLogits.build
    ),
    "gid_logits": TermKind(gid_logits.GidLogitsOptions, gid_logits.needs_of, gid_logits.GidLogits.build),
    "kd_fitnet": TermKind(masked.FitNetOptions, masked.needs_of, masked.MaskedFeatures.build),
    "fg": TermKind(masked.FgOptions, masked.needs_of, masked.MaskedFeatures.build),
    "mimic": TermKind(box_features.MimicOptions, box_features.needs_of, box_features.BoxFeatures.build),
    "gid_features": TermKind(box_features.GidFeaturesOptions, box_features.needs_of, box_features.BoxFeatures.build),
}

# No TermKind: they are built from options alone, and are called before the detection loss with (batch, said).
RELABELS: dict[str, tuple[type[relabel.LabelDistillationOptions], type[relabel.LabelDistillation]]] = {
    "sparsekd_label": (relabel.LabelDistillationOptions, relabel.LabelDistillation),
}
