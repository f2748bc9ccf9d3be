"""Frames per second into torch tensors, in random order: our stores against four other readers, and against the floor.

All hold the same content, call the same image decoder and have the same number of workers. A turn is one contender:
opened, one epoch that is not counted, then whole epochs against the clock. Turns go round: every contender once, then
all again; the median of the rounds counts. Before that each contender's epoch is compared with ours, frame by frame.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cache.errors import BevcaskError, ConfigError
from cache.store import FrameStore, TeacherStore
from pipeline.engine import default_workers
from studies.benches.stream_batch import Sample, Setting, student_pictures
from studies.benches.stream_contender import Epoch, Peer, Turn, delivered, timed
from studies.benches.stream_data import Data, World, prepare
from studies.benches.stream_floor import floor
from studies.benches.stream_ours import opened, samples

ABOUT = "frames per second into torch tensors, against mosaicml-streaming, litdata, webdataset, npz and the floor"
STUDENT = (704, 256)  # the input of the preset lift-splat-r50
BATCH = 8
EPOCHS = {"fields_only": 4, "whole_frames": 1, "image_scale": 1}
OURS, FLOOR = "ours", "floor"


def run(
    work: Path,
    console: Console,
    *,
    rounds: int = 3,
    workers: int | None = None,
    peers: str | None = None,
    require_peers: bool = False,
    scenes: int = World.scenes,
    frames: int = World.frames,
    copies: int = World.copies,
    fields: int = World.fields,
) -> dict[str, Any]:
    """`fields_only` and `whole_frames`, each with ours_frames_per_s, peers {name: frames/s or None}, ratio_to_best_peer
    and ratio_to_floor; and `image_scale`: ours on pictures that were scaled when they were cached.

    rounds: turns of every contender. workers: processes or threads that load (default: one per core). peers: names with
    commas between (default: all; "none" for none). require_peers: BevcaskError where one is not installed. The rest is
    the size of the simulated world.
    """
    from studies.benches.peers import PEERS
    from studies.benches.peers.install import provide

    wanted = list(PEERS) if peers is None else [name for name in str(peers).split(",") if name not in ("", "none")]
    unknown = sorted(set(wanted) - set(PEERS))
    if unknown or rounds < 1:
        raise ConfigError(f"peers {unknown}, rounds {rounds}: expected peers of {', '.join(PEERS)}, at least one round")
    missing = {name: why for name in wanted if (why := provide(PEERS[name], work / "peers", console))}
    for name, why in missing.items():
        console.print(f"[yellow]{name}: {why}[/yellow]", soft_wrap=True)
    if missing and require_peers:
        raise BevcaskError(f"peers missing: {', '.join(missing)}; the lines above say how to install them")
    world = World(scenes=scenes, frames=frames, copies=copies, fields=fields)
    data = prepare(work, world, console, workers)
    present = [PEERS[name] for name in wanted if name not in missing]
    count = default_workers() if workers is None else workers
    out: dict[str, Any] = {"missing": missing, "content": _content(data)}
    for setting in _settings(data, world, count):
        contenders = present if setting.name != "image_scale" else []
        console.print(f"[dim]{setting.name}: {setting.frames} frames, {rounds} rounds ...[/dim]")
        figures = _measure(data, setting, [peer() for peer in contenders], rounds, console)
        out[setting.name] = _summary(figures, list(missing) if contenders else [], setting)
    console.print(_table(out))
    return out


def _settings(data: Data, world: World, workers: int) -> list[Setting]:
    frames = FrameStore(data.frames)
    camera = frames.frame(0).cameras[0]
    scaled = FrameStore(data.scaled).frame(0).cameras[0]
    whole = len(frames)
    return [
        Setting("fields_only", world.fields, BATCH, workers),
        Setting("whole_frames", whole, BATCH, workers, student_pictures((camera.width, camera.height), STUDENT)),
        Setting("image_scale", whole, BATCH, workers, student_pictures((scaled.width, scaled.height), STUDENT)),
    ]


def _measure(
    data: Data, setting: Setting, peers: Sequence[Peer], rounds: int, console: Console
) -> dict[str, list[Turn]]:
    """Every round's turn, by contender."""
    frames = data.scaled if setting.name == "image_scale" else data.frames
    teacher = data.fields if setting.name == "fields_only" else data.teacher
    written = data.fields.parent / "peers" / (data.fields.name if setting.name == "fields_only" else setting.name)
    folders = {peer.name: written / peer.name for peer in peers}
    expected, order = delivered(opened(frames, teacher, setting), setting)
    if sorted(order) != list(range(setting.frames)) or order == sorted(order):
        raise BevcaskError(f"ours: an epoch of {setting.name} is no random order of {setting.frames} frames")
    for peer in peers:
        _write(peer, folders[peer.name], samples(frames, teacher, setting), setting)
        found, order = delivered(peer.open(folders[peer.name], setting), setting)
        if found != expected or order == sorted(order):
            differ = sum(found.get(frame) != value for frame, value in expected.items())
            raise BevcaskError(f"{peer.name}: {differ} of {setting.frames} frames differ from ours, or are in order")
    epochs = EPOCHS[setting.name]
    turns: dict[str, Callable[[], AbstractContextManager[Epoch]]] = {
        FLOOR: lambda: floor(frames, teacher, setting),
        OURS: lambda: opened(frames, teacher, setting),
    }
    for peer in peers:
        turns[peer.name] = partial(peer.open, folders[peer.name], setting)
    figures: dict[str, list[Turn]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, open_it in turns.items():
            figures[name].append(timed(open_it(), setting, name, epochs))
            console.print(f"[dim]  {name}: {figures[name][-1].frames_per_s:.1f} frames/s[/dim]")
    return figures


def _write(peer: Peer, folder: Path, content: Iterable[Sample], setting: Setting) -> None:
    """The peer's own files, unless an earlier run left them whole."""
    mark = folder.with_name(f"{folder.name}.done")
    if mark.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        peer.write(folder, content, setting)
    mark.touch()


def _summary(figures: dict[str, list[Turn]], missing: Sequence[str], setting: Setting) -> dict[str, Any]:
    median = {name: statistics.median(turn.frames_per_s for turn in turns) for name, turns in figures.items()}
    cpu = {name: [turn.cpu_us for turn in turns if turn.cpu_us is not None] for name, turns in figures.items()}
    peers = {name: value for name, value in median.items() if name not in (OURS, FLOOR)}
    best = max(peers, key=lambda name: peers[name]) if peers else None
    return {
        "ours_frames_per_s": round(median[OURS], 2),
        "peers": {name: round(value, 2) for name, value in peers.items()} | dict.fromkeys(missing),
        "best_peer": best,
        "ratio_to_best_peer": round(median[OURS] / peers[best], 4) if best else None,
        "floor_frames_per_s": round(median[FLOOR], 2),
        "ratio_to_floor": round(median[OURS] / median[FLOOR], 4),
        "cpu_us_per_frame": {name: round(statistics.median(values)) for name, values in cpu.items() if values},
        "rounds": {name: [round(turn.frames_per_s, 2) for turn in turns] for name, turns in figures.items()},
        "frames": setting.frames,
        "batch": setting.batch,
        "workers": setting.workers,
        "epochs_a_turn": EPOCHS[setting.name],
    }


def _content(data: Data) -> dict[str, Any]:
    """What a frame holds, in bytes on disk and in cells, so that the figures can be judged."""
    out: dict[str, Any] = {
        "fabricated": "teacher fields (256 x 128 x 128, gaussian cells); frames repeat under new tokens"
    }
    for name, root in (("pictures", data.frames), ("scaled_pictures", data.scaled)):
        store = FrameStore(root)
        camera = store.frame(0).cameras[0]
        sizes = [len(store.image(row, "CAM_FRONT")) for row in range(min(24, len(store)))]
        out[name] = {"width": camera.width, "height": camera.height, "jpeg_bytes": round(statistics.mean(sizes))}
    fields = TeacherStore(data.fields)
    rows = range(min(64, len(fields)))
    out["cells"] = round(statistics.mean(len(fields.cells(row)) for row in rows))
    out["teacher_bytes"] = round(
        sum(file.size for shard in fields.manifest.shards for file in shard.files) / len(fields)
    )
    return out


def _table(out: dict[str, Any]) -> Table:
    table = Table("", "fields only", "whole frames", "scaled when cached", title="frames per second")
    settings = [out[name] for name in EPOCHS]
    rows = [FLOOR, OURS, *dict.fromkeys(name for setting in settings for name in setting["peers"])]
    for name in rows:
        values = [
            s["ours_frames_per_s"]
            if name == OURS
            else s["floor_frames_per_s"]
            if name == FLOOR
            else s["peers"].get(name)
            for s in settings
        ]
        table.add_row(name, *("" if value is None else f"{value:.1f}" for value in values))
    for label, key in (("ours / best peer", "ratio_to_best_peer"), ("ours / floor", "ratio_to_floor")):
        table.add_row(label, *("" if s[key] is None else f"{s[key]:.2f}" for s in settings))
    return table
