from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.scene_windows import ABSENT, scene_windows

FRAMES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=40)


def slow(
    frames: list[tuple[int, int]], past: int, spacing: int, start: str, may: list[bool] | None = None
) -> list[list[int]]:
    """Frame by frame: those of its scene that came before it, walked back."""
    out = []
    for own, (scene, time) in enumerate(frames):
        before = sorted(
            (t, i) for i, (s, t) in enumerate(frames) if s == scene and (t, i) < (time, own) and (may is None or may[i])
        )
        moments = [i for _, i in before[::-1]][spacing - 1 :: spacing][:past][::-1]
        fill = ABSENT if start == "absent" else moments[0] if moments else own
        out.append([fill] * (past - len(moments)) + moments)
    return out


@given(FRAMES, st.integers(0, 4), st.integers(1, 3), st.sampled_from(["absent", "repeat"]))
def test_windows_are_those_of_the_slow_reference(
    frames: list[tuple[int, int]], past: int, spacing: int, start: str
) -> None:
    scene, time = (np.array([frame[i] for frame in frames], np.int64) for i in (0, 1))
    found = scene_windows(scene, time, past, spacing=spacing, start=start)  # type: ignore[arg-type]
    assert found.shape == (len(frames), past)
    assert found.tolist() == slow(frames, past, spacing, start)


@given(FRAMES, st.integers(0, 4), st.integers(1, 3), st.sampled_from(["absent", "repeat"]), st.integers(0, 2**40 - 1))
def test_some_frames_may_have_a_past_and_be_none(
    frames: list[tuple[int, int]], past: int, spacing: int, start: str, bits: int
) -> None:
    scene, time = (np.array([frame[i] for frame in frames], np.int64) for i in (0, 1))
    may = [bool(bits >> i & 1) for i in range(len(frames))]
    found = scene_windows(scene, time, past, spacing=spacing, start=start, may_be_past=np.array(may, bool))  # type: ignore[arg-type]
    assert found.tolist() == slow(frames, past, spacing, start, may)


@given(FRAMES, st.integers(1, 4), st.integers(1, 3), st.sampled_from(["absent", "repeat"]))
def test_a_window_never_leaves_its_scene_nor_looks_ahead(
    frames: list[tuple[int, int]], past: int, spacing: int, start: str
) -> None:
    scene, time = (np.array([frame[i] for frame in frames], np.int64) for i in (0, 1))
    for own, window in enumerate(scene_windows(scene, time, past, spacing=spacing, start=start)):  # type: ignore[arg-type]
        known = [i for i in window.tolist() if i != ABSENT]
        assert start == "absent" or len(known) == past
        assert all(frames[i][0] == frames[own][0] for i in known)
        assert all(frames[a][1] <= frames[b][1] for a, b in pairwise([*known, own]))


def test_a_scene_s_first_frames_stand_with_what_there_is() -> None:
    scene, time = np.array([7, 7, 7, 2]), np.array([10, 30, 20, 5])
    assert scene_windows(scene, time, 2).tolist() == [[-1, -1], [0, 2], [-1, 0], [-1, -1]]
    assert scene_windows(scene, time, 2, start="repeat").tolist() == [[0, 0], [0, 2], [0, 0], [3, 3]]
    assert scene_windows(scene, time, 1, spacing=2).tolist() == [[-1], [0], [-1], [-1]]
