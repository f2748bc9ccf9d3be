"""A tiny world in which the documents' commands run: what stands for what they name, and the running itself.

Everything is made when a command first asks for it, and shared by all documents; each document has a folder of its own
to be called from. Tasks run in this process, through the same parser and with the same exit status as `./bevcask`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dask.distributed import LocalCluster
from invoke.program import Program

from cache.store import FrameStore
from models.build import load_weights
from models.export import inputs_of, made_up_frame
from pipeline.frames import FrameOptions, cache_frames
from pipeline.simulator import simulate
from pipeline.teacher import TeacherOptions, cache_teacher
from tests.cache import s3_server
from tests.document_checks import namespace
from tests.documents import ROOT, Block, Command, blocks
from tests.pipeline.foreign_networks import OpenPCDet
from tests.pipeline.foreign_query_networks import ObjectDgcnn
from tests.pipeline.test_adapters import save, stored
from tests.studies.test_recipes_run import SMALL_CAMERA
from tests.trainer.synthetic import write_frames
from trainer.recipe import load_recipe

VERSION = "v1.0-trainval"
STUDENT = {"preset": "lift-splat-tiny", **SMALL_CAMERA}
FEW = {"steps": 2, "epochs": None, "batch": 2, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2}


class World:
    """Places by name, made on first use; `ending` closes what must be closed."""

    def __init__(self, root: Path) -> None:
        self.root, self.ending = root, contextlib.ExitStack()

    @functools.cached_property
    def data(self) -> Path:
        """A nuScenes folder: a train and a val scene of two key frames, pictures between them too."""
        scenes, place = {"train": 1, "val": 1}, self.root / "nuscenes"
        simulate(place, version=VERSION, scenes=scenes, frames=2, sweeps=2, between_images=2, seed=0, workers=1)
        return place

    @functools.cached_property
    def cache(self) -> Path:
        """Its frames, with points, and what the demo's teacher said of them."""
        place = self.root / "cache"
        options = FrameOptions(image_scale=0.1, points=True, sweeps=2)
        cache_frames(self.data, VERSION, place, options=options, workers=1)
        cache_teacher(place, "demo", teacher="demo", options=TeacherOptions(), workers=1)
        return place

    @functools.cached_property
    def one_frame(self) -> Path:
        """A cache of one made-up frame, for teachers of full size."""
        write_frames(self.root / "one", frames=1, size=(32, 18))
        return self.root / "one"

    @functools.cached_property
    def student(self) -> Path:
        """A trained run."""
        with called_from(self.root, {}):
            done = run_task(["train", "--recipe", str(self.few("demo-distilled", self.root)),
                             "--cache", str(self.cache), "--run", "student"])  # fmt: skip
        assert done.code == 0, done
        return self.root / "student"

    @functools.cached_property
    def submission(self) -> Path:
        """A result file of the val split."""
        with called_from(self.root, {}):
            words = ["evaluate", "--cache", str(self.cache), "--teacher", "demo", "--export", "results.json"]
            done = run_task(words)
        assert done.code == 0, done
        return self.root / "results.json"

    @functools.cached_property
    def bucket(self) -> str:
        """The frames at an S3 server's, which the environment then leads to."""
        endpoint = self.ending.enter_context(s3_server.serving())
        patch = pytest.MonkeyPatch()
        self.ending.callback(patch.undo)
        for name, value in s3_server.environment(endpoint).items():
            patch.setenv(name, value)
        import s3fs

        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        files.put(f"{self.cache}/frames", "bucket/cask/frames", recursive=True)
        return "s3://bucket/cask"

    @functools.cached_property
    def scheduler(self) -> str:
        """A running Dask cluster of one worker."""
        cluster = LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=":0"
        )
        return str(self.ending.enter_context(cluster).scheduler_address)

    def few(self, recipe: str, folder: Path) -> Path:
        """A recipe's data and terms, with a small camera student and two steps of two frames."""
        path = folder / recipe
        values = load_recipe(path if path.is_file() else recipe).to_dict()
        values |= {"model": STUDENT, "train": {**values["train"], **FEW}}
        out = self.root / f"few-{Path(recipe).stem}.json"
        out.write_text(json.dumps(values))
        return out


@dataclass(frozen=True)
class Swap:
    """Words of a command that something else stands for. documents: where; none: everywhere."""

    said: str
    stands: Callable[[World, Path], str]
    why: str
    documents: tuple[str, ...] = ()


OWN_CACHE = ("docs/unlabelled.md",)
ONE_FRAME = ("docs/teachers.md",)
SWAPS = (
    Swap("/data/nuscenes", lambda w, f: str(w.data), "a simulated folder of nuScenes"),
    Swap("/data/cask", lambda w, f: str(f / "cask"), "a folder that the document's own commands fill"),
    Swap("CACHE", lambda w, f: str(f / "cache"), "the same", OWN_CACHE),
    Swap("CACHE", lambda w, f: str(w.one_frame), "one frame: its teachers are of full size", ONE_FRAME),
    Swap("CACHE", lambda w, f: str(w.cache), "frames with points, and the demo's teacher"),
    Swap("NAME", lambda w, f: "demo", "its teacher store"),
    Swap("s3://bucket/cask", lambda w, f: w.bucket, "a bucket of a server of the test's"),
    Swap("tcp://scheduler:8786", lambda w, f: w.scheduler, "a running cluster of one worker"),
    Swap("--recipe mine.toml", lambda w, f: f"--recipe {w.few('mine.toml', f)}", "a small student, two steps"),
    Swap("--recipe demo-unlabelled", lambda w, f: f"--recipe {w.few('demo-unlabelled', f)}", "the same"),
    Swap("--recipe bevdistill-r50", lambda w, f: f"--recipe {w.few('demo-distilled', f)}", "a student that fits here"),
    Swap("--nproc 8", lambda w, f: "--nproc 1", "one core"),
    Swap("--nproc-per-node 8", lambda w, f: "--nproc-per-node 1", "one core"),
    Swap("--run-dir RUN", lambda w, f: "--run-dir RUN-2", "RUN is there: the line before has made it"),
    Swap("--step 10", lambda w, f: "--step 0", "an epoch of two frames has one step"),
    Swap("--labelled-scenes 100", lambda w, f: "--labelled-scenes 1", "the world has one training scene"),
    Swap("--budget 60", lambda w, f: "--budget 0", "not an hour: nothing is begun, all is told"),
    Swap("--model cp-voxel-xs --against cp-voxel", lambda w, f: "--model cp-voxel-tiny-xxs --against cp-voxel-tiny-s",
         "networks that are counted and timed in seconds"),
    Swap("--teacher centerpoint-voxel-0.1 --checkpoint cbgs_voxel01.pth", lambda w, f: "--teacher demo",
         "a small network; the same words run in docs/teachers.md", ("README.md",)),
    Swap("--teacher centerpoint-voxel-0.1 --checkpoint /shared/cbgs_voxel01.pth", lambda w, f: "--teacher demo",
         "the same", ("docs/clusters.md",)),
    Swap("'FILE'", lambda w, f: "'cbgs_voxel01.pth'", "the checkpoint of the lines above it", ONE_FRAME),
    Swap("'NAME'", lambda w, f: "'centerpoint-voxel-0.1'", "its preset", ONE_FRAME),
)  # fmt: skip


def swapped(words: list[str], document: str, world: World, folder: Path) -> tuple[list[str], list[Swap]]:
    """The words to run, and what was put in; quoted texts are looked for inside words, all else as whole words."""
    used = []
    for swap in SWAPS:
        if swap.documents and document not in swap.documents:
            continue
        said = swap.said.split()
        if swap.said.startswith("'"):
            if any(swap.said in word for word in words):
                words = [word.replace(swap.said, swap.stands(world, folder)) for word in words]
                used.append(swap)
            continue
        for at in range(len(words) - len(said) + 1):
            if words[at : at + len(said)] == said:
                words = [*words[:at], *swap.stands(world, folder).split(), *words[at + len(said) :]]
                used.append(swap)
                break
    return words, used


@dataclass(frozen=True)
class Ran:
    """A command's exit status and what it said."""

    code: int
    out: str
    err: str


def run(command: Command, world: World, folder: Path) -> tuple[Ran, list[Swap]]:
    """Runs a command of a document from `folder`."""
    with called_from(folder, command.settings):
        words, used = swapped(command.arguments, command.document, world, folder)
        if words[0] == "./bevcask":
            ran = run_task(words[1:])
        elif words[:2] == ["python", "-c"]:
            ran = run_python(words[2], {})
        elif words[0] == "torchrun":
            ran = _run_apart([sys.executable, "-m", "torch.distributed.run", *words[1:]], folder)
        else:
            raise AssertionError(f"{command}: it is not known how to run {words[0]!r}; say so, or say why not")
    return ran, used


@contextlib.contextmanager
def called_from(folder: Path, settings: dict[str, str]) -> Iterator[None]:
    """In this folder, with this environment, on one core; what was imported from the folder is forgotten after it."""
    folder.mkdir(parents=True, exist_ok=True)
    before, environment, path, cores = Path.cwd(), dict(os.environ), list(sys.path), os.sched_getaffinity
    os.chdir(folder)
    os.environ.update(settings)
    os.environ["COLUMNS"] = "160"
    if settings.get("PYTHONPATH") == ".":
        sys.path.insert(0, str(folder))
    os.sched_getaffinity = lambda pid: {0}
    try:
        yield
    finally:
        os.sched_getaffinity = cores
        os.chdir(before)
        kept = s3_server.environment("").keys()  # the bucket's, which outlives this
        for name in os.environ.keys() - environment.keys() - kept:
            del os.environ[name]
        os.environ.update({name: value for name, value in environment.items() if name not in kept})
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{folder}/"):
                del sys.modules[name]


def run_task(words: list[str]) -> Ran:
    """A task, as `./bevcask` hands it to invoke."""
    return _told(lambda: Program(namespace=namespace()).run(["bevcask", *words]))


def run_python(code: str, names: dict[str, Any]) -> Ran:
    """A piece of Python with these names defined."""
    return _told(lambda: exec(compile(code, "<document>", "exec"), {"__name__": "__main__", **names}))


def _told(work: Callable[[], Any]) -> Ran:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            work()
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception as error:
            code = 1
            print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
    return Ran(code, out.getvalue(), err.getvalue())


def _run_apart(words: list[str], folder: Path) -> Ran:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def named_file(block: Block) -> str | None:
    """The file that the line above a block says it is: `... my_term.py`: in backticks, with a colon."""
    words = block.before.split("`")
    named = len(words) > 2 and words[-1] == ":" and "." in words[-2] and "/" not in words[-2]
    return words[-2] if named else None


def prepare(document: str, world: World, folder: Path) -> None:
    """What lies in the reader's folder before the first command: files that the document shows, or speaks of."""
    folder.mkdir(parents=True)
    for block in blocks(document):
        if name := named_file(block):
            (folder / name).write_text(block.text + "\n")
    if document in PREPARED:
        PREPARED[document](world, folder)


def _evaluation(world: World, folder: Path) -> None:
    for name in ("student", "plain", "distilled"):
        shutil.copytree(world.student, folder / "runs" / name)
    for name in ("results.json", "results_nusc.json"):
        shutil.copy(world.submission, folder / name)


def _models(world: World, folder: Path) -> None:
    points = np.random.default_rng(0).uniform([-50, -50, -2, 0, 0], [50, 50, 2, 255, 0], (300, 5))
    points.astype(np.float32).tofile(folder / "sweep.pcd.bin")


def _results(world: World, folder: Path) -> None:
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("images"))


def _teachers(world: World, folder: Path) -> None:
    save(stored(OpenPCDet("voxel")), folder / "cbgs_voxel01.pth", "openpcdet")
    save(stored(ObjectDgcnn("voxel")), folder / "teacher.pth", "mmdetection3d")
    with called_from(folder, {"PYTHONPATH": "."}):
        import my_teachers

        torch.save(my_teachers.PointCounter().state_dict(), folder / "weights.pt")


def _formats(world: World, folder: Path) -> None:
    options = TeacherOptions(format="zarr")
    cache_teacher(world.cache, "zarr", teacher="demo", options=options, workers=1)
    (folder / "cache" / "teachers").mkdir(parents=True)
    (folder / "cache" / "frames").symlink_to(world.cache / "frames")
    (folder / "cache" / "teachers" / "demo").symlink_to(world.cache / "teachers" / "zarr")


PREPARED: dict[str, Callable[[World, Path], None]] = {
    "docs/evaluation.md": _evaluation,
    "docs/format.md": _formats,
    "docs/models.md": _models,
    "docs/results.md": _results,
    "docs/teachers.md": _teachers,
}


def window_names(world: World, folder: Path) -> dict[str, Any]:
    """What training.md's lines on windows speak of."""
    from trainer.scene_windows import scene_windows

    frames, step = FrameStore(world.cache / "frames"), SimpleNamespace(entries=np.array([1, 0]))
    return {"scene_windows": scene_windows, "frames": frames, "rows": list(range(len(frames))), "step": step}


def program_names(world: World, folder: Path) -> dict[str, Any]:
    """What training.md's program is given: the student's inputs of a frame."""
    frame = made_up_frame(load_weights(folder / "RUN" / "model.safetensors"))
    names = ("images", "intrinsics", "camera_to_lidar")
    return {"torch": torch, **dict(zip(names, inputs_of(frame), strict=True))}
