"""Whether memory stays flat while a run goes on: resident memory of a training and of its loader alone, over epochs.

Each in a process of its own that writes down its memory after every step. The first epoch is warm-up (allocators,
kernels, open files); from its end on the series is judged by two figures, both as shares of its median: how far the
last epoch's median lies above the second's, and the Theil-Sen slope times an epoch. FLAT bounds both. Writes
memory.png, which docs/benchmarks.md shows.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from cache.errors import BevcaskError, ConfigError
from models.detector import Detector
from studies.benches.resident import resident
from studies.benches.step_pair import PAIRS, make_pair, open_pair
from studies.demo import DemoWorld
from trainer.feed import Feed
from trainer.loader import Loader
from trainer.loop import train
from trainer.observer import StepReport
from trainer.plan import make_plan
from trainer.recipe import Recipe, make_recipe
from trainer.setup import make_training

ABOUT = "resident memory of a training and of its loader alone, after every step of some epochs, and a plot of it"
ROOT = Path(__file__).parents[2]
KINDS = ("loader", "trainer")
FLAT = 0.02  # of the median, an epoch


def run(
    work: Path,
    console: Console,
    *,
    scenes: int = 40,
    batch: int = 2,
    epochs: int = 3,
    threads: int = 2,
    plot: str = "",
) -> dict[str, Any]:
    """For `loader` and `trainer`: median_mb, grown (the last epoch's median over the second's, less 1), slope (a share
    of the median an epoch), flat, and the series, MB after every step.

    scenes: of two frames; threads: of the loader; plot: a PNG file (default: memory.png beside the figures).
    """
    if epochs < 3 or scenes < 2 or batch < 1:
        raise ConfigError(f"epochs {epochs}, scenes {scenes}, batch {batch}: expected 3, 2 and 1 at least")
    pair = dataclasses.replace(PAIRS["tiny"], world=DemoWorld(train_scenes=scenes, val_scenes=1))
    folder = work / f"world-{scenes}"
    made = make_pair(folder, pair, "cpu")
    per_epoch = -(-len(make_plan(made.recipe, made.cache).rows) // batch)
    out: dict[str, Any] = {"steps_an_epoch": per_epoch, "epochs": epochs, "bound": FLAT}
    for kind in KINDS:
        console.print(f"[dim]{kind}: {epochs} epochs of {per_epoch} steps ...[/dim]")
        series = _series(folder, kind, batch, epochs, threads)
        out[kind] = judged(series, per_epoch)
        found = out[kind]
        console.print(
            f"{kind}: {found['median_mb']:.0f} MB, last epoch over the second {found['grown']:+.2%}, slope "
            f"{found['slope']:+.2%} an epoch: {'flat' if found['flat'] else 'not flat'}"
        )
    draw(out, Path(plot) if plot else work / "memory.png")
    return out


def judged(series: list[int], per_epoch: int) -> dict[str, Any]:
    """Figures of resident bytes after each step, at least three epochs of `per_epoch` steps."""
    mb = np.array(series) / 1e6
    epochs = [mb[start : start + per_epoch] for start in range(0, len(mb), per_epoch)]
    later = mb[per_epoch:]
    median = float(np.median(later))
    grown = float(np.median(epochs[-1]) / np.median(epochs[1]) - 1)
    slope = theil_sen(later) * per_epoch / median
    return {
        "median_mb": round(median, 1),
        "peak_mb": round(float(mb.max()), 1),
        "grown": round(grown, 5),
        "slope": round(slope, 5),
        "flat": grown <= FLAT and slope <= FLAT,
        "mb": [round(float(value), 1) for value in mb],
    }


def theil_sen(values: np.ndarray) -> float:
    """The median slope, per place, between all pairs of places: single jumps and outliers do not move it."""
    i, j = np.triu_indices(len(values), 1)
    return float(statistics.median((values[j] - values[i]) / (j - i)))


def draw(out: dict[str, Any], path: Path) -> None:
    """Both series, the epochs' ends marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), dpi=110)
    for kind in KINDS:
        axes.plot(range(1, len(out[kind]["mb"]) + 1), out[kind]["mb"], label=kind)
    for epoch in range(1, out["epochs"]):
        axes.axvline(epoch * out["steps_an_epoch"], color="0.8", linewidth=1)
    axes.set(xlabel="step", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _series(folder: Path, kind: str, batch: int, epochs: int, threads: int) -> list[int]:
    command = [sys.executable, "-m", "studies.benches.memory", str(folder), kind, str(batch), str(epochs), str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BevcaskError(f"bench memory: the {kind}: {done.stderr.strip()[-500:]}")
    return [int(value) for value in json.loads(done.stdout.strip().splitlines()[-1])]


def _measured(folder: Path, kind: str, batch: int, epochs: int, threads: int) -> list[int]:
    """Resident bytes after every step, in this process."""
    made = open_pair(folder, PAIRS["tiny"])
    recipe = lasting(made.recipe, batch, epochs)
    out: list[int] = []
    if kind == "loader":
        plan = make_plan(recipe, made.cache)
        training = make_training(plan, torch.device("cpu"))
        feed = Feed(plan, cast(Detector, training.model))
        with Loader(feed.steps(), feed.build, threads=threads) as loader:
            out.extend(resident() for _ in loader)
        return out

    def listener(report: StepReport) -> None:
        out.append(resident())

    run_dir = folder / f"run-{batch}-{epochs}"
    shutil.rmtree(run_dir, ignore_errors=True)
    train(recipe, made.cache, run_dir, loader_threads=threads, threads=1, progress=listener, device="cpu")
    return out


def lasting(recipe: Recipe, batch: int, epochs: int) -> Recipe:
    """The recipe for so many epochs, with a checkpoint in each."""
    values = recipe.to_dict()
    values["train"] |= {"steps": None, "epochs": epochs, "batch": batch, "ema": 0.99, "checkpoint_every": 20}
    return make_recipe(values, "bench memory", recipe.name)


if __name__ == "__main__":
    _folder, _kind, _batch, _epochs, _threads = sys.argv[1:]
    print(json.dumps(_measured(Path(_folder), _kind, int(_batch), int(_epochs), int(_threads))))
