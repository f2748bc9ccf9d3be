"""One stored file read once, front to back, and hashed on the way: a check of its content costs no second read.

Holds one piece of `PIECE` bytes and what a caller takes. Takes a root and a name; for files of any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cache.errors import CorruptError
from cache.roots import Root

PIECE = 4 << 20


class FileStream:
    """The first `size` bytes of an object. advance: called with the number of bytes of every piece that was read."""

    def __init__(self, root: Root, name: str, size: int, advance: Callable[[int], None]) -> None:
        self._root, self._name, self._advance = root, name, advance
        self._digest = hashlib.sha256()
        self._piece, self._at, self._read = memoryview(b""), 0, 0
        self.size = size

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._read - len(self._piece) + self._at

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return self.size - self.position

    def take(self, length: int) -> bytes:
        """The next bytes, fewer at the end. Raises CorruptError where the file turns out shorter than it was."""
        length = min(length, self.left)
        parts = []
        while length > 0:
            part = self._next(length)
            parts.append(part)
            length -= len(part)
        return parts[0].tobytes() if len(parts) == 1 else b"".join(parts)

    def last(self, length: int) -> bytes:
        """The last bytes, ahead of their turn."""
        return self._root.read_range(self._name, self.size - length, length)

    def rest_is_zero(self) -> bool:
        """Whether every byte from here on is zero; stops at the first that is not."""
        while self.left > 0:
            part = self._next(self.left)
            if part.tobytes().count(0) != len(part):
                return False
        return True

    def hexdigest(self) -> str:
        """The sha256 of the whole file; reads what was not taken."""
        while self.left > 0:
            self._next(self.left)
        return self._digest.hexdigest()

    def _next(self, length: int) -> memoryview:
        if self._at == len(self._piece):
            wanted = min(PIECE, self.size - self._read)
            data = self._root.read_range(self._name, self._read, wanted)
            if len(data) != wanted:
                raise CorruptError(f"{self._name}: ends after {self._read + len(data)} of {self.size} bytes")
            self._digest.update(data)
            self._advance(len(data))
            self._piece, self._at, self._read = memoryview(data), 0, self._read + len(data)
        part = self._piece[self._at : self._at + length]
        self._at += len(part)
        return part
