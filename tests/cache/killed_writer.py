"""Run as a process that a test kills: writes a store of `tests.cache.stores`, and gets stuck on the way."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from cache.shard_writer import HashedFile
from tests.cache.stores import plan_of, write_store


def main(root: Path, writes: int) -> None:
    """Says `stuck` and waits for its end before write number `writes`."""
    write = HashedFile.write

    def slow_write(self: HashedFile, data: bytes) -> int:
        nonlocal writes
        if writes == 0:
            print("stuck", flush=True)
            time.sleep(1000)
        writes -= 1
        time.sleep(0.02)
        written = write(self, data)
        self.flush()
        return written

    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote; only a power cut does
    HashedFile.write = slow_write  # type: ignore[method-assign]
    write_store(root, plan_of("frames"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
