"""Stores over time: new scenes, two clusters' stores into one, another encoding, files that nobody owns."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context

from cache.errors import ConfigError
from cache.layout import frames_place, teacher_place
from cache.local_cache import use_local_cache
from studies.commands.command_line import (
    cache_root,
    close_store,
    cluster_of,
    console,
    letter_sizes,
    need,
    next_step,
    print_json,
    task,
    whole,
)


@task(
    help={
        "cache": "folder or URL of the stores; <cache>/frames is extended",
        "data-root": "nuScenes folder with more scenes (holds VERSION/, samples/, sweeps/)",
        "version": "the version that the store holds, such as v1.0-trainval",
        "split": "only scenes of one split (default: all of the version)",
        "workers": "processes (default: one per core)",
        "scheduler": "a running Dask cluster, tcp://HOST:PORT",
        "cluster": "slurm: start workers as SLURM jobs through dask-jobqueue (default: processes on this machine)",
        "performance-report": "write Dask's report of the run to this HTML file",
        "json": "print a last line of JSON",
    }
)
def extend(
    c: Context,
    cache: str | None = None,
    data_root: str | None = None,
    version: str | None = None,
    split: str | None = None,
    workers: str | None = None,
    scheduler: str | None = None,
    cluster: str = "local",
    performance_report: str | None = None,
    json: bool = False,
) -> None:
    """Add scenes that the frame store does not have yet, with the options it was made with; its shards stay.

    Example: ./bevcask extend --cache CACHE --data-root /data/nuscenes --version v1.0-trainval
    Next: ./bevcask cache-teacher for each teacher store, as it says.
    """
    from pipeline.extend import behind, extend_frames
    from studies.upkeep import extension_summary

    root = cache_root(cache, "a cache that cache-frames wrote")
    extension = extend_frames(
        root,
        Path(need(data_root, "--data-root", "a nuScenes folder")),
        need(version, "--version", "the data set version that the store holds"),
        split=split,
        workers=whole(workers, "--workers", 1),
        cluster=cluster_of(scheduler, cluster, performance_report),
    )
    waiting = behind(root, data_root)
    added = f"{extension.scenes} scenes, {extension.frames} frames" if extension.frames else "nothing new"
    console.print(f"added: {added}")
    for row in waiting:
        console.print(f"teacher store {row.name} lacks {row.missing} frames", soft_wrap=True)
    then = [row.command for row in waiting] or [f"./bevcask inspect --cache {root}"]
    more = extension_summary(extension, waiting)
    close_store("frame store", extension.manifest, frames_place(root), json, then, more)


@task(
    help={
        "cache": "the new cache, a folder or URL",
        "sources": "two or more caches, with commas between; their order is the order of shards",
        "teachers": "teacher stores to merge, with commas between (default: all)",
        "copy": "copy shards where they could be hard links (always so between disks and with URLs)",
        "json": "print a last line of JSON",
    }
)
def merge(
    c: Context,
    cache: str | None = None,
    sources: str | None = None,
    teachers: str | None = None,
    copy: bool = False,
    json: bool = False,
) -> None:
    """Join stores that several clusters wrote: shards unchanged under new numbers, one manifest.

    Example: ./bevcask merge --cache CACHE --sources /data/one,/data/other
    Next: ./bevcask verify --cache CACHE.
    """
    from cache.merge import merge_caches
    from studies.inspection import closing_summary
    from studies.upkeep import merge_lines

    out = cache_root(cache, "a folder or URL for the merged stores")
    parts = [part for part in need(sources, "--sources", "caches with commas between").split(",") if part]
    manifests = merge_caches(
        out,
        [part if "://" in part else Path(part) for part in parts],
        teachers=None if teachers is None else [name for name in teachers.split(",") if name],
        copy=copy,
    )
    for line in merge_lines(manifests):
        console.print(line, soft_wrap=True)
    next_step(f"./bevcask inspect --cache {out}")
    if json:
        print_json({name: closing_summary(manifest) for name, manifest in manifests.items()})


@task(
    help={
        "cache": "folder or URL of the stores",
        "name": "the teacher store that is read",
        "out": "name of the new teacher store beside it",
        "format": "webdataset or zarr (default: as it is)",
        "encoding": "cells or dense (default: as it is)",
        "dtype": "float16, float32 or u8 (default: as it is)",
        "coverage": "cells to keep, as for cache-teacher; those stored, or fewer (default: as it is)",
        "capacity": "zarr only: room in its arrays, e.g. K=900,N=300 (default: counted first)",
        "workers": "processes (default: one per core)",
        "scheduler": "a running Dask cluster, tcp://HOST:PORT",
        "cluster": "slurm: start workers as SLURM jobs through dask-jobqueue (default: processes on this machine)",
        "performance-report": "write Dask's report of the run to this HTML file",
        "local-cache": "a folder through which stores at URLs are read",
        "local-cache-limit": "its size, such as 200GB; the least recently used shards make room",
        "json": "print a last line of JSON",
    }
)
def re_encode(
    c: Context,
    cache: str | None = None,
    name: str | None = None,
    out: str | None = None,
    format: str = "",
    encoding: str = "",
    dtype: str = "",
    coverage: str = "",
    capacity: str = "",
    workers: str | None = None,
    scheduler: str | None = None,
    cluster: str = "local",
    performance_report: str | None = None,
    local_cache: str | None = None,
    local_cache_limit: str | None = None,
    json: bool = False,
) -> None:
    """Write a teacher store again in another encoding, coverage or format, without running the teacher.

    Example: ./bevcask re-encode --cache CACHE --name demo --out demo-u8 --dtype u8
    Next: ./bevcask evaluate --cache CACHE --teacher demo-u8.
    """
    from pipeline.reencode import ReencodeOptions, reencode

    use_local_cache(local_cache, local_cache_limit)
    root = cache_root(cache, "a cache with a teacher store")
    store = need(out, "--out", "a name for the new teacher store")
    manifest = reencode(
        root,
        need(name, "--name", "the teacher store to read"),
        store,
        options=ReencodeOptions(format, encoding, dtype, coverage, letter_sizes(capacity, "--capacity")),
        workers=whole(workers, "--workers", 1),
        cluster=cluster_of(scheduler, cluster, performance_report),
    )
    then = f"./bevcask evaluate --cache {root} --teacher {store}"
    close_store("teacher store", manifest, teacher_place(root, store), json, [then])


@task(
    help={
        "cache": "folder or URL of the stores",
        "delete": "delete what is listed, but for what is kept",
        "older-than": "minutes that a file must have lain untouched: younger ones may be a live writer's",
        "json": "print a last line of JSON",
    }
)
def gc(
    c: Context, cache: str | None = None, delete: bool = False, older_than: float = 60.0, json: bool = False
) -> None:
    """List, and with --delete remove, files that no manifest or plan owns; unfinished stores are left alone.

    Example: ./bevcask gc --cache CACHE
    Next: ./bevcask gc --cache CACHE --delete.
    """
    from cache.orphans import find_orphans, remove_orphans
    from studies.upkeep import orphan_lines, orphan_summary

    root = cache_root(cache, "a folder or URL of stores")
    if not older_than >= 0:
        raise ConfigError(f"--older-than {older_than} is out of range, expected minutes of 0 or more")
    orphans = find_orphans(root, older_than_minutes=older_than)
    if delete:
        remove_orphans(root, orphans)
    for line in orphan_lines(orphans, delete):
        console.print(line, markup=False, soft_wrap=True)
    if any(not orphan.kept for orphan in orphans) and not delete:
        next_step(f"./bevcask gc --cache {root} --delete")
    else:
        next_step(f"./bevcask inspect --cache {root}")
    if json:
        print_json(orphan_summary(orphans, delete))
