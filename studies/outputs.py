"""Whether files can be written where they are asked for, told before minutes of work and not after them.

Takes the options with their paths; costs a look at each path, and writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cache.errors import ConfigError


def require_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None] | None = None) -> None:
    """Options -> files that they write, and that the command reads; None where an option was left out.

    Raises ConfigError, naming the option, for a path that is a URL, a folder or below a file, or whose folder can't be
    written into, and naming both options where two mean one file, of which the last would be left.
    """
    taken = {_real(path): option for option, path in (inputs or {}).items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        _require_place(option, path)
        other = taken.setdefault(_real(path), option)
        if other != option:
            raise ConfigError(f"{other} and {option} are one file, {path}; give each its own")


def _require_place(option: str, path: Path) -> None:
    if re.match(r"\w+:/", str(path)):
        raise ConfigError(f"{option} {path}: expected a local file; write it here and upload it")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give a file in it")
    folder = next(one for one in (path.absolute().parent, *path.absolute().parents) if one.exists())
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: {folder} is a file, expected a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: no permission to write into {folder}; choose another folder")


def _real(path: Path) -> str:
    return os.path.realpath(path)
