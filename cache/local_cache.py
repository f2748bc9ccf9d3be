"""The local cache that stores at remote roots are read through, where one is asked for.

Asked by environment, so that it reaches Dask workers, torchrun ranks and DataLoader processes as well:
BEVCASK_LOCAL_CACHE (a folder) and BEVCASK_LOCAL_CACHE_LIMIT (bytes, `200GB`). Local roots are read where they are.
"""

from __future__ import annotations

import os
from pathlib import Path

from cache.errors import ConfigError
from cache.read_through import ReadThrough, bytes_of
from cache.roots import LocalRoot, Root

FOLDER, LIMIT = "BEVCASK_LOCAL_CACHE", "BEVCASK_LOCAL_CACHE_LIMIT"


def read_through(root: Root) -> Root:
    """`root`, through the local cache where the environment names one and the root is remote."""
    folder = os.environ.get(FOLDER)
    if not folder or isinstance(root, (LocalRoot, ReadThrough)):
        return root
    if not os.environ.get(LIMIT):
        raise ConfigError(f"{FOLDER} is set and {LIMIT} is not; give --local-cache-limit, such as 200GB")
    return ReadThrough(root, Path(folder), bytes_of(os.environ[LIMIT]))


def use_local_cache(folder: str | None, limit: str | None) -> None:
    """Sets the local cache for this process and those it starts; ConfigError for a limit without a folder and where the
    limit is no size."""
    if folder is None and limit is None:
        return
    if folder is None or limit is None:
        raise ConfigError("--local-cache and --local-cache-limit go together: a folder, and a size such as 200GB")
    bytes_of(limit)
    os.environ[FOLDER], os.environ[LIMIT] = str(Path(folder).absolute()), limit
