"""The floor of the stream benchmark: pread of the same bytes and the bare decode calls on all cores, nothing else.

Processes rather than threads, so that no interpreter lock is in it; where each member lies is looked up before the
clock starts. What comes out is dropped: nothing is checked, joined, handed over or turned into a tensor.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from cache.codecs import decompress
from cache.fields import MAX_ARRAY_BYTES
from cache.store import FrameStore, Store, TeacherStore
from studies.benches.stream_batch import (
    CAMERAS,
    CELLS,
    DETECTIONS,
    TRUTH_FIELDS,
    Batch,
    Setting,
    draw_pictures,
    picture_array,
)
from studies.benches.stream_contender import Epoch
from trainer.order import epoch_order


@dataclass(frozen=True)
class Member:
    """Where a field's bytes lie, and what they are: file, offset, length, codec ("" for none), whether a JPEG."""

    path: str
    offset: int
    length: int
    codec: str
    jpeg: bool


@contextlib.contextmanager
def floor(frames: Path, teacher: Path, setting: Setting) -> Iterator[Epoch]:
    """Epochs in random order whose batches tell frame numbers only: each process reads and decodes its share, then says
    so."""
    members = _members(frames if setting.pictures else None, teacher, setting)
    context = multiprocessing.get_context("fork")
    pipes = []
    processes = []
    for worker in range(setting.workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(members, setting, worker, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)

    def epoch(number: int) -> Iterator[Batch]:
        for pipe in pipes:
            pipe.send(number)
        for pipe in pipes:
            yield {"frame": torch.from_numpy(pipe.recv())}

    try:
        yield epoch
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(None)
            process.join()


def _work(members: list[list[Member]], setting: Setting, worker: int, pipe: Connection) -> None:
    """One process: every epoch its share of the frames."""
    opened = {path: os.open(path, os.O_RDONLY) for path in {m.path for frame in members for m in frame}}
    out = picture_array(setting.pictures) if setting.pictures else np.empty(0, np.uint8)
    while (number := pipe.recv()) is not None:
        share = epoch_order(0, number, setting.frames)[worker :: setting.workers]
        for row in share:
            jpegs = []
            for member in members[row]:
                data = os.pread(opened[member.path], member.length, member.offset)
                if member.jpeg:
                    jpegs.append(data)
                elif member.codec:
                    decompress(member.codec, data, MAX_ARRAY_BYTES, member.path)
            if setting.pictures:
                draw_pictures(jpegs, setting.pictures, out)
        pipe.send(share)


def _members(frames: Path | None, teacher: Path, setting: Setting) -> list[list[Member]]:
    """Per frame, all that our reader reads of it."""
    wanted: list[tuple[Store, tuple[str, ...]]] = [(TeacherStore(teacher), CELLS + DETECTIONS)]
    if frames:
        wanted.append((FrameStore(frames), CAMERAS + TRUTH_FIELDS))
    out: list[list[Member]] = [[] for _ in range(setting.frames)]
    for store, names in wanted:
        fields = {spec.name: (column, spec.codec) for column, spec in enumerate(store.manifest.fields)}
        for row in range(setting.frames):
            shard = store.manifest.shards[int(store.index.shard[row])]
            for name in names:
                column, codec = fields[name]
                path = store.root.local_path(shard.file_of(column).name)
                offset, length = int(store.index.offset[row, column]), int(store.index.length[row, column])
                out[row].append(Member(str(path), offset, length, codec, name in CAMERAS))
        store.close()
    return out
