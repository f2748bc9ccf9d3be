"""Where the stores of a cache lie: <cache>/frames, <cache>/teachers/<name>. A cache is a path or an fsspec URL."""

from __future__ import annotations

import re
from pathlib import Path

from cache.errors import ConfigError
from cache.manifest import MANIFEST
from cache.roots import join, open_root

TEACHER_NAME = re.compile(r"[a-z0-9_][a-z0-9_\-]{0,63}")


def frames_place(cache: str | Path) -> str | Path:
    """The frame store's place."""
    return join(cache, "frames")


def teacher_place(cache: str | Path, name: str) -> str | Path:
    """A teacher store's place; ConfigError for a name that is no plain word."""
    if not TEACHER_NAME.fullmatch(name):
        raise ConfigError(f"teacher store {name!r}: expected 1 to 64 lower-case letters, digits, '-' and '_'")
    return join(cache, "teachers", name)


def teacher_names(cache: str | Path) -> list[str]:
    """Names of the committed teacher stores, sorted."""
    stored = (name.split("/") for name in open_root(join(cache, "teachers")).sizes())
    found = {parts[0] for parts in stored if len(parts) == 2 and parts[1] == MANIFEST}
    return sorted(name for name in found if TEACHER_NAME.fullmatch(name))
