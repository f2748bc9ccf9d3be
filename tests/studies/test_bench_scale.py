"""The benchmark of opening: its memory is that of the process that opens, whatever started it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from studies.benches.resident import resident
from studies.benches.scale import _measured, write_large_store


def test_what_the_starting_process_holds_is_not_counted(tmp_path: Path) -> None:
    write_large_store(tmp_path / "store", 400)
    held = np.ones(40_000_000)  # 320 MB, written to
    found = _measured(tmp_path / "store", 20)
    assert resident() > held.nbytes > 3e8
    assert 10 < found["open_mb"] < 200
    assert set(found) == {"open_s", "open_mb", "first_read_us", "read_us"}
    assert all(value > 0 for value in found.values())
