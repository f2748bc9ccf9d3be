"""Of every term, the test that holds its values and gradients to a formula written in loops, in fp64; and a way to see
that this test would notice: a term whose parts are a thousandth off, in value or in gradient alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from models.detector import LossPart
from tests.trainer.terms import (
    test_bevdistill_contrast,
    test_bevdistill_dense_options,
    test_bevdistill_heat,
    test_bevdistill_instance,
    test_bevdistill_sparse,
    test_box_features,
    test_box_terms,
    test_distillbev,
    test_fitnet,
    test_gid_logits,
    test_lgkd_depth,
    test_lgkd_feature,
    test_lgkd_response,
    test_monodistill,
    test_response_terms,
    test_sparsekd_logits,
    test_sparsekd_regression,
    test_uvtr,
)
from tests.trainer.terms.sparsekd_builders import FINE
from trainer.terms import TERMS
from trainer.terms.bevdistill_sparse import BevDistillSparseOptions

Where = Literal["value", "gradient"]
OFF = 1e-3


@dataclasses.dataclass(frozen=True)
class Reference:
    """check: the test; arguments: of it, under which the term has all its parts."""

    check: Callable[..., None]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def _of(module: Any, **arguments: Any) -> Reference:
    return Reference(module.test_values_and_gradients_equal_the_slow_formula, arguments)


REFERENCES = {
    "bevdistill_dense": _of(
        test_bevdistill_dense_options, mask="gt", distance="norm", reduce="mean", normaliser="mass"
    ),
    "bevdistill_sparse": _of(test_bevdistill_sparse, options={"layers": "last", "gamma": 0.2}),
    "bevdistill_contrast": _of(test_bevdistill_contrast, options={}, places_of=test_bevdistill_contrast.at_boxes),
    "bevdistill_instance": _of(test_bevdistill_instance, options={}),
    "bevdistill_heat": _of(test_bevdistill_heat, options={}),
    "fitnet": _of(test_fitnet, options={}, grid=FINE),
    "fg": Reference(test_fitnet.test_fg_equals_the_slow_formula),
    "set2set": Reference(test_bevdistill_sparse.test_set2set_equals_the_slow_formula),
    "monodistill": _of(test_monodistill, options={}),
    "uvtr": _of(test_uvtr, options={}),
    "sparsekd_logits": _of(test_sparsekd_logits, options={}, grid=None),
    "kd_logits": Reference(test_sparsekd_logits.test_kd_logits_equal_the_slow_formula),
    "sparsekd_regression": _of(test_sparsekd_regression, grid=FINE),
    "gid_logits": _of(test_gid_logits, options={}, grid=FINE),
    "mimic": _of(test_box_features, relation=False, options={}, grid=FINE),
    "gid_features": _of(test_box_features, relation=True, options={}, grid=FINE),
    "lgkd_feature": _of(test_lgkd_feature, views="each", counted="reached"),
    "lgkd_depth": _of(test_lgkd_depth, form="sound", t=1.25, where="lidar"),
    "lgkd_response": _of(test_lgkd_response, options={"selector": "random"}),
    "distillbev": _of(test_distillbev, options={}),
    "unidistill_feature": _of(test_box_terms, kind="feature"),
    "unidistill_relation": _of(test_box_terms, kind="relation"),
    "tigbev_inner": _of(test_box_terms, kind="tigbev"),
    "unidistill_response": _of(test_response_terms, kind="unidistill", slow=test_response_terms.slow_unidistill),
    "crkd_response": _of(test_response_terms, kind="crkd", slow=test_response_terms.slow_crkd),
}


@contextmanager
def watched(name: str, off: str | None = None, where: Where = "value") -> Iterator[set[str]]:
    """Gathers the parts (without the term's name) that terms of this name give; those of `off` come out wrong.

    Terms are told by the type of their options, which is each term's own but for set2set's.
    """
    kind = BevDistillSparseOptions if name == "set2set" else TERMS[name].options
    seen: set[str] = set()

    def hook(module: nn.Module, _: Any, parts: Any) -> Any:
        if type(getattr(module, "options", None)) is not kind:
            return None
        own = str(module.name)
        seen.update(part.removeprefix(own) for part in parts)
        if off is None:
            return None
        return {part: wrong(loss, where) if part == own + off else loss for part, loss in parts.items()}

    handle = register_module_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def wrong(part: LossPart, where: Where) -> LossPart:
    n: Tensor = part.numerator
    return dataclasses.replace(part, numerator=n * (1 + OFF) if where == "value" else n + OFF * (n - n.detach()))
