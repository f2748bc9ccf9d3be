"""BEVDistill's terms and the other rows of its comparison, by name."""

from __future__ import annotations

from trainer.terms import (
    TermKind,
    bevdistill_contrast,
    bevdistill_heat,
    bevdistill_instance,
    bevdistill_sparse,
    fitnet,
    monodistill,
    set2set,
    uvtr,
)

BEVDISTILL_TERMS: dict[str, TermKind] = {
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
    "fitnet": TermKind(fitnet.FitNetOptions, fitnet.needs_of, fitnet.build),
    "set2set": TermKind(set2set.Set2SetOptions, set2set.needs_of, set2set.build),
    "monodistill": TermKind(monodistill.MonoDistillOptions, monodistill.needs_of, monodistill.MonoDistill.build),
    "uvtr": TermKind(uvtr.UvtrOptions, uvtr.needs_of, uvtr.Uvtr.build),
}
