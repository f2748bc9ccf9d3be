"""What building asks of a recipe: one term as it stands there, and the teacher store that it reads.

A term may stand more than once, each time under a key of its own; the key names its parts in the log, its tensors in
checkpoints, and itself in errors. Where a term stands once, the key is the term's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache.store import TeacherStore


@dataclass(frozen=True)
class Spec:
    """A term's name, weight and options; key: what it is known by ("": its name); teacher: the name of its store;
    callable: the import path of a term of one's own, "" for a shipped one."""

    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    teacher: str = ""
    callable: str = ""

    @property
    def known_as(self) -> str:
        """The key, or the name where there is none."""
        return self.key or self.name


@dataclass(frozen=True)
class JoinedTeacher:
    """A teacher store whose frames are those of the frame store (`cache.same_frames`). rows: of every frame of the run,
    in the run's order, its row in the teacher store."""

    store: TeacherStore
    rows: Sequence[int]
