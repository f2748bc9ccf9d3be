"""`./bevcask simulate`: the simulator with a progress bar."""

from __future__ import annotations

from pathlib import Path

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


def summary_line(summary: Summary) -> str:
    """What was written, in one line."""
    boxes = ", ".join(f"{name} {count}" for name, count in summary.boxes.items()) or "no annotations"
    size = f"{summary.scenes} scenes, {summary.frames} key frames, {summary.bytes / 1e6:.0f} MB"
    return f"{summary.version}: {size}; {boxes}"
