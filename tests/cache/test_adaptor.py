"""The adaptor in a header: what goes in comes out to the bit, and nothing else does."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from cache.adaptor import Adaptor
from cache.errors import CorruptError


def an_adaptor() -> Adaptor:
    rng = np.random.default_rng(1)
    return Adaptor(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32))


def test_it_comes_back_through_json_to_the_bit() -> None:
    adaptor = an_adaptor()
    again = Adaptor.from_header(json.loads(json.dumps(adaptor.header())), "h")
    assert again.padding == 1 and set(again.arrays()) == {"weight", "bias"}
    for name, values in adaptor.arrays().items():
        assert again.arrays()[name].tobytes() == values.tobytes() and again.arrays()[name].dtype == np.float32


def _bias_of_nan() -> dict[str, Any]:
    adaptor = an_adaptor()
    return Adaptor(adaptor.weight, adaptor.bias * np.float32(np.nan)).header()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "linear"}, "kind 'linear', this version reads conv-relu"),
        ({"kernel": 2}, "an odd kernel"),
        ({"kernel": 3.0}, "sizes"),
        ({"in_channels": 0}, "sizes"),
        ({"out_channels": 90000, "in_channels": 90000}, "more than"),
        ({"weight": "AAAA"}, "the sha256 of its values differs"),
        ({"bias": "not base64!"}, "base64|digits|character"),
        ({"bias": base64.b64encode(bytes(16)).decode()}, "the sha256 of its values differs"),
        ({"in_channels": 6}, "reshape"),
        (_bias_of_nan(), "a value is not finite"),
    ],
)
def test_damage_is_told_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptError, match=rf"store: header\.adaptor: .*({message}).*; the store is damaged"):
        Adaptor.from_header({**an_adaptor().header(), **change}, "store: header.adaptor")


@pytest.mark.parametrize("values", [None, [], "x", {}])
def test_what_is_no_adaptor_is_told(values: Any) -> None:
    with pytest.raises(CorruptError, match=r"h: .*the store is damaged"):
        Adaptor.from_header(values, "h")
