"""Which ranged reads bring many members of one file: neighbours come together, across small gaps.

Over a network a read costs milliseconds whatever its size, and on a cold disk a hundred microseconds; bytes between two
members that nobody asked for cost far less. One read takes at most `SPAN` bytes, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterable

GAP = 64 << 10  # bytes read and dropped rather than asked for apart: under a millisecond of any network
SPAN = 8 << 20


def spans(members: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, list[int]]]:
    """(offset, length, number) -> (start, end, numbers) of the reads that bring them, across gaps of up to GAP bytes.
    A read grows beyond SPAN bytes only for a member that is larger by itself."""
    out: list[tuple[int, int, list[int]]] = []
    start = end = -1
    for offset, length, number in sorted(members):
        if out and offset <= end + GAP and max(end, offset + length) - start <= SPAN:
            end = max(end, offset + length)
            out[-1][2].append(number)
            out[-1] = start, end, out[-1][2]
        else:
            start, end = offset, offset + length
            out.append((start, end, [number]))
    return out
