"""The command line: parses, calls, prints. Each task is thin; what it does lives in the rooms it calls.

Run as `./bevcask TASK` anywhere, or `invoke TASK` inside an environment. Errors that are the input's fault are one
line on stderr and exit status 1, without a traceback.
"""

from __future__ import annotations

import functools
import json as json_text
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task as invoke_task
from rich.console import Console

from cache.errors import BevcaskError, ConfigError, DataError
from cache.layout import frames_place, teacher_place
from cache.manifest import Manifest

ROOT = Path(__file__).resolve().parent
console = Console(highlight=False)


def task(body: Callable[..., Any] | None = None, *, help: Mapping[str, str] | None = None) -> Any:
    """An invoke task whose BevcaskError becomes one red line and exit status 1, and Ctrl-C exit status 130.

    help: option -> what it is, for `./bevcask TASK --help`.
    """
    if body is None:
        return functools.partial(task, help=help)

    @functools.wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return body(*args, **kwargs)
        except BevcaskError as error:
            message = " ".join(str(error).split()) or type(error).__name__
            # soft_wrap: a long path must stay one line that can be copied; markup off: a path may hold brackets
            Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
            raise Exit(code=1) from error
        except OSError as error:
            message = (
                f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the disk"
            )
            Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
            raise Exit(code=1) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted; the same command goes on where it can", style="yellow")
            raise Exit(code=130) from error

    # positional=[]: invoke would make an argument without a default positional, and then --help runs the task
    return invoke_task(guarded, positional=[], help=dict(help or {}))


def _run(*command: str) -> int:
    """Run a tool of this environment in the repository root, its output straight to the terminal."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _need(value: str | None, option: str, what: str) -> str:
    """Options are never positional, so a missing one is told here."""
    if not value:
        raise ConfigError(f"{option} is missing, expected {what}; `--help` lists the options")
    return value


def _whole(value: str | None, option: str) -> int | None:
    """invoke hands over a string for an option whose default is None."""
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{option} {value!r} is not a whole number; `--help` lists the options") from None


def _sizes(value: str, option: str) -> dict[str, int]:
    """`K=900,N=300` as a dict."""
    pairs = [part.partition("=") for part in value.split(",") if part]
    if not all(letter.strip() and size.strip().isdecimal() for letter, _, size in pairs):
        raise ConfigError(f"{option} {value!r}: expected LETTER=SIZE, with commas between")
    return {letter.strip(): int(size) for letter, _, size in pairs}


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


def _cache(value: str | None, what: str) -> str | Path:
    """The folder of the stores, or its URL as it is."""
    place = _need(value, "--cache", what)
    return place if "://" in place else Path(place)


def _print_json(value: Any) -> None:
    """The last line that scripts read."""
    print(json_text.dumps(value), flush=True)


def _next(text: str) -> None:
    console.print(f"[dim]next:[/dim] {text}", soft_wrap=True)


def _close_store(kind: str, manifest: Manifest, root: str | Path, as_json: bool) -> None:
    """Ends a caching run; DataError, so exit status 1, where a frame could not be read."""
    from studies.inspection import closing_lines, closing_summary

    for line in closing_lines(kind, manifest, root):
        console.print(line, style="red" if line.startswith("quarantined") else None, markup=False, soft_wrap=True)
    if as_json:
        _print_json(closing_summary(manifest))
    if manifest.quarantined:
        raise DataError(
            f"{len(manifest.quarantined)} frames could not be read and are not in the store; its manifest.json lists "
            "them all: repair their files and run the same command again"
        )


@task
def test(
    c: Context, select: str | None = None, path: str | None = None, failfast: bool = False, durations: int = 15
) -> None:
    """The test suite. --select EXPRESSION (pytest -k), --path FILE_OR_FOLDER, --failfast, --durations N slowest."""
    command = [sys.executable, "-m", "pytest", f"--durations={durations}", "--durations-min=1"]
    command += ["-k", select] if select else []
    command += ["-x"] if failfast else []
    command += [path] if path else []
    code = _run(*command)
    if code:
        raise Exit(code=code)


@task
def lint(c: Context, fix: bool = False) -> None:
    """Style, types and import floors: ruff, mypy, import-linter. --fix lets ruff mend what it can first."""
    python = sys.executable
    if fix:
        _run(python, "-m", "ruff", "check", "--fix", "--quiet", ".")
        _run(python, "-m", "ruff", "format", "--quiet", ".")
    checks = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "--output-format", "concise", "."],
        "mypy": [python, "-m", "mypy"],
        # import-linter has no `python -m`; its script stands beside the interpreter
        "import floors": [str(Path(python).with_name("lint-imports")), "--no-logo"],
    }
    failed = []
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        if _run(*command):
            failed.append(name)
    if failed:
        raise BevcaskError(f"lint: {', '.join(failed)} failed; `./bevcask lint --fix` mends what ruff can mend")
    print("lint: all clean")


@task(
    help={
        "out": "folder to write; must not exist, or be empty",
        "scenes": "scenes of the train split; the only ones of a test version",
        "val-scenes": "scenes of the val split (default: a quarter of --scenes)",
        "frames": "key frames a scene, half a second apart",
        "sweeps": "LiDAR sweeps before each key frame, 0 to 9",
        "seed": "the world: equal seeds give equal bytes",
        "version": "v1.0-trainval, v1.0-mini or v1.0-test",
        "workers": "processes (default: one per core)",
    }
)
def simulate(
    c: Context,
    out: str | None = None,
    scenes: int = 8,
    val_scenes: str | None = None,
    frames: int = 4,
    sweeps: int = 4,
    seed: int = 0,
    version: str = "v1.0-trainval",
    workers: str | None = None,
) -> None:
    """Write a simulated world as a genuine nuScenes folder, which the unmodified devkit opens."""
    from studies.simulation import simulate_with_progress, summary_line

    folder = Path(_need(out, "--out", "a folder for the simulated data set"))
    val = _whole(val_scenes, "--val-scenes")
    summary = simulate_with_progress(
        folder,
        version=version,
        train_scenes=scenes,
        val_scenes=max(1, scenes // 4) if val is None else val,
        frames=frames,
        sweeps=sweeps,
        seed=seed,
        workers=_whole(workers, "--workers"),
    )
    console.print(summary_line(summary), soft_wrap=True)
    _next(f"./bevcask cache-frames --data-root {folder} --version {version} --cache CACHE --points")


@task(
    help={
        "data-root": "nuScenes folder (holds VERSION/, samples/, sweeps/)",
        "version": "v1.0-trainval, v1.0-mini, v1.0-test, ...",
        "cache": "folder of the stores; <cache>/frames is written",
        "split": "one split, such as train or mini_val (default: all of the version)",
        "points": "store the LiDAR clouds too, so that the teacher pass needs no data root",
        "sweeps": "LiDAR sweeps before the key frame in a stored cloud",
        "image-scale": "stored image size over file size, up to 1 (the files' own bytes)",
        "workers": "processes (default: one per core)",
        "scheduler": "a running Dask cluster, tcp://HOST:PORT",
        "json": "print a last line of JSON",
    }
)
def cache_frames(
    c: Context,
    data_root: str | None = None,
    version: str | None = None,
    cache: str | None = None,
    split: str | None = None,
    points: bool = False,
    sweeps: int = 9,
    image_scale: float = 1.0,
    workers: str | None = None,
    scheduler: str | None = None,
    json: bool = False,
) -> None:
    """Write the frame store: images, calibration, poses, annotations, depth labels and, if asked, clouds."""
    from pipeline.frames import FrameOptions
    from pipeline.frames import cache_frames as run

    root = _cache(cache, "a folder or URL for the stores")
    manifest = run(
        Path(_need(data_root, "--data-root", "a nuScenes folder")),
        _need(version, "--version", "a data set version such as v1.0-mini"),
        root,
        split=split,
        options=FrameOptions(image_scale=image_scale, points=points, sweeps=sweeps),
        workers=_whole(workers, "--workers"),
        scheduler=scheduler,
    )
    _close_store("frame store", manifest, frames_place(root), json)
    _next(f"./bevcask cache-teacher --cache {root} --name demo" + ("" if points else f" --data-root {data_root}"))


@task(
    help={
        "cache": "folder of the stores: needs <cache>/frames, writes <cache>/teachers/NAME",
        "name": "name of the teacher store",
        "teacher": "a shipped teacher",
        "checkpoint": "weights of your own teacher, as `train` writes them",
        "data-root": "nuScenes folder, needed where the frame store holds no points",
        "coverage": "cells to keep, e.g. gaussian(dilate=1)+footprint+confident+lidar+random(cells=200)+dense",
        "encoding": "cells (those of the coverage) or dense (every value)",
        "dtype": "float16, float32 or u8 (a scale per frame and channel)",
        "format": "webdataset or zarr",
        "capacity": "zarr only: room in its arrays, e.g. K=900,N=300 (default: measured first)",
        "sweeps": "LiDAR sweeps before the key frame, read from --data-root (default 9)",
        "workers": "processes (default: one per core)",
        "scheduler": "a running Dask cluster, tcp://HOST:PORT",
        "json": "print a last line of JSON",
    }
)
def cache_teacher(
    c: Context,
    cache: str | None = None,
    name: str | None = None,
    teacher: str = "demo",
    checkpoint: str | None = None,
    data_root: str | None = None,
    coverage: str = "gaussian",
    encoding: str = "cells",
    dtype: str = "float16",
    format: str = "webdataset",
    capacity: str = "",
    sweeps: str | None = None,
    workers: str | None = None,
    scheduler: str | None = None,
    json: bool = False,
) -> None:
    """Run a LiDAR teacher once over every frame and keep what students need of it."""
    from pipeline.teacher import TeacherOptions
    from pipeline.teacher import cache_teacher as run

    root = _cache(cache, "what cache-frames wrote")
    store = _need(name, "--name", "a name for the teacher store")
    manifest = run(
        root,
        store,
        teacher=teacher,
        checkpoint=_path(checkpoint),
        data_root=_path(data_root),
        options=TeacherOptions(
            coverage, encoding, dtype, format, _sizes(capacity, "--capacity"), _whole(sweeps, "--sweeps")
        ),
        workers=_whole(workers, "--workers"),
        scheduler=scheduler,
    )
    _close_store("teacher store", manifest, teacher_place(root, store), json)
    _next(f"./bevcask evaluate --cache {root} --teacher {store}")


@task(
    help={
        "cache": "folder of the stores",
        "token": "one frame: draw it to a PNG",
        "teacher": "the teacher store to draw, too (default: the only one)",
        "out": "the PNG (default: TOKEN.png)",
    }
)
def inspect(
    c: Context, cache: str | None = None, token: str | None = None, teacher: str | None = None, out: str | None = None
) -> None:
    """Tell what a cache holds; with --token draw one frame: six cameras and the bird's-eye view."""
    from studies.inspection import describe, draw_token

    root = _cache(cache, "a folder or URL of stores")
    if token is None:
        for renderable in describe(root):
            console.print(renderable, soft_wrap=isinstance(renderable, str))
        _next(f"./bevcask inspect --cache {root} --token TOKEN")
        return
    console.print(f"drawn to {draw_token(root, token, teacher, _path(out))}", soft_wrap=True)
    _next(f"./bevcask inspect --cache {root}")


@task(
    help={
        "recipe": "a shipped recipe (demo-student, demo-distilled, demo-teacher) or a TOML file",
        "cache": "folder of the stores",
        "run": "folder of the run",
        "resume": "go on from the run's last checkpoint",
        "threads": "torch threads (default: all cores)",
        "json": "print a last line of JSON",
    }
)
def train(
    c: Context,
    recipe: str | None = None,
    cache: str | None = None,
    run: str | None = None,
    resume: bool = False,
    threads: str | None = None,
    json: bool = False,
) -> None:
    """Train a detector from the stores as a recipe says: a teacher on points, a student on images."""
    from studies.training import train_run

    root, folder = _cache(cache, "a folder or URL of stores"), Path(_need(run, "--run", "a folder for the run"))
    wanted = _need(recipe, "--recipe", "a shipped recipe or a TOML file")
    summary = train_run(wanted, root, folder, resume=resume, threads=_whole(threads, "--threads"))
    console.print(f"trained: {summary['steps']} steps, weights in {summary['weights']}", soft_wrap=True)
    if json:
        _print_json(summary)
    _next(f"./bevcask evaluate --cache {root} --run {folder}")


@task(
    help={
        "cache": "folder of the stores",
        "run": "score a trained run",
        "teacher": "score a teacher store, by name",
        "submission": "score an official submission JSON",
        "split": "the split (default: the validation split, or the only one)",
        "export": "also write the predictions as an official submission JSON",
        "json": "print a last line of JSON",
    }
)
def evaluate(
    c: Context,
    cache: str | None = None,
    run: str | None = None,
    teacher: str | None = None,
    submission: str | None = None,
    split: str | None = None,
    export: str | None = None,
    json: bool = False,
) -> None:
    """Score a run, a teacher store or a submission with the official nuScenes metric, from the stores alone."""
    from studies.scoring import evaluate_source

    outcome = evaluate_source(
        _cache(cache, "a folder or URL of stores"),
        run=_path(run),
        teacher=teacher,
        submission=_path(submission),
        split=split,
        export=_path(export),
    )
    for renderable in outcome.renderables:
        console.print(renderable)
    _next(outcome.next_step)
    if json:
        _print_json(outcome.summary)


@task(help={"run": "folder of the demo", "json": "print the table as the last line, as JSON"})
def demo(c: Context, run: str = "runs/demo", json: bool = False) -> None:
    """The whole chain on a simulated world: cache, teach, train with and without distillation, score, report."""
    from studies.demo import run_demo

    result = run_demo(Path(run), console)
    _next(f"open {result.report}; then your own data: ./bevcask cache-frames --help")
    if json:
        _print_json(result.table())


@task(
    help={
        "part": "only one part (1: the main job)",
        "run": "folder for the work; claims that held at this commit are not run again",
        "json": "print a last line of JSON",
    }
)
def prove(c: Context, part: str | None = None, run: str = "runs/prove", json: bool = False) -> None:
    """Run every slow claim of the project for real: resumable, each with a time limit."""
    from studies.prove import run_claims

    results = run_claims(Path(run), _whole(part, "--part"), console)
    if json:
        _print_json([result.to_dict() for result in results])
    failed = [result.name for result in results if not result.held]
    if failed:
        raise BevcaskError(
            f"{len(failed)} of {len(results)} claims did not hold: {', '.join(failed)}; see {run}/results"
        )
