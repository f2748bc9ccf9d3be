"""Where the real nuScenes keyframe lies, if it is there. It is not part of this repository (see its own licence)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_ROOT = Path(
    os.environ.get("BEVCASK_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data" / "nuscenes-keyframe-a"
)
needs_real_data = pytest.mark.skipif(
    not REAL_ROOT.is_dir(), reason=f"the real nuScenes keyframe is not beside the repository ({REAL_ROOT.name})"
)
