"""The teachers of a run: each one's store joined with the frame store by identity, and read for the terms that name it.

A store is opened once and a frame's fields are read once, however many terms share a teacher. Joining looks at the
index alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.errors import StoreError
from cache.layout import teacher_names, teacher_place
from cache.same_frames import require_same_frames
from cache.store import FrameStore, TeacherStore
from trainer.said import TeachersSaid
from trainer.said_reader import SaidReader, Wanted
from trainer.terms import JoinedTeacher, Spec, needs_by_term


def join_teachers(
    cache_root: str | Path, names: Sequence[str], frames: FrameStore, rows: Sequence[int]
) -> dict[str, JoinedTeacher]:
    """The stores of these names on the frame store's `rows`.

    Raises StoreError for a store that there is not, naming those there are, and as `require_same_frames`: every refusal
    names the store and both values.
    """
    out = {}
    for name in names:
        place = teacher_place(cache_root, name)
        try:
            store = TeacherStore(place)
        except StoreError:
            there = teacher_names(cache_root)  # lists every file: on failure only
            if name in there:
                raise
            raise StoreError(
                f"{place}: no store of the teacher {name!r} that the recipe names; this cache has teachers "
                f"{', '.join(there) or '(none)'}; run `cache-teacher --name {name}`, or name another one in [data] "
                "teacher or in the term's teacher"
            ) from None
        out[name] = JoinedTeacher(store, require_same_frames(frames, store, rows))
    return out


class TeachersReader:
    """Reads what every teacher said of frames. Safe to share between threads.

    readers: by the teacher's name; rows: by name, of each row of the frame store the teacher's row (-1: none).
    """

    def __init__(self, readers: Mapping[str, SaidReader], rows: Mapping[str, np.ndarray]) -> None:
        self.readers, self.rows = dict(readers), dict(rows)

    @classmethod
    def of(
        cls, specs: Sequence[Spec], frames: FrameStore, rows: Sequence[int], teachers: Mapping[str, JoinedTeacher]
    ) -> TeachersReader:
        """What these terms need, each of its teacher; rows: the run's, of the frame store."""
        needs = needs_by_term(specs)
        readers, found = {}, {}
        for name, teacher in teachers.items():
            mine = [needs[spec.known_as] for spec in specs if spec.teacher == name]
            if mine:
                readers[name] = SaidReader(teacher.store, frames, Wanted.by(mine, teacher.store))
                found[name] = rows_by_frame(len(frames), rows, teacher.rows)
        return cls(readers, found)

    def fields(self, name: str) -> list[str]:
        """Names of the fields that are read of a teacher's store; none where no term names it."""
        return self.readers[name].fields() if name in self.readers else []

    def read(self, frame_rows: Sequence[int], kept: Sequence[np.ndarray]) -> TeachersSaid:
        """What the teachers said of these rows of the frame store; kept: as `SaidReader.read` takes it."""
        return TeachersSaid(
            {
                name: reader.read(self.rows[name][list(frame_rows)].tolist(), frame_rows, kept)
                for name, reader in self.readers.items()
            }
        )


def rows_by_frame(frames: int, rows: Sequence[int], teacher_rows: Sequence[int]) -> np.ndarray:
    """(frames,) int64: the teacher's row of each row of the frame store, -1 for frames that are not in `rows`."""
    out = np.full(frames, -1, np.int64)
    out[list(rows)] = list(teacher_rows)
    return out
