"""The array metric against the devkit's own code, and the whole task from stores to figures in a fresh process.

Both sides get ready objects of their kind in memory, filters included: arrays here, EvalBoxes there, whose building is
told apart. The whole task is `evaluate --teacher` on stores of the same split: a new process, its imports, files that
were dropped from the page cache (where the system lets a program do that), figures.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from cache.files import digest_of
from cache.layout import teacher_place
from evaluation.array_metric import PORTION, ArrayMetric
from evaluation.box_arrays import detection_arrays, places_of, truth_arrays
from evaluation.metrics import SUMMARY_KEYS, Metrics
from evaluation.submission import export_submission, submission_meta, submission_results
from studies.benches.evaluate_data import Split, made_up_split, write_stores

ABOUT = "the array metric against the devkit's code at 6,019 samples x 200 predictions, and the task from stores"
SAMPLES, PREDICTIONS = 6_019, 200
TEACHER = "made-up"

_TASK = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
from studies.scoring import evaluate_source
loaded = time.perf_counter()
source = {"teacher": sys.argv[3]} if sys.argv[2] == "teacher" else {"submission": Path(sys.argv[3])}
summary = evaluate_source(sys.argv[1], **source).summary
ended = time.perf_counter()
from studies.benches.resident import peak_resident
peak = peak_resident() / 2**20
figures = {"imports_s": loaded - start, "work_s": ended - loaded, "cpu_s": time.process_time(), "peak_mb": peak}
print(json.dumps({"summary": summary, **figures}))
"""


def run(
    work: Path,
    console: Console,
    *,
    samples: int = SAMPLES,
    predictions: int = PREDICTIONS,
    rounds: int = 3,
    devkit: bool = True,
    whole: bool = True,
    submission: bool = False,
) -> dict[str, Any]:
    """devkit_s (one run), ours_s (median of rounds), speedup, max_abs_diff over every figure; pack_s and
    devkit_objects_s: making arrays and objects of what a model says; task: medians of total_s, imports_s, work_s,
    cpu_s (of all its threads) and peak_mb.

    submission: also `evaluate --submission` of the same boxes as a JSON file, once: file, as task, and its file_mb.
    devkit, whole: leave a side out. The devkit takes minutes and some GB at full size.
    """
    console.print(f"[dim]making up {samples} samples x {predictions} predictions ...[/dim]")
    split = made_up_split(samples, predictions)
    out, metrics = _ours(split, rounds)
    out |= {"samples": samples, "predictions": predictions, "summary": metrics.summary()}
    console.print(f"arrays: {out['ours_s']:.2f} s, made in {out['pack_s']:.2f} s")
    if whole:
        out["task"] = _whole_task(work, split, rounds, metrics)
        task = out["task"]
        console.print(
            f"from stores: {task['total_s']:.2f} s of which imports {task['imports_s']:.2f} s, {task['peak_mb']:.0f} MB"
        )
    if submission:
        out["file"] = _from_file(work, split, metrics)
        found = out["file"]
        console.print(f"from {found['file_mb']:.0f} MB of JSON: {found['total_s']:.1f} s, {found['peak_mb']:.0f} MB")
    if devkit:
        console.print("[dim]the devkit's turn ...[/dim]")
        out |= _devkit(split, metrics)
        out["speedup"] = out["devkit_s"] / out["ours_s"]
        console.print(
            f"devkit: {out['devkit_s']:.1f} s, {out['speedup']:.1f} times ours; largest difference "
            f"{out['max_abs_diff']:.1e}"
        )
    return out


def _ours(split: Split, rounds: int) -> tuple[dict[str, Any], Metrics]:
    start = time.perf_counter()
    portions = []
    for first in range(0, len(split.frames), PORTION):
        frames, truth = split.frames[first : first + PORTION], split.truth[first : first + PORTION]
        tokens = [frame.token for frame in frames]
        boxes = detection_arrays(frames, [split.detections[token] for token in tokens])
        portions.append((tokens, places_of(frames, truth), truth_arrays(truth), boxes))
    packed = time.perf_counter() - start
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        metric = ArrayMetric([frame.token for frame in split.frames])
        for portion in portions:
            metric.add_boxes(*portion)
        metrics = metric.result()
        seconds.append(time.perf_counter() - start)
    return {"ours_s": median(seconds), "pack_s": packed}, metrics


def _devkit(split: Split, ours: Metrics) -> dict[str, Any]:
    from evaluation.official import devkit_objects, score_objects

    start = time.perf_counter()
    objects = devkit_objects(split.frames, split.truth, submission_results(split.frames, split.detections))
    built = time.perf_counter() - start
    gc.collect()
    gc.freeze()  # millions of living objects would slow the devkit down by collections it has no part in
    start = time.perf_counter()
    theirs = score_objects(*objects)
    seconds = time.perf_counter() - start
    gc.unfreeze()
    means = (theirs.mean_ap, theirs.nd_score, *theirs.tp_errors.values())
    pairs = list(zip((getattr(ours, key) for key in SUMMARY_KEYS), means, strict=True))
    for name, row in ours.ap.items():
        pairs += [(value, theirs.get_label_ap(name, threshold)) for threshold, value in row.items()]
    for name, errors in ours.tp_errors.items():
        pairs += [(value, theirs.get_label_tp(name, key)) for key, value in errors.items()]
    differences = [0.0 if math.isnan(a) and math.isnan(b) else abs(a - b) for a, b in pairs]
    largest = math.inf if any(math.isnan(one) for one in differences) else max(differences)
    return {"devkit_s": seconds, "devkit_objects_s": built, "max_abs_diff": largest}


def _whole_task(work: Path, split: Split, rounds: int, expected: Metrics) -> dict[str, Any]:
    cache, seen = _stores(work, split), []
    for _ in range(rounds):
        cold = _dropped_from_memory(cache)
        seen.append(_in_new_process(cache, "teacher", TEACHER, expected))
    keys = ("total_s", "imports_s", "work_s", "cpu_s", "peak_mb")
    return {**{key: median(one[key] for one in seen) for key in keys}, "cold_files": cold}


def _from_file(work: Path, split: Split, expected: Metrics) -> dict[str, Any]:
    path = work / "submission.json"
    export_submission(path, split.frames, split.detections, submission_meta(lidar=True))
    found = _in_new_process(_stores(work, split), "submission", str(path), expected)
    size = path.stat().st_size / 1e6
    path.unlink()
    return {**{key: value for key, value in found.items() if key != "summary"}, "file_mb": size}


def _stores(work: Path, split: Split) -> Path:
    sizes = [len(split.frames), len(split.detections[split.frames[0].token])]
    cache = work / f"stores-{digest_of([*sizes, 1])[:8]}"
    if not (Path(teacher_place(cache, TEACHER)) / "manifest.json").is_file():
        write_stores(cache, split, TEACHER)
    return cache


def _in_new_process(cache: Path, kind: str, source: str, expected: Metrics) -> dict[str, Any]:
    start = time.perf_counter()
    command = [sys.executable, "-c", _TASK, str(cache), kind, source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one = json.loads(done.stdout.splitlines()[-1])
    if one["summary"] != expected.summary():
        raise AssertionError(f"from {kind} {one['summary']}, in memory {expected.summary()}")
    return {"total_s": time.perf_counter() - start, **one}


def _dropped_from_memory(folder: Path) -> bool:
    """Asks the system to forget the files' pages; False where it has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
