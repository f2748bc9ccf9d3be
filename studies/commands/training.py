"""From stores to figures: training, scoring, and the demo of the whole chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context

from cache.errors import ConfigError
from cache.local_cache import use_local_cache
from studies.commands.command_line import cache_root, console, need, next_step, path_of, print_json, share, task, whole


@task(
    help={
        "recipe": "a shipped recipe (demo-student, bevdistill-tiny, ...; see docs/recipes.md) or a TOML file",
        "cache": "folder of the stores",
        "run": "folder of the run",
        "nproc": "so many processes of this machine train together (default with --nnodes: one a card)",
        "nnodes": "so many machines do, each started with this command",
        "rdzv": "HOST:PORT where they meet: one of the machines and a free port there, the same on all",
        "local-addr": "by which the others reach this machine, where its host name does not do",
        "resume": "go on from the run's newest whole checkpoint, with any number of processes",
        "init_from": "begin with a teacher's weights where they fit: demo, or a file written by train",
        "init_scheme": "which of its channels: fnav2 (default), fnav1, fnav2_released, bn_scale, ofa",
        "tensorboard": "write TensorBoard files into RUN/tensorboard: scalars, and pictures at every validation",
        "threads": "torch threads (default: all cores)",
        "loader-threads": "threads that read and decode (default: 1 on a CPU, up to 8 beside a GPU)",
        "read-ahead": "bytes of batches read ahead, such as 4GiB (default 1GiB)",
        "stuck-after": "seconds at one stage of reading after which the run ends, naming file and frame (default 300; "
        "0: never)",
        "local-cache": "a folder through which stores at URLs are read",
        "local-cache-limit": "its size, such as 200GB; the least recently used shards make room",
        "json": "print a last line of JSON",
    }
)
def train(
    c: Context,
    recipe: str | None = None,
    cache: str | None = None,
    run: str | None = None,
    nproc: str | None = None,
    nnodes: str | None = None,
    rdzv: str | None = None,
    local_addr: str | None = None,
    resume: bool = False,
    init_from: str | None = None,
    init_scheme: str | None = None,
    tensorboard: bool = False,
    threads: str | None = None,
    loader_threads: str | None = None,
    read_ahead: str | None = None,
    stuck_after: str | None = None,
    local_cache: str | None = None,
    local_cache_limit: str | None = None,
    json: bool = False,
) -> None:
    """Train a detector from the stores as a recipe says: a teacher on points, a student on images.

    SIGTERM and Ctrl-C save and end it: with status 75 where a scheduler sent them, which may start it again with
    --resume. Recipes for torchrun, SLURM and Kubernetes: docs/training.md.

    Example: ./bevcask train --cache CACHE --recipe demo-distilled --run runs/student
    Next: ./bevcask evaluate --cache CACHE --run runs/student.
    """
    from studies.launch import Launch
    from studies.training import train_run
    from trainer.loader_options import use_loader_options

    use_local_cache(local_cache, local_cache_limit)
    use_loader_options(loader_threads, read_ahead, stuck_after)
    root, folder = cache_root(cache, "a folder or URL of stores"), Path(need(run, "--run", "a folder for the run"))
    wanted = need(recipe, "--recipe", "a shipped recipe or a TOML file")
    given = {"init_from": init_from, "init_scheme": init_scheme, "tensorboard": tensorboard}
    begin = {key: value for key, value in given.items() if value}
    over = {"train": begin} if begin else {}
    several = None
    if nproc or nnodes or rdzv or local_addr:
        several = Launch(whole(nproc, "--nproc", 1), whole(nnodes, "--nnodes", 1) or 1, rdzv or "", local_addr or "")
    count = whole(threads, "--threads", 1)
    summary = train_run(wanted, root, folder, resume=resume, threads=count, overrides=over, launched=several)
    if not summary:
        said = f"trained; this machine sees no record of it in {folder}: look at that of rank 0"
        console.print(said, markup=False, soft_wrap=True)
        return
    said = f"trained: {summary['steps']} steps, weights in {summary['weights']}"
    console.print(said, markup=False, soft_wrap=True)
    if summary["backbone"]:
        console.print(summary["backbone"], markup=False, soft_wrap=True)
    if summary["began_from"]:
        console.print(f"{summary['began_from']}; every tensor: {folder / 'init.txt'}", markup=False, soft_wrap=True)
    if summary["unlabelled_frames"]:
        console.print(f"{summary['unlabelled_frames']} of the frames of its steps were unlabelled")
    for name, count in summary["skipped"].items():
        console.print(f"{name}: skipped on {count} unlabelled frames, to which it does not apply", soft_wrap=True)
    next_step(f"./bevcask evaluate --cache {root} --run {folder}")
    if json:
        print_json(summary)


@task(
    help={
        "cache": "folder of the stores",
        "run": "score a trained run",
        "weights": "with --run: last (default), the weights it ended with, or best, those of its best validation",
        "nproc": "with --run: so many processes of this machine predict, each a part of the split (default 1)",
        "callable": "with --run: the package.module:callable that its student is of, which may run here",
        "teacher": "score a teacher store, by name",
        "submission": "score an official submission JSON",
        "split": "the split (default: the validation split, or the only one)",
        "export": "also write the predictions as an official submission JSON",
        "export-summary": "also write the figures as the devkit's metrics_summary.json, to lay beside another's",
        "official": "by the devkit's own code over the same boxes: minutes instead of seconds, the same figures",
        "subset": "score a part of the split, may be given several times: scenes=NAME+NAME, description=night (or "
        "!night), distance=0-20, classes=car+cycles, visibility=3+4",
        "report": "also write a report as one HTML file: intervals, curves, kinds of errors, worst frames",
        "pictures": "with --report: how many of the worst frames are drawn (default 4, 0 for none)",
        "draws": "with --report: draws of the bootstrap over scenes (default 300)",
        "audit": "with --teacher: what the store can teach, by class and distance",
        "score": "with --audit: the least score of a detection that supports an object (default 0.1)",
        "out": "with --audit: heat maps of it as a PNG file",
        "local-cache": "a folder through which stores at URLs are read",
        "local-cache-limit": "its size, such as 200GB; the least recently used shards make room",
        "json": "print a last line of JSON",
    },
    iterable=["subset"],
)
def evaluate(
    c: Context,
    cache: str | None = None,
    run: str | None = None,
    weights: str = "last",
    nproc: str | None = None,
    callable: str | None = None,
    teacher: str | None = None,
    submission: str | None = None,
    split: str | None = None,
    export: str | None = None,
    export_summary: str | None = None,
    official: bool = False,
    subset: Any = None,
    report: str | None = None,
    pictures: str | None = None,
    draws: str | None = None,
    audit: bool = False,
    score: str | None = None,
    out: str | None = None,
    local_cache: str | None = None,
    local_cache_limit: str | None = None,
    json: bool = False,
) -> None:
    """Score a run, a teacher store or a submission with the official nuScenes metric, from the stores alone.

    Example: ./bevcask evaluate --cache CACHE --run runs/student --report report.html
    Example: ./bevcask evaluate --cache CACHE --teacher demo --audit
    Next: ./bevcask compare.
    """
    from evaluation.subsets import parse_subset
    from studies.auditing import audit_source
    from studies.outputs import require_outputs
    from studies.reporting import reporter
    from studies.scoring import Outcome, evaluate_source

    shown, drawn = whole(pictures, "--pictures", 0), whole(draws, "--draws", 2)
    if report is None and (shown, drawn) != (None, None):
        raise ConfigError(f"{'--draws' if shown is None else '--pictures'} belongs to --report; add --report FILE.html")
    use_local_cache(local_cache, local_cache_limit)
    root, least = cache_root(cache, "a folder or URL of stores"), share(score, "--score")
    outcome: Outcome
    written = {"--report": report, "--export": export, "--export-summary": export_summary, "--out": out}
    require_outputs({option: path_of(path) for option, path in written.items()}, {"--submission": path_of(submission)})
    if audit:
        if run or submission:
            raise ConfigError("--audit looks into a teacher store: give --teacher, and neither --run nor --submission")
        others = {"--official": official, "--subset": subset, "--report": report, "--export-summary": export_summary}
        others |= {"--weights": weights != "last", "--nproc": nproc, "--callable": callable}
        for option, given in others.items():
            if given:
                raise ConfigError(f"--audit takes no {option}; leave it out")
        outcome = audit_source(root, teacher, split=split, score=least, export=path_of(export), out=path_of(out))
    elif score or out:
        raise ConfigError(f"{'--score' if score else '--out'} belongs to --audit; add --audit to the command")
    else:
        outcome = evaluate_source(
            root,
            run=path_of(run),
            teacher=teacher,
            submission=path_of(submission),
            split=split,
            export=path_of(export),
            export_summary=path_of(export_summary),
            trusted=callable or "",
            weights=weights,
            processes=whole(nproc, "--nproc", 1) or 1,
            official=official,
            subset=parse_subset(subset or ()),
            listener=reporter(path_of(report), shown, drawn),
        )
    for renderable in outcome.renderables:
        console.print(renderable)
    next_step(f"open {report}" if report and outcome.summary is not None else outcome.next_step)
    if json:
        print_json(outcome.summary)


@task(
    help={
        "cache": "folder or URL of the stores",
        "run": "a run to compare, given several times; LABEL=FOLDER puts it in a group (default: its recipe's name)",
        "teacher": "a teacher store to compare, by name, may be given several times",
        "submission": "a submission JSON to compare, may be given several times",
        "baseline": "the run, teacher, submission or label that the others are compared with (default: the first)",
        "split": "the split (default: the validation split, or the only one)",
        "subset": "compare on a part of the split, as `evaluate` takes it, may be given several times",
        "callable": "the package.module:callable that the runs' students are of, which may run here",
        "mixed": "compare runs that were trained on different splits, too",
        "draws": "draws of the bootstrap over scenes (default 300)",
        "out": "write the comparison as one HTML file",
        "csv": "write a CSV file, a line a model",
        "local-cache": "a folder through which stores at URLs are read",
        "local-cache-limit": "its size, such as 200GB; the least recently used shards make room",
        "json": "print a last line of JSON",
    },
    iterable=["run", "teacher", "submission", "subset"],
)
def compare(
    c: Context,
    cache: str | None = None,
    run: Any = None,
    teacher: Any = None,
    submission: Any = None,
    baseline: str | None = None,
    split: str | None = None,
    subset: Any = None,
    callable: str | None = None,
    mixed: bool = False,
    draws: str | None = None,
    out: str | None = None,
    csv: str | None = None,
    local_cache: str | None = None,
    local_cache_limit: str | None = None,
    json: bool = False,
) -> None:
    """Runs, teachers and submissions side by side: differences with paired intervals over scenes and seeds.

    Example: ./bevcask compare --cache CACHE --run runs/plain --run runs/distilled --out compare.html
    Next: open compare.html; ./bevcask evaluate --report for one of them in depth.
    """
    from evaluation.resampling import DRAWS
    from evaluation.subsets import parse_subset
    from studies.comparing import ComparisonRequest, compare_sources

    use_local_cache(local_cache, local_cache_limit)
    root, drawn = cache_root(cache, "a folder or URL of stores"), whole(draws, "--draws", 2)
    request = ComparisonRequest(
        runs=run or (),
        teachers=teacher or (),
        submissions=submission or (),
        baseline=baseline,
        mixed=mixed,
        split=split,
        subset=parse_subset(subset or ()),
        trusted=callable or "",
        draws=DRAWS if drawn is None else drawn,
        csv=path_of(csv),
        html=path_of(out),
    )
    outcome = compare_sources(root, request)
    for renderable in outcome.renderables:
        console.print(renderable)
    next_step(outcome.next_step)
    if json:
        print_json(outcome.summary)


@task(
    help={
        "run": "folder of a trained run",
        "out": "the file to write",
        "format": "safetensors (default): weights and config, which this project loads; pt2: a torch.export program, "
        "which torch alone runs (lift-splat, BEVDet and BEVDepth students)",
        "weights": "last (default), those that the run ended with, or best, those of its best validation",
        "cache": "check the file on the first val frame of these stores (default: on a made-up frame)",
        "callable": "the package.module:callable that the run's student is of, which may run here",
        "json": "print a last line of JSON",
    }
)
def export(
    c: Context,
    run: str | None = None,
    out: str | None = None,
    format: str = "safetensors",
    weights: str = "last",
    cache: str | None = None,
    callable: str | None = None,
    json: bool = False,
) -> None:
    """Write a run's student as one file, read back and compared on a frame before it is kept.

    Example: ./bevcask export --run runs/student --out student.pt2 --format pt2 --cache CACHE
    Next: load it, as docs/training.md shows.
    """
    from studies.exporting import export_run

    folder, file = Path(need(run, "--run", "a run's folder")), Path(need(out, "--out", "the file to write"))
    where = cache_root(cache, "a folder or URL of stores") if cache else None
    done = export_run(folder, file, format, cache=where, weights=weights, trusted=callable or "")
    console.print(done.line, markup=False, soft_wrap=True)
    how = f"torch.export.load('{file}').module()" if format == "pt2" else f"models.build.load_weights('{file}')"
    next_step(f"in Python: {how}; inputs and outputs: docs/training.md")
    if json:
        print_json(done.to_dict())


@task(help={"run": "folder of the demo", "json": "print the table as the last line, as JSON"})
def demo(c: Context, run: str = "runs/demo", json: bool = False) -> None:
    """The whole chain on a simulated world: cache, teach, train with and without distillation, score, report.

    Example: ./bevcask demo
    Next: open runs/demo/report.html; then your own data, ./bevcask cache-frames.
    """
    from studies.demo import run_demo

    result = run_demo(Path(run), console)
    next_step(f"open {result.report}; then your own data: ./bevcask cache-frames --help")
    if json:
        print_json(result.table())
