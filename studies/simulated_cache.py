"""A simulated data set and its frame store in one folder, made once and found again; made anew for another world."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from cache.files import read_json, write_json
from pipeline.frames import FrameOptions, cache_frames
from studies.demo import VERSION, DemoWorld
from studies.simulation import simulate_with_progress


def simulated_cache(folder: Path, world: DemoWorld) -> Path:
    """<folder>/cache, whose frame store holds images, points and annotations of `world`; resumes what was begun."""
    settings = folder / "world.json"
    if settings.is_file() and read_json(settings, "a simulated world's settings") != asdict(world):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(settings, asdict(world))
    if not (folder / "data").is_dir():
        simulate_with_progress(
            folder / "data",
            version=VERSION,
            train_scenes=world.train_scenes,
            val_scenes=world.val_scenes,
            frames=world.frames,
            sweeps=world.sweeps,
            seed=world.seed,
            workers=None,
        )
    options = FrameOptions(image_scale=world.image_scale, points=True, sweeps=world.sweeps)
    cache_frames(folder / "data", VERSION, folder / "cache", options=options)
    return folder / "cache"
