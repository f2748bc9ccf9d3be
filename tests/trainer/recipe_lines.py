"""The `cache-teacher` line in a shipped recipe's comments, read as the shell would."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from trainer.recipe import RECIPES


@dataclass(frozen=True)
class CacheLine:
    """Its options; empty texts for those left out."""

    name: str
    teacher: str
    coverage: str
    fields: str


def cache_line(recipe: str) -> CacheLine | None:
    """Of a recipe; None where its comments have none."""
    text = (RECIPES / f"{recipe}.toml").read_text()
    found = [line for line in text.splitlines() if line.startswith("#   ./bevcask cache-teacher ")]
    if not found:
        return None
    words = shlex.split(found[0].removeprefix("#"))
    given = dict(zip(words[2::2], words[3::2], strict=True))
    return CacheLine(given["--name"], given["--teacher"], given["--coverage"], given.get("--fields", ""))
