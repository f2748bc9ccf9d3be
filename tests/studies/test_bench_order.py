"""The benchmark of orders, tiny; and the order that it compares with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from studies.benches.order_feistel import feistel_entries
from studies.benches.registry import run_bench


def test_every_order_is_measured(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    result = run_bench("order", tmp_path, console, {"frames": 2000, "batch": 16, "steps": 5, "repeats": 1})
    rows = {row["order"]: row for row in result["orders"]}
    assert set(rows) == {"global", "blocks", "blocks of 50", "cbgs", "cbgs, blocks", "not stored"}
    for name, row in rows.items():
        assert row["frames"] == 2000
        assert all(row[key] > 0 for key in ("first_ms", "step_us", "jump_us", "peak_mb"))
        assert name in console.export_text(clear=False)
    assert rows["global"]["kept_mb"] >= 2000 * 8 / 2**20 > rows["not stored"]["kept_mb"]  # a stored permutation


@given(st.integers(1, 700), st.integers(0, 2**40), st.integers(0, 100))
def test_the_order_that_is_not_stored_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    whole = feistel_entries(np.arange(n), n, seed, epoch)
    assert sorted(whole.tolist()) == list(range(n))
    some = np.arange(n)[::3]
    assert feistel_entries(some, n, seed, epoch).tolist() == whole[some].tolist()
