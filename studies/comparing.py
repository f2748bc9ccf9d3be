"""`./bevcask compare`: runs, teachers and submissions scored on the same frames, side by side."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from cache.errors import ConfigError
from cache.files import read_json, write_bytes
from evaluation.comparison import SEED_KEYS, Compared, comparison_csv, difference_table, interval_lines, seed_table_view
from evaluation.comparison_report import ComparisonAround, write_comparison
from evaluation.curves import LossCurve
from evaluation.explained import Explained, Model, explain
from evaluation.resampling import DRAWS
from evaluation.seeds import SeedResult, SeedRow, seed_table
from evaluation.subsets import EVERYTHING, Subset
from evaluation.table import MetricsRow, metrics_table
from studies.outputs import require_outputs
from studies.reporting import run_recipe
from studies.scored import Scored
from studies.scoring import Outcome, evaluate_source


@dataclass(frozen=True)
class ComparisonRequest:
    """What is compared. runs: folders, each may be LABEL=FOLDER; baseline: the name, or label, that the others are
    compared with, the first where None; mixed: runs that were trained on different splits are compared, too."""

    runs: Sequence[str] = ()
    teachers: Sequence[str] = ()
    submissions: Sequence[str] = ()
    baseline: str | None = None
    mixed: bool = False
    split: str | None = None
    subset: Subset = EVERYTHING
    trusted: str = ""
    draws: int = DRAWS
    seed: int = 0
    csv: Path | None = None
    html: Path | None = None


@dataclass
class _Source:
    """One thing to score: its name in the table, its label, and how `evaluate_source` is told of it."""

    name: str
    label: str
    ask: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)


def compare_sources(cache: str | Path, request: ComparisonRequest) -> Outcome:
    """Scores all, and gives the tables; writes CSV and HTML where asked. JSON: figures, differences and seed rows.

    Raises ConfigError for fewer than two things to compare, equal names, a baseline that is none of them, and runs that
    were trained on different splits; and what `evaluate_source` raises of each.
    """
    require_outputs(
        {"--out": request.html, "--csv": request.csv},
        {f"--submission {path}": Path(path) for path in request.submissions},
    )
    sources = _sources(request)
    if request.trusted and not request.runs:
        raise ConfigError("--callable belongs to --run; leave it out")
    base = _base(sources, request.baseline)
    if not request.mixed:
        _require_one_training_split(sources)
    scored = [_score(cache, source, request) for source in sources]
    first = scored[0]
    models = [Model(s.name, one.metrics, one.boxes_of) for s, one in zip(sources, scored, strict=True)]
    explained = explain(
        models,
        first.frames,
        first.truth,
        first.store.manifest.scenes,
        subset=request.subset,
        draws=request.draws,
        seed=request.seed,
    )
    compared, lines = _compared(sources, explained, base)
    tables: list[RenderableType] = [
        f"{first.split}{'' if request.subset == EVERYTHING else ', ' + escape(str(request.subset))}: "
        f"{len(first.frames)} samples of {len(explained[0].table.scene_names)} scenes",
        metrics_table([MetricsRow(one.name, one.metrics) for one in explained]),
        difference_table(compared),
        *(escape(line) for line in interval_lines(compared)),
        _words(compared),
    ]
    if compared.seed_rows:
        tables.append(seed_table_view(compared))
    tables += lines
    if request.csv is not None:
        write_bytes(request.csv, comparison_csv(compared).encode())
    if request.html is not None:
        write_comparison(request.html, compared, _around(cache, first, sources, request))
    written = request.html or request.csv
    then = f"open {written}" if written else "the same command with --out FILE.html and --csv FILE.csv"
    return Outcome(tables, _summary(compared), then)


def _sources(request: ComparisonRequest) -> list[_Source]:
    out = []
    for text in request.runs:
        label, folder = _labelled(text)
        recipe = run_recipe(folder)
        out.append(_Source(folder.name, label or str(recipe.get("name", "")), {"run": folder}, recipe))
    out += [_Source(name, "", {"teacher": name}) for name in request.teachers]
    out += [_Source(Path(path).name, "", {"submission": Path(path)}) for path in request.submissions]
    if len(out) < 2:
        raise ConfigError(
            f"compare: {len(out)} to compare; give --run, --teacher or --submission twice or more, such as "
            "--run A --run B"
        )
    twice = {name for name, count in Counter(one.name for one in out).items() if count > 1}
    for one in out:
        if one.name in twice and "run" in one.ask:
            one.name = "/".join(one.ask["run"].resolve().parts[-2:])  # runs/a/student and runs/b/student
    again = [name for name, count in Counter(one.name for one in out).items() if count > 1]
    if again:
        raise ConfigError(f"compare: {', '.join(again)} is given twice; every name may stand once")
    return out


def _labelled(text: str) -> tuple[str, Path]:
    """LABEL=FOLDER, or a folder alone, whose own name may have a "=" in it."""
    label, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return "", Path(text)
    if not label or not folder:
        raise ConfigError(f"compare: --run {text!r}, expected a run's folder or LABEL=FOLDER")
    return label, Path(folder)


def _require_one_training_split(sources: Sequence[_Source]) -> None:
    """Runs that saw other frames in training differ by those, not by their recipes."""
    known = [(one.name, one.recipe["data"]["split"]) for one in sources if one.recipe.get("data", {}).get("split")]
    for name, split in known[1:]:
        if split != known[0][1]:
            raise ConfigError(
                f"{known[0][0]} was trained on the split {known[0][1]!r} and {name} on {split!r}: they differ by what "
                "they saw; compare runs of one split, or add --mixed where that is what you compare"
            )


def _score(cache: str | Path, source: _Source, request: ComparisonRequest) -> Scored:
    heard: list[Scored] = []
    trusted = request.trusted if "run" in source.ask else ""
    evaluate_source(
        cache, **source.ask, split=request.split, subset=request.subset, trusted=trusted, listener=heard.append
    )
    return heard[0]


def _base(sources: Sequence[_Source], baseline: str | None) -> str:
    """The name of what the others are compared with: the first, or the one so named, or the first so labelled."""
    names = [one.name for one in sources]
    if not baseline:
        return names[0]
    labelled = [one.name for one in sources if one.label == baseline]
    if baseline not in names and not labelled:
        labels = ", ".join(dict.fromkeys(one.label for one in sources if one.label))
        told = f", labels {labels}" if labels else ""
        raise ConfigError(f"compare: no {baseline!r} to compare with; there are {', '.join(names)}{told}")
    return baseline if baseline in names else labelled[0]


def _compared(
    sources: Sequence[_Source], explained: Sequence[Explained], base: str
) -> tuple[Compared, list[RenderableType]]:
    """The comparison, and what must be said of it."""
    groups = {one.name: one.label for one in sources if one.label}
    seeds = {one.name: int(one.recipe["train"]["seed"]) for one in sources if "seed" in one.recipe.get("train", {})}
    rows: list[SeedRow] = []
    lines: list[RenderableType] = []
    results = [
        SeedResult(groups[one.name], seeds[one.name], {key: getattr(one.metrics, key) for key in SEED_KEYS})
        for one in explained
        if one.name in groups and one.name in seeds
    ]
    if any(count > 1 for count in Counter(one.group for one in results).values()):
        try:
            rows = seed_table(results, groups.get(base, results[0].group), SEED_KEYS)
        except ConfigError as error:
            lines.append(
                f"[yellow]no table over seeds: {escape(str(error))}; label them with --run LABEL=FOLDER[/yellow]"
            )
    return Compared(explained, base, groups, seeds, rows), lines


def _words(compared: Compared) -> str:
    if compared.base_model.drawn is None:
        return "[dim]one scene: no intervals[/dim]"
    drawn = compared.base_model.drawn
    return (
        f"[dim]* the paired 95 % interval over {drawn.scenes} scenes ({drawn.draws} draws, seed {drawn.seed}) leaves "
        "out 0; that is of these runs, not of their recipes: several seeds tell of those[/dim]"
    )


def _around(
    cache: str | Path, first: Scored, sources: Sequence[_Source], request: ComparisonRequest
) -> ComparisonAround:
    names = ", ".join(one.name for one in sources)
    part = "" if request.subset == EVERYTHING else f", {request.subset}"
    version = first.store.manifest.identity["dataset_version"]
    made = [("stores", f"{cache}, frame store digest {first.store.manifest.digest}")]
    for one in sources:
        (kind, value), *_ = one.ask.items()
        made.append((one.name, f"{kind} {value}{_trained(one)}"))
    made.append(("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())))
    return ComparisonAround(
        title=f"Comparison on {first.split}{part}",
        about=f"{names}: the nuScenes detection metric on the same {len(first.frames):,} frames of {version}.",
        curves=[curve for one in sources for curve in _curves(one)],
        made=made,
        commands=[_command(cache, request)],
    )


def _trained(source: _Source) -> str:
    record = source.ask["run"] / "run.json" if "run" in source.ask else None
    if record is None or not record.is_file():
        return ""
    values = read_json(record, "the record of a run")
    stores = ", ".join(f"{name} {str(digest)[:16]}" for name, digest in values.get("stores", {}).items())
    return f"; trained on the stores {stores}" if stores else ""


def _curves(source: _Source) -> list[LossCurve]:
    if "run" not in source.ask or not (source.ask["run"] / "metrics.jsonl").is_file():
        return []
    from studies.training import loss_curves  # torch

    return loss_curves(source.name, source.ask["run"])


def _command(cache: str | Path, request: ComparisonRequest) -> str:
    given = (("run", request.runs), ("teacher", request.teachers), ("submission", request.submissions))
    pairs = [(option, value) for option, values in given for value in values]
    pairs += [("subset", one) for one in request.subset.options]
    single: dict[str, object] = {"split": request.split, "baseline": request.baseline, "callable": request.trusted}
    single |= {"draws": request.draws if request.draws != DRAWS else None, "out": request.html, "csv": request.csv}
    pairs += [(option, str(value)) for option, value in single.items() if value]
    words = ["./bevcask", "compare", "--cache", str(cache)]
    words += [word for option, value in pairs for word in (f"--{option}", value)]
    return shlex.join([*words, "--mixed"] if request.mixed else words)


def _summary(compared: Compared) -> dict[str, Any]:
    """Plain JSON values."""
    differences = {}
    for model in compared.others:
        drawn = compared.drawn(model)
        differences[model.name] = {
            key: {
                "difference": getattr(model.metrics, key) - getattr(compared.base_model.metrics, key),
                **({"low": drawn.of(key).low, "high": drawn.of(key).high} if drawn is not None else {}),
            }
            for key in SEED_KEYS
        }
    return {
        "base": compared.base,
        "models": {one.name: one.metrics.summary() for one in compared.models},
        "differences": differences,
        "seeds": [
            {
                "group": row.group,
                "seeds": list(row.seeds),
                "spread": {key: _plain(vars(value)) for key, value in row.spread.items()},
                "gain": None if row.gain is None else {key: _plain(vars(value)) for key, value in row.gain.items()},
            }
            for row in compared.seed_rows
        ],
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and value != value else value for key, value in values.items()}
