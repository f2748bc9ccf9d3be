"""Keeps freed memory in the process on Linux, so that the next forward pass does not ask the kernel for it again.

glibc gives blocks of more than 32 MB back when they are freed, and those of a detector's maps are that large: every
pass then has its pages cleared and mapped anew. Of a full-size CenterPoint-pillar's pass that is 4 to 6 % of the
processor time in fp32 and 10 to 40 % in bf16 (`bench pillar-profile`). No value changes. What it costs: the process
stays as large as it once was.
"""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1  # bytes: mallopt takes an int


@functools.cache
def keep_freed_memory() -> bool:
    """From now on, in this process. False, and nothing done, where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
