"""What the upkeep tasks print: estimates, orphans, extended and merged stores, as tables and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from cache.manifest import Manifest
from cache.orphans import Orphan
from pipeline.cost import Cost
from pipeline.extend import Behind, Extension
from studies.inspection import closing_summary

SHOWN_ORPHANS = 20


def cost_tables(cost: Cost) -> list[RenderableType]:
    """One table a store, bytes by field, then a line of totals."""
    out: list[RenderableType] = []
    for name, store in cost.stores.items():
        table = Table(title=f"{name}: {cost.frames} frames of {cost.scenes} scenes", title_justify="left")
        table.add_column("field")
        table.add_column("bytes a frame", justify="right")
        table.add_column("total", justify="right")
        for field, size in store.bytes_per_frame.items():
            table.add_row(field, f"{size:,.0f}", size_text(size * cost.frames))
        table.add_row(
            "all", f"{sum(store.bytes_per_frame.values()):,.0f}", size_text(cost.bytes_of(name)), style="bold"
        )
        out += [
            table,
            f"{cost.shards} shards; {1e3 * store.seconds_per_frame:.1f} ms a frame, so about "
            f"{time_text(cost.seconds_of(name))} with {cost.workers} workers (probed on {cost.probed} frames)",
        ]
    return out


def size_text(size: float) -> str:
    """Bytes in the unit that leaves one to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def time_text(seconds: float) -> str:
    """A duration in the words of a plan."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def orphan_lines(orphans: list[Orphan], removed: bool) -> list[str]:
    """The orphans, largest first, and a line of totals."""
    shown = sorted(orphans, key=lambda orphan: (bool(orphan.kept), -orphan.size, orphan.store, orphan.name))
    lines = [
        f"{orphan.store}/{orphan.name}: {size_text(orphan.size)}, {orphan.what}"
        + (f" (kept: {orphan.kept})" if orphan.kept else "")
        for orphan in shown[:SHOWN_ORPHANS]
    ]
    if len(shown) > SHOWN_ORPHANS:
        lines.append(f"... and {len(shown) - SHOWN_ORPHANS} more; --json lists them all")
    gone = [orphan for orphan in orphans if not orphan.kept]
    size = size_text(sum(orphan.size for orphan in gone))
    return [*lines, f"{len(gone)} files, {size}, {'deleted' if removed else 'that no manifest or plan owns'}"]


def orphan_summary(orphans: list[Orphan], removed: bool) -> dict[str, Any]:
    """The same as plain values."""
    gone = [orphan for orphan in orphans if not orphan.kept]
    return {
        "files": len(gone),
        "bytes": sum(orphan.size for orphan in gone),
        "deleted": removed,
        "orphans": [{"file": f"{o.store}/{o.name}", "bytes": o.size, "what": o.what, "kept": o.kept} for o in orphans],
    }


def merge_lines(manifests: Mapping[str, Manifest]) -> list[str]:
    """One line a merged store."""
    return [
        f"{name}: {summary['frames']} frames in {summary['shards']} shards, {size_text(summary['bytes'])}, "
        f"manifest digest {summary['digest']}"
        for name, summary in ((name, closing_summary(manifest)) for name, manifest in manifests.items())
    ]


def extension_summary(extension: Extension, behind: list[Behind]) -> dict[str, Any]:
    """What was added and what is to be continued, as plain values."""
    return {
        "added_scenes": extension.scenes,
        "added_frames": extension.frames,
        "continue": [{"name": row.name, "missing": row.missing, "command": row.command} for row in behind],
    }
