"""Run as a process that a test kills: writes the frame store of `tests.cache.stores`, slowly enough to be caught."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cache import tar_writer
from tests.cache.stores import frame_plan, write_store


def main(root: Path, pause_s: float) -> None:
    write = tar_writer._HashingFile.write

    def slow_write(self: tar_writer._HashingFile, data: bytes) -> int:
        time.sleep(pause_s)
        written = write(self, data)
        self._file.flush()
        return written

    tar_writer._HashingFile.write = slow_write  # type: ignore[method-assign]
    print("ready", flush=True)
    write_store(root, frame_plan())


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
