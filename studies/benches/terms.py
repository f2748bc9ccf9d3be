"""What distillation costs a step: milliseconds and stored bytes of every term beside the student's own step.

Terms are computed with their default options, forward and backward, on made-up answers (`studies.benches.term_world`)
under a BEV augmentation, on one thread; medians over `repeats`. The student's step is its forward pass, its detection
loss and backward in the recipes' precision, measured on one frame and multiplied by the frames, since four would need
more memory than many machines have. Shares are made larger than they are: the optimiser is left out, and terms that
read queries are held against the same step, where the student of queries takes far longer. `together` are all terms of
the three methods, each method in one backward pass as a run has it. A quarter of an hour at the defaults.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from cache.errors import ConfigError
from models.build import build_detector
from models.detector import Batch, Detector, total_of
from studies.benches.term_world import Sizes, TermWorld
from studies.model_cost import pictures
from trainer.terms import RELABELS, TERMS, parse_options

ABOUT = "what each distillation term costs a step, beside the student's own step"
METHODS = {
    "BEVDistill": (
        "bevdistill_dense",
        "bevdistill_heat",
        "bevdistill_sparse",
        "bevdistill_instance",
        "bevdistill_contrast",
    ),
    "SparseKD": ("sparsekd_logits", "sparsekd_regression", "sparsekd_label"),
    "BEV-LGKD": ("lgkd_feature", "lgkd_depth", "lgkd_response"),
}
GOAL = 0.1


def run(
    work: Path,
    console: Console,
    *,
    student: str = "lift-splat-r50",
    query_student: str = "bevformer-r50-128",
    frames: int = 4,
    boxes: int = 40,
    cells: int = 1_500,
    channels: int = 256,
    queries: int = 900,
    repeats: int = 5,
    terms: str = "",
    precision: str = "bf16",
) -> dict[str, Any]:
    """student, query_student: presets; terms: names with commas between, empty for all; precision: of the student's
    step, bf16 or fp32 (terms are in fp32 either way)."""
    if precision not in ("bf16", "fp32"):
        raise ConfigError(f"precision {precision!r}: expected bf16 or fp32")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(
            console, (student, query_student), Sizes(frames, boxes, cells, channels, queries), repeats, terms, precision
        )
    finally:
        torch.set_num_threads(before)


def _measured(
    console: Console, students: tuple[str, str], sizes: Sizes, repeats: int, terms: str, precision: str
) -> dict[str, Any]:
    names = [name for name in terms.split(",") if name] or [*TERMS, *RELABELS]
    if unknown := sorted(set(names) - {*TERMS, *RELABELS}):
        raise ConfigError(f"terms: {', '.join(unknown)} unknown; there are {', '.join([*TERMS, *RELABELS])}")
    worlds = [_world(preset, sizes) for preset in students]
    step = _step_ms(worlds[0].model, max(1, repeats // 2), precision) * sizes.frames
    console.print(f"{students[0]}: {step:,.0f} ms a step of {sizes.frames} frames, forward and backward in {precision}")
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        world = worlds[1] if _reads_queries(name) else worlds[0]
        work, stored = _work([name], world)
        ms = _median_ms(work, repeats)
        rows[name] = {"ms": ms, "share": ms / step, "stored_bytes": stored, "student": students[worlds.index(world)]}
        console.print(f"{name}: {ms:,.0f} ms, {ms / step:.1%}")
    methods: dict[str, dict[str, Any]] = {}
    if not terms:
        for method, chosen in METHODS.items():
            ms, read = 0.0, 0
            for world in worlds:
                work, stored = _work([name for name in chosen if (world is worlds[1]) == _reads_queries(name)], world)
                ms, read = ms + _median_ms(work, repeats), read + stored
            methods[method] = {"terms": chosen, "ms": ms, "share": ms / step, "stored_bytes": read}
    console.print(_table(rows, methods))
    together = sum(method["share"] for method in methods.values())
    if methods:
        console.print(f"the three methods together: {together:.1%} of the student's step (goal: under {GOAL:.0%})")
    return {
        "student_step_ms": step,
        "terms": rows,
        "methods": methods,
        "together_share": together,
        "every_term_share": sum(row["share"] for row in rows.values()),
        "precision": precision,
        "goal": GOAL,
        "sizes": sizes.__dict__,
    }


def _world(preset: str, sizes: Sizes) -> TermWorld:
    torch.manual_seed(0)
    model = build_detector({"preset": preset, **({"queue": 1} if preset.startswith("bevformer") else {})})
    cast(nn.Module, model).train()
    return TermWorld(model, sizes)


def _reads_queries(name: str) -> bool:
    kind = TERMS.get(name) or RELABELS[name]
    return "queries" in kind.needs(kind.options()).student


def _work(names: Sequence[str], world: TermWorld) -> tuple[Callable[[], None], int]:
    """One step of these terms, and the bytes that it reads of the store."""
    built: list[tuple[Any, Any]] = []
    changes: list[tuple[Any, Any]] = []
    stored = 0
    for name in names:
        kind = TERMS.get(name) or RELABELS[name]
        options = parse_options(name, {}, "bench")
        needs = kind.needs(options)
        said = world.said(needs)
        stored += world.stored_bytes(needs, said)
        if name in RELABELS:
            changes.append((RELABELS[name].build(name, options), said))
        else:
            term = TERMS[name].build(name, 1.0, options, world.model, world.store(needs), [0, 1])
            built.append((term.train(), said))
    wanted = [*world.leaves, *(p for term, _ in built for p in term.parameters())]

    def step() -> None:
        for change, said in changes:
            change(world.batch, said)
        if built:
            losses = [v for term, said in built for v in total_of(term(world.output, world.batch, said)).values()]
            torch.autograd.grad(torch.stack(losses).sum(), wanted, allow_unused=True)

    return step, stored


def _step_ms(model: Detector, repeats: int, precision: str) -> float:
    """Of one frame: forward, detection loss, backward."""
    batch: Batch = replace(
        pictures(model),
        boxes=[torch.tensor([[5.0, 5.0, 0.0, 4.5, 1.9, 1.6, 0.3, 0.0, 0.0]])],
        labels=[torch.zeros(1, dtype=torch.int64)],
    )

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model(batch)
        loss = torch.stack(list(total_of(model.loss_parts(output, batch)).values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]

    return _median_ms(step, repeats)


def _median_ms(step: Callable[[], None], repeats: int) -> float:
    step()  # caches and allocations of the first
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _table(rows: dict[str, dict[str, Any]], methods: dict[str, dict[str, Any]]) -> Table:
    table = Table("term", "ms", "of the step", "read of the store")
    for name, row in [*sorted(rows.items(), key=lambda item: item[1]["ms"]), *methods.items()]:
        table.add_row(name, f"{row['ms']:,.1f}", f"{row['share']:.1%}", f"{row['stored_bytes'] / 1e6:,.1f} MB")
    return table
