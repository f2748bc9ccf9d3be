"""A simulated data set and its frame store in one folder, made once and found again; made anew for another world."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from cache.files import read_json, write_json
from pipeline.frames import FrameOptions, cache_frames
from studies.demo import VERSION, DemoWorld
from studies.lock import alone_in
from studies.simulation import simulate_once


def simulated_cache(folder: Path, world: DemoWorld) -> Path:
    """<folder>/cache, whose frame store holds images, points and annotations of `world`; resumes what was begun. Two
    callers at a time wait for each other."""
    settings, data, cache = folder / "world.json", folder / "data", folder / "cache"
    with alone_in(folder, wait=True):
        if settings.is_file() and read_json(settings, "a simulated world's settings") != asdict(world):
            for old in (data, cache):
                shutil.rmtree(old, ignore_errors=True)
        write_json(settings, asdict(world))
        simulate_once(data, VERSION, world)
        options = FrameOptions(image_scale=world.image_scale, points=True, sweeps=world.sweeps)
        cache_frames(data, VERSION, cache, options=options)
    return cache
