"""`./bevcask simulate`: the simulator with a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pipeline.progress import FrameProgress
from pipeline.simulator import simulate
from pipeline.simulator.write import Summary


def simulate_with_progress(
    out: Path,
    *,
    version: str,
    train_scenes: int,
    val_scenes: int,
    frames: int,
    sweeps: int,
    seed: int,
    between_images: int = 0,
    workers: int | None,
) -> Summary:
    """Writes the data set, telling of finished scenes. A test version has `train_scenes` scenes, all unlabelled."""
    scenes = {"train": train_scenes, "val": val_scenes}
    if version.endswith("test"):
        scenes = {"test": train_scenes}
    with FrameProgress("simulate", sum(scenes.values()) * frames) as progress:
        return simulate(
            out,
            version=version,
            scenes=scenes,
            frames=frames,
            sweeps=sweeps,
            seed=seed,
            between_images=between_images,
            workers=workers,
            progress=progress,
        )


class World(Protocol):
    """How large a simulated world is: scenes per split, key frames a scene, LiDAR sweeps before each."""

    @property
    def train_scenes(self) -> int: ...
    @property
    def val_scenes(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def sweeps(self) -> int: ...
    @property
    def seed(self) -> int: ...


def simulate_once(
    out: Path, version: str, world: World, *, between_images: int = 0, workers: int | None = None
) -> None:
    """Writes `world` at `out`; a folder that is there is taken for it."""
    if not out.is_dir():
        simulate_with_progress(
            out,
            version=version,
            train_scenes=world.train_scenes,
            val_scenes=world.val_scenes,
            frames=world.frames,
            sweeps=world.sweeps,
            seed=world.seed,
            between_images=between_images,
            workers=workers,
        )


def summary_line(summary: Summary) -> str:
    """What was written, in one line."""
    boxes = ", ".join(f"{name} {count}" for name, count in summary.boxes.items()) or "no annotations"
    size = f"{summary.scenes} scenes, {summary.frames} key frames, {summary.bytes / 1e6:.0f} MB"
    return f"{summary.version}: {size}; {boxes}"
