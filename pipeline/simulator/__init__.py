"""The simulator: writes a small world as a genuine nuScenes folder, which the unmodified devkit opens.

`simulate` plans scenes named from the official splits, records each in one task (in parallel with Dask), and
publishes the folder in one rename. Equal seeds give equal bytes, whatever the number of workers. About 0.5 s a
keyframe and core.
"""

from __future__ import annotations

from pipeline.simulator.write import Summary, plan_scenes, simulate

__all__ = ["Summary", "plan_scenes", "simulate"]
