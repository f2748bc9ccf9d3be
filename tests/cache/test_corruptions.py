"""A hundred of the fault benchmark's corruptions: each is found, none is read as something else, each can be mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.verify import verify
from studies.benches.fault_campaign import corrupt_many, forge_consistently
from studies.benches.fault_corruptions import CORRUPTIONS
from studies.benches.fault_reading import confined
from studies.benches.fault_stores import small_stores

COUNT, SEED = 102, 20261121


def test_every_corruption_is_found_and_none_is_read_as_something_else(tmp_path: Path) -> None:
    tally = corrupt_many(tmp_path, COUNT, seed=SEED, mend_every=4)
    print(tally.to_dict())
    assert not tally.failures
    assert tally.corruptions == tally.found >= 95  # a kind may change nothing in a store that it does not fit
    assert tally.mended == tally.mending_tried >= 20
    assert set(tally.kinds) == set(CORRUPTIONS)
    assert tally.reading["right"] > 10 and tally.reading["refused"] > 10  # both happen, or nothing was tried


def test_a_consistent_forgery_passes_verify_and_is_found_with_a_digest(tmp_path: Path) -> None:
    assert forge_consistently(tmp_path) == {"forgeries": 3, "pass_verify": 3, "found_with_digest": 3}


def test_the_confined_process_notices_memory_time_and_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard itself: what it is there to notice, it notices."""
    monkeypatch.setattr("studies.benches.fault_reading.TIME_S", 1.0)

    def hang() -> dict[str, object]:
        while True:
            pass

    assert "MemoryError" in confined(lambda: {"reading": str(len(bytearray(1 << 33)))})["detail"]
    assert confined(hang)["reading"] == "hung"
    assert "KeyError" in confined(lambda: {}["x"])["detail"]
    assert confined(lambda: {"reading": "right"}) == {"reading": "right"}


def test_a_campaign_notices_a_check_that_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.benches.fault_reading.verify", lambda *args, **options: [])
    tally = corrupt_many(tmp_path, 3, seed=1)
    assert tally.found == 0 and len(tally.failures) == 3


def test_undamaged_stores_have_no_finding(tmp_path: Path) -> None:
    for name, store in small_stores().items():
        manifest = store.write(tmp_path / name)
        assert verify(tmp_path / name, digest=manifest.digest) == []
