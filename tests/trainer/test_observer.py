from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studies.order_view import OrderQuestion, order_view
from tests.trainer.test_loop import quiet, recipe
from trainer.checkpoint import Training, read_state
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.observer import Found, RunBegin, RunEnd, StepReport


class Diary:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.reports: list[StepReport] = []

    def begin(self, run: RunBegin) -> None:
        self.seen.append(("begin", run.first_step))

    def step(self, report: StepReport) -> None:
        self.seen.append(("step", report.done))
        self.reports.append(report)

    def validated(self, found: Found) -> None:
        self.seen.append(("validated", (found.step, dict(found.figures))))

    def checkpoint(self, step: int, path: Path) -> None:
        assert read_state(path)["step"] == step
        self.seen.append(("checkpoint", step))

    def end(self, end: RunEnd) -> None:
        self.seen.append(("end", (end.outcome, end.steps)))


class Halves:
    """A validation every two steps that finds at once."""

    def __init__(self) -> None:
        self.ready: list[Found] = []

    def begin(self) -> None:
        pass

    def owed(self, done: int) -> bool:
        return False

    def due(self, done: int) -> bool:
        return done % 2 == 0

    def start(self, training: Training, done: int, stop: Any = None) -> float:
        self.ready.append(Found(done, {"val/half": done / 2}))
        return 0.0

    def found(self, wait: bool = False) -> list[Found]:
        out, self.ready = self.ready, []
        return out

    def close(self) -> None:
        pass


def test_observers_are_told_of_everything_in_order(tmp_path: Path, cache: Path) -> None:
    diary = Diary()
    chosen = recipe("student", steps=4, checkpoint_every=3, log_every=2)
    train(chosen, cache, tmp_path, progress=quiet, observers=[diary], validation=Halves())
    assert diary.seen == [
        ("begin", 0),
        ("step", 1),
        ("step", 2),
        ("validated", (2, {"val/half": 1.0})),
        ("checkpoint", 3),
        ("step", 3),
        ("checkpoint", 4),
        ("step", 4),
        ("validated", (4, {"val/half": 2.0})),
        ("end", ("finished", 4)),
    ]
    lines = {line["step"]: line for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert [report.done for report in diary.reports if report.logged] == sorted(lines) == [2, 4]
    for report in diary.reports:
        assert report.step_s > 0
        if report.logged:
            line = lines[report.done]
            assert (line["loss"], line["digest"]) == (report.loss, report.digest)
            assert {name: line[name] for name in report.parts} == report.parts


def test_observers_are_told_of_a_failure(tmp_path: Path, cache: Path) -> None:
    class Failing(Diary):
        def step(self, report: StepReport) -> None:
            super().step(report)
            raise ValueError("enough")

    diary = Failing()
    with pytest.raises(ValueError, match="enough"):
        train(recipe("student", steps=4), cache, tmp_path, progress=quiet, observers=[diary])
    assert diary.seen[-1] == ("end", ("failed", 1))


@pytest.mark.parametrize("order", [{}, {"shuffle": "blocks", "window": 1}, {"balance": "cbgs"}, {"drop_last": True}])
def test_the_log_s_digests_are_those_of_the_order_that_inspect_tells(
    tmp_path: Path, cache: Path, order: dict[str, Any]
) -> None:
    chosen = recipe("distilled", steps=5)
    chosen = chosen.model_copy(
        update={"data": chosen.data.model_copy(update={"order": chosen.data.order.model_copy(update=order)})}
    )
    diary = Diary()
    train(chosen, cache, tmp_path, progress=quiet, observers=[diary])
    for line, report in zip(read_metrics(tmp_path / "metrics.jsonl"), diary.reports, strict=True):
        told = order_view(cache, OrderQuestion(recipe=chosen, step=line["step"] - 1, world=3))
        assert told["digest"] == line["digest"]
        assert told["epoch"] == line["epoch"]
        frames = [frame["token"] for rank in told["ranks"] for frame in rank["frames"] if frame["weight"]]
        assert frames == list(report.tokens)


def test_digests_cover_the_bytes_of_the_inputs_when_asked(tmp_path: Path, cache: Path) -> None:
    digests = {}
    for name, values in (("keys", {}), ("inputs", {"digest": "inputs"}), ("again", {"digest": "inputs"})):
        train(recipe("student", steps=2, **values), cache, tmp_path / name, progress=quiet)
        digests[name] = [line["digest"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert digests["again"] == digests["inputs"]
    assert not set(digests["inputs"]) & set(digests["keys"])
