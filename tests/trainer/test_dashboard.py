"""What a person sees of a run: drawn at several widths, plain lines where there is no terminal."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.trainer.test_loop import recipe
from trainer.dashboard import Dashboard, RunView, duration, panel, plain_line, sparks
from trainer.loop import train
from trainer.memory import MemoryUse
from trainer.observer import Found, StepReport

PARTS = {
    "heatmap": 1.5,
    "depth": 0.5,
    "bevdistill_dense_of_another_teacher": 2.0,
    "gradient_norm": 12.5,
    "labels/kept": 7,
}
REPORT = StepReport(300, 1200, 4.0, 1.5e-3, 12.34, 0.07, epoch=2, parts=PARTS, step_s=0.25, wait_s=0.01, logged=True)
GOOD = Found(200, {"val/NDS": 0.25, "val/mAP": 0.125, "val/best": True})
LAST = Found(300, {"val/NDS": 0.2, "val/mAP": 0.1, "val/best": False})


def view(**changes: object) -> RunView:
    values = {
        "name": "bevdistill-tiny", "report": REPORT, "losses": (6.0, 5.0, 4.5, 4.0),
        "memory": MemoryUse(3 << 29, 1 << 30, 3 << 30), "validated": LAST, "best": GOOD,
        "elapsed_s": 75.0, "done_here": 100,
    }  # fmt: skip
    return RunView(**{**values, **changes})  # type: ignore[arg-type]


def drawn(shown: RunView, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(panel(shown, width))
    return console.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_everything_is_shown_at_any_width_and_no_line_is_longer(width: int) -> None:
    lines = drawn(view(), width)
    assert {cell_len(line) for line in lines} == {width}
    whole = " ".join(" ".join(lines).replace("│", " ").split())
    for words in (
        "bevdistill-tiny", "step 300/1200", "epoch 3", "1:15 so far, 11:15 left", "loss 4.0000", "1.50e-03",
        "12.3", "7%", "1.50 GiB", "peak 3.00", "12.5", "heatmap", "1.5000", "depth", "0.5000", "250 ms",
    ):  # fmt: skip
        assert words in whole, words
    assert "labels/kept" not in whole
    if width >= 80:
        assert "validation after step 300: NDS 0.200 mAP 0.100" in whole
        assert "best: after step 200: NDS 0.250 mAP 0.125" in whole


def test_a_run_without_anything_yet_or_with_a_loss_that_is_not_finite_is_drawn() -> None:
    empty = RunView("x", StepReport(0, 10, math.nan, 0.0, 0.0, 0.0))
    assert "step 0/10" in " ".join(drawn(empty, 80)) and "nan" in " ".join(drawn(empty, 80))
    broken = view(
        losses=(math.nan, math.inf), report=StepReport(1, 2, math.inf, 0.0, 0.0, 0.0, parts={"heatmap": math.nan})
    )
    assert "inf" in " ".join(drawn(broken, 120))


def test_how_a_run_ended_stands_in_the_title() -> None:
    assert "failed" in drawn(view(outcome="failed"), 80)[0]


def test_a_name_with_brackets_is_a_name() -> None:
    """To rich they are markup: a closing one ended the training, an opening one went missing."""
    assert "[a] run[/b] failed" in drawn(view(name="[a] run[/b]", outcome="failed"), 80)[0]
    out = io.StringIO()
    dashboard = Dashboard("[a] run[/b]", Console(file=out, width=200))
    dashboard.validated(Found(4, {"val/failed": "boxes [/x] are not finite"}))
    dashboard.step(StepReport(2, 2, 1.0, 1.0, 1.0, 0.0))
    first, second = out.getvalue().splitlines()
    assert first == "[a] run[/b]: validation after step 4 could not be scored: boxes [/x] are not finite"
    assert second.startswith("[a] run[/b]: 2/2  loss 1.000")


def test_curves_and_durations() -> None:
    assert sparks((), 10) == "" and sparks((math.nan,), 10) == ""
    assert sparks((1.0, 1.0), 10) == "▁▁"
    assert sparks((0.0, 1.0, 2.0, 7.0), 10) == "▁▂▃█"
    assert len(sparks(tuple(float(i) for i in range(100)), 7)) == 7
    assert [duration(s) for s in (5, 65, 3700, math.nan)] == ["0:05", "1:05", "1:01:40", "-"]
    assert math.isnan(view(done_here=0).eta_s)


def test_where_there_is_no_terminal_lines_are_plain(cache: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=40)
    chosen = recipe("student", steps=3, validate_every=2, validate_split="train")
    with Dashboard("plain", console) as dashboard:
        train(chosen, cache, tmp_path / "run", progress=lambda report: None, observers=[dashboard])
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert any(line.startswith("plain: 3/3  loss ") for line in lines)
    assert any(line.startswith("plain: validation after step 2: NDS ") for line in lines)
    assert plain_line(view()).endswith("waiting 7%  11:15 left")
    assert "could not be scored: boxes" in plain_found({"val/failed": "boxes are not finite"})


def plain_found(figures: dict[str, str]) -> str:
    out = io.StringIO()
    Dashboard("x", Console(file=out)).validated(Found(4, figures))
    return out.getvalue()


def test_in_a_terminal_the_dashboard_stays_and_is_left_behind(cache: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=40, force_terminal=True)
    chosen = recipe("student", steps=3, validate_every=3, validate_split="train")
    with Dashboard("live", console) as dashboard:
        train(chosen, cache, tmp_path / "run", progress=lambda report: None, observers=[dashboard])
    text = out.getvalue()
    assert "step" in text and "finished" in text and "validation after step 3" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back
