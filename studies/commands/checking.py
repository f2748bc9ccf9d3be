"""Whether stores are what was committed: every byte, and, on request, what the teacher says today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context

from cache.errors import CorruptError
from studies.commands.command_line import cache_root, console, next_step, path_of, print_json, task, whole


@task(
    help={
        "cache": "folder or URL of the stores",
        "teacher": "only this teacher store (default: every store)",
        "digest": "manifest digest kept elsewhere, such as in a run's run.json; several with commas",
        "live": "run the teacher again on this many frames and compare",
        "checkpoint": "with --live: the weights, where the teacher is not a shipped one",
        "ensemble": "with --live: the further checkpoints of an ensemble, with commas between",
        "callable": "with --live: package.module:callable, where the store's teacher is one",
        "data-root": "with --live: the nuScenes folder, where the frame store holds no points",
        "json": "print a last line of JSON",
    }
)
def verify(
    c: Context,
    cache: str | None = None,
    teacher: str | None = None,
    digest: str | None = None,
    live: str | None = None,
    checkpoint: str | None = None,
    data_root: str | None = None,
    callable: str | None = None,
    ensemble: str = "",
    json: bool = False,
) -> None:
    """Check every byte of the stores against their manifests, and a manifest against a digest kept elsewhere.

    Example: ./bevcask verify --cache CACHE
    Next: what a finding says; mostly the command that wrote the store, which writes damaged shards again.
    """
    from studies.verification import verify_cache

    root = cache_root(cache, "a folder or URL of stores")
    count = whole(live, "--live")
    checks = verify_cache(root, teacher, digest, console)
    for check in checks:
        console.print(check.line, style="red" if check.findings else None, markup=False, soft_wrap=True)
        for finding in check.findings:
            console.print(f"{check.place}/{finding}", style="red", markup=False, soft_wrap=True)
    found = sum(len(check.findings) for check in checks)
    compared: list[Any] = []
    if count is not None and not found:
        from studies.live_check import run_live

        weights, data = path_of(checkpoint), path_of(data_root)
        more = tuple(Path(part) for part in ensemble.split(",") if part)
        compared = run_live(root, teacher, count, checkpoint=weights, data_root=data, callable=callable, ensemble=more)
        for result in compared:
            console.print(result.line, style=None if result.held else "red", markup=False, soft_wrap=True)
    good = not found and all(result.held for result in compared)
    if good:
        next_step(f"./bevcask inspect --cache {root}")
    if json:
        print_json({"stores": [c.to_dict() for c in checks], "live": [result.to_dict() for result in compared]})
    if not good:
        what = f"{found} findings" if found else "the teacher says something else today"
        raise CorruptError(f"{root}: {what}; each line above says what to do")
