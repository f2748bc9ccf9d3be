"""Random corruptions of small stores, each checked, read, and mended as the findings say; counts of what was seen."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import BevcaskError
from studies.benches.fault_corruptions import CORRUPTIONS, FORGED, corrupt
from studies.benches.fault_forging import manifest_digest
from studies.benches.fault_reading import check_and_read
from studies.benches.fault_stores import SmallStore, expected_reads, other_values, small_stores, tree


@dataclass
class Tally:
    """What a number of corruptions came to. failures: a line for each that was not as it must be."""

    corruptions: int = 0
    found: int = 0
    mended: int = 0
    mending_tried: int = 0
    reading: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            **{key: getattr(self, key) for key in ("corruptions", "found", "mended", "mending_tried", "failures")},
            "reading": dict(self.reading),
            "kinds": dict(sorted(self.kinds.items())),
        }


def corrupt_many(
    work: Path, count: int, *, seed: int, mend_every: int = 1, advance: Callable[[], None] = lambda: None
) -> Tally:
    """`count` corruptions, kinds and stores in turn; one that finds nothing to change in its store is not counted.
    mend_every: each how many-th store is mended by its remedies."""
    tally = Tally()
    stores = small_stores()
    whole = {}
    for name, store in stores.items():
        shutil.rmtree(work / name, ignore_errors=True)
        store.write(work / name)
        whole[name] = tree(work / name), expected_reads(store, work / name)
    pairs = [(kind, name) for kind in CORRUPTIONS for name in stores if _applies(kind, name)]
    for number in range(2 * count):
        if tally.corruptions == count:
            break
        kind, name = pairs[number % len(pairs)]
        bytes_of, expected = whole[name]
        case = work / "case"
        shutil.rmtree(case, ignore_errors=True)
        folder = case / "store"
        shutil.copytree(work / name, folder)
        what = corrupt(np.random.default_rng([seed, number]), folder, kind)
        if what is None:
            continue
        tally.corruptions += 1
        tally.kinds[kind] += 1
        label = f"{kind} of {name} (seed {seed}, number {number}: {what})"
        outcome = check_and_read(stores[name], folder, expected)
        tally.found += bool(outcome.findings)
        tally.reading[outcome.reading] += 1
        if not outcome.findings:
            tally.failures.append(f"{label}: not found; {outcome.reading} {outcome.detail}")
        elif outcome.reading not in ("right", "refused", *(["wrong"] if kind in FORGED else [])):
            tally.failures.append(f"{label}: reading {outcome.reading}: {outcome.detail}")
        elif number % mend_every == 0:
            tally.mending_tried += 1
            problem = mend(stores[name], folder, outcome.delete, bytes_of)
            tally.mended += not problem
            if problem:
                tally.failures.append(f"{label}: {problem}; {outcome.findings[0]}")
        advance()
    shutil.rmtree(work / "case", ignore_errors=True)
    return tally


def _applies(kind: str, name: str) -> bool:
    return not (kind.startswith("zarr") and name != "teacher-zarr") and not (
        kind.startswith("tar") and name == "teacher-zarr"
    )


def mend(store: SmallStore, folder: Path, delete: tuple[str, ...], whole: dict[str, bytes]) -> str:
    """Does what the findings say (delete, then the same command) and tells what is not as it was, "" for nothing."""
    for name in delete:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
    try:
        store.write(folder)
    except BevcaskError as error:
        return f"the remedy is refused: {error}"
    after = tree(folder)
    differing = sorted(name for name in whole.keys() | after.keys() if whole.get(name) != after.get(name))
    return f"after the remedy {differing[:3]} differ" if differing else ""


def forge_consistently(work: Path) -> dict[str, int]:
    """Every store written again over other values, digests and all: how many plain `verify` passes (all: they agree
    with themselves) and how many `verify --digest` finds."""
    counts = {"forgeries": 0, "pass_verify": 0, "found_with_digest": 0}
    for name, store in small_stores().items():
        true, forged = work / f"true-{name}", work / f"forged-{name}"
        for folder in (true, forged):
            shutil.rmtree(folder, ignore_errors=True)
        store.write(true)
        other_values(store).write(forged)
        expected = expected_reads(store, true)
        counts["forgeries"] += 1
        counts["pass_verify"] += not check_and_read(store, forged, expected).findings
        counts["found_with_digest"] += (
            bool(check_and_read(store, forged, expected, digest=manifest_digest(true)).findings)
            and not check_and_read(store, true, expected, digest=manifest_digest(true)).findings
        )
    return counts
