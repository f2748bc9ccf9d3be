"""A run's model by one, two and three real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from cache.errors import BevcaskError, ConfigError, DataError
from cache.frame import Detections
from cache.store import FrameStore
from models.build import save_weights
from tests.trainer.synthetic import TINY_STUDENT
from tests.trainer.test_gathering import same
from tests.trainer.test_predict import eager
from trainer.predict import Portion
from trainer.predict_run import RunModel, predict_run

ROWS = [5, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 1, 1, 2, 3, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 2, 4, 1, 3, 5, 2, 0, 4]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_weights(eager(TINY_STUDENT), folder / "model.safetensors")
    return folder


def helpers() -> list[psutil.Process]:
    """The processes that predict; other tests may have left a resource tracker or a pool of their own."""
    return [child for child in psutil.Process().children() if "trainer.predict_run" in child.cmdline()]


def predicted(run: Path, cache: Path, processes: int, **options: Any) -> list[tuple[list[int], list[Detections]]]:
    out: list[tuple[list[int], list[Detections]]] = []
    source = RunModel(run)
    deliver = options.pop("deliver", lambda portion: out.append((portion.rows, portion.detections)))
    store = FrameStore(cache / "frames")
    predict_run(source, source.load(0), store, options.pop("rows", ROWS), deliver, processes=processes, **options)
    return out


def test_one_two_and_three_processes_say_the_very_same(run: Path, cache: Path) -> None:
    counted: list[tuple[int, int]] = []
    alone = predicted(run, cache, 1, progress=lambda *now: counted.append(now))
    assert [row for rows, _ in alone for row in rows] == ROWS
    assert counted[-1] == (len(ROWS), len(ROWS)) and len(counted) > 1
    for processes in (2, 3):
        several = predicted(run, cache, processes)
        assert len(several) > 1
        assert sorted(row for rows, _ in several for row in rows) == sorted(ROWS)
        # a row's answer may depend on the batch that it is in, so compare what was said of a row as sets
        assert answers(several) == answers(alone)


def answers(parts: list[tuple[list[int], list[Detections]]]) -> set[tuple[int, bytes]]:
    return {
        (row, b"".join(getattr(one, name).tobytes() for name in ("boxes_lidar", "scores", "labels")))
        for rows, found in parts
        for row, one in zip(rows, found, strict=True)
    }


def test_more_processes_than_batches(run: Path, cache: Path) -> None:
    few = predicted(run, cache, 3, rows=[2, 0])
    assert few[0][0] == [2, 0] and len(few) == 1
    assert all(same(a, b) for a, b in zip(few[0][1], predicted(run, cache, 1, rows=[2, 0])[0][1], strict=True))
    assert predicted(run, cache, 1, rows=[]) == []


def test_an_error_of_the_receiver_ends_all(run: Path, cache: Path) -> None:
    def refuse(portion: Portion) -> None:
        raise DataError("not this one")

    for processes in (1, 2):
        with pytest.raises(DataError, match="not this one"):
            predicted(run, cache, processes, deliver=refuse)
    assert not helpers()


def test_an_error_of_another_process_is_told_in_its_words(run: Path, cache: Path, tmp_path: Path) -> None:
    source = RunModel(run)
    model, store = source.load(0), FrameStore(cache / "frames")
    with pytest.raises(BevcaskError, match=r"process 1 of those that predict ended with status 1: .*best\.safetensors"):
        predict_run(RunModel(run, "best"), model, store, ROWS, lambda portion: None, processes=2)
    assert not helpers()


def test_a_killed_process_ends_all(run: Path, cache: Path) -> None:
    killed: list[int] = []

    def kill(portion: Portion) -> None:
        if not killed:
            killed.append(helpers()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(BevcaskError, match="ended with status -9"):
        predicted(run, cache, 2, deliver=kill, rows=ROWS * 20)
    assert not helpers()


def test_the_best_weights_of_a_run_that_never_validated_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="validate_every"):
        RunModel(run, "best").load(0)
