"""From how many students on the cache is faster than the teacher in every step: total time of both, and their crossing.

    online(n) = n S t_online                           S = epochs * ceil(frames / batch) steps a student
    cached(n) = P v / r + n S t_cached                 P frames passed over once, v views each, r passes a second
    equal at  n = P v / (r S (t_online - t_cached)),   or after n times the epochs of one student

t_online and t_cached are what `bench step` measured, r what `bench cache-teacher` did, of the same teacher on the same
machine, one thread each on a CPU; what has not been measured yet is measured first (some minutes). The rest is
arithmetic: nothing is trained. Writes break-even.png, which docs/benchmarks.md shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cache.errors import ConfigError, DataError
from cache.files import read_json
from studies.benches.cache_teacher import FULL_SIZE

ABOUT = "hours of training against the number of students: from one pass's store, and with the teacher in the loop"
TRAIN_FRAMES, ALL_FRAMES = 28_130, 34_149  # of nuScenes: train, and train with val
SECTIONS = {FULL_SIZE: "", "demo": "demo"}  # a teacher's part of `bench cache-teacher`
HOUR = 3600.0
MAX_STUDENTS = 10_000


@dataclass(frozen=True)
class Training:
    """What is computed for. frames: trained on in an epoch; passed: frames that the teacher pass covers; views: forward
    passes of it a frame, 4 with `cache-teacher --tta flips`."""

    epochs: float
    frames: int
    passed: int
    views: int
    students: int
    batch: int

    @property
    def steps(self) -> float:
        """Of one student."""
        return self.epochs * -(-self.frames // self.batch)


@dataclass(frozen=True)
class Measured:
    """Seconds of a step either way, and frames a second of the pass."""

    online_step_s: float
    cached_step_s: float
    pass_frames_per_s: float

    def pass_s(self, training: Training) -> float:
        """Of the whole teacher pass."""
        return training.passed * training.views / self.pass_frames_per_s

    def break_even(self, training: Training) -> float | None:
        """Students at which both take as long, not rounded; None where a step of the cache is not the faster one."""
        saved = self.online_step_s - self.cached_step_s
        return None if saved <= 0 else self.pass_s(training) / (training.steps * saved)


def run(
    work: Path,
    console: Console,
    *,
    step: str = "",
    teacher_pass: str = "",
    epochs: float = 24,
    frames: int = TRAIN_FRAMES,
    passed: int = ALL_FRAMES,
    views: int = 1,
    students: int = 6,
    plot: str = "",
) -> dict[str, Any]:
    """break_even_students (not rounded) and break_even_epochs (of all students together), None where the cache never
    gains; break_even_range: the same number of students from the best and the worst of the measured rounds; students:
    hours of both ways by number of students, and their ratio; measured and training: what all is computed from.

    step, teacher_pass: JSON files that `bench step` and `bench cache-teacher` wrote (default: those in the run's
    folder, measured first where they are missing); plot: a PNG file (default: break-even.png beside the figures).
    ConfigError where the two are of different machines, teachers or thread counts, DataError where one is something
    else, StoreError where it is missing.
    """
    whole = {"frames": frames, "passed": passed, "views": views, "students": students}
    fits = isinstance(epochs, int | float) and 0 < epochs < math.inf
    fits = fits and all(isinstance(value, int) and value >= 1 for value in whole.values())
    if not fits or students > MAX_STUDENTS:
        told = ", ".join(f"{name} {value!r}" for name, value in {"epochs": epochs, **whole}.items())
        raise ConfigError(
            f"{told}: expected epochs above 0, and whole numbers of 1 or more, students up to {MAX_STUDENTS:,}"
        )
    of_step = _figures(work.parent, "step", step, console, {"torch_threads": 1})
    wanted = {"full": of_step.get("teacher") == FULL_SIZE, "two_workers": False}
    of_pass = _figures(work.parent, "cache-teacher", teacher_pass, console, wanted)
    section = _same_teacher(of_step, of_pass)
    measured = Measured(
        _number(of_step, "online_step_s", "bench step"),
        _number(of_step, "cached_step_s", "bench step"),
        _number(section, "pipeline_frames_per_s", "bench cache-teacher"),
    )
    training = Training(epochs, frames, passed, views, students, int(_number(of_step, "batch", "bench step")))
    out = figures_of(measured, training) | {
        "break_even_range": _range(measured, training, of_step, section),
        "teacher": of_step["teacher"],
        "student": of_step["student"],
        "dates": {"step": of_step.get("date"), "cache-teacher": of_pass.get("date")},
        "measured_on": of_step.get("machine"),
    }
    console.print("\n".join(said_of(out)), highlight=False)
    draw(out, Path(plot) if plot else work / "break-even.png")
    return out


def figures_of(measured: Measured, training: Training) -> dict[str, Any]:
    """The crossing and the totals, from times alone."""
    crossing = measured.break_even(training)
    rows = []
    for n in range(1, training.students + 1):
        online = n * training.steps * measured.online_step_s
        cached = measured.pass_s(training) + n * training.steps * measured.cached_step_s
        rows.append(
            {"students": n, "online_h": online / HOUR, "cached_h": cached / HOUR, "online_over_cached": online / cached}
        )
    return {
        "break_even_students": crossing,
        "break_even_epochs": None if crossing is None else crossing * training.epochs,
        "pass_h": measured.pass_s(training) / HOUR,
        "students": rows,
        "limit": measured.online_step_s / measured.cached_step_s,
        "measured": asdict(measured),
        "training": asdict(training),
    }


def said_of(out: Mapping[str, Any]) -> list[str]:
    """The figures in words."""
    one, last = out["students"][0], out["students"][-1]
    lines = [f"the teacher pass: {out['pass_h']:.2f} h"] + [
        f"{_students(row['students'])} of {out['training']['epochs']:g} epochs: {row['online_h']:.1f} h with the "
        f"teacher in the loop, {row['cached_h']:.1f} h cached, {row['online_over_cached']:.2f} times"
        for row in ([one, last] if last is not one else [one])
    ]
    if out["break_even_students"] is None:
        return [*lines, "no break-even: a step from the store is not the faster one"]
    first = first_faster(out["break_even_students"])
    return [
        *lines,
        f"break-even at {out['break_even_students']:.3f} students, which is {out['break_even_epochs']:.2f} epochs; the "
        f"cache is faster from {_students(first)} on, and at most {out['limit']:.2f} times",
    ]


def _students(count: int) -> str:
    return f"{count} student{'' if count == 1 else 's'}"


def first_faster(crossing: float) -> int:
    """The smallest whole number of students that the cache is faster for."""
    return math.floor(crossing) + 1


def draw(out: Mapping[str, Any], path: Path) -> None:
    """Left: hours against students. Right: hours against the epochs of one student, around the crossing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured, training = Measured(**out["measured"]), Training(**out["training"])
    an_epoch = training.steps / training.epochs / HOUR
    slopes = {
        "teacher in the loop": (0.0, an_epoch * measured.online_step_s),
        "one pass, then from the store": (measured.pass_s(training) / HOUR, an_epoch * measured.cached_step_s),
    }
    crossing = out["break_even_epochs"]
    near = training.epochs if crossing is None else min(training.epochs * training.students, 3 * crossing)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), dpi=110)
    for axes, end, scale in ((left, float(training.students), training.epochs), (right, near, 1.0)):
        for number, (label, (start, slope)) in enumerate(slopes.items()):
            axes.plot([0, end], [start, start + slope * end * scale], label=label, color=f"C{1 - number}")
        if crossing is not None and crossing / scale <= end:
            hours = slopes["teacher in the loop"][1] * crossing
            axes.plot([crossing / scale], [hours], "o", color="0.2", label="break-even")
        axes.set(ylabel="hours", xlim=(0, end), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    left.set(xlabel=f"students, {training.epochs:g} epochs of {training.frames:,} frames each")
    if left.get_xlim()[1] <= 20:
        left.set_xticks(range(training.students + 1))
    right.set(xlabel="epochs of all students together")
    if crossing is not None:
        right.set_title(f"equal after {crossing:.2f} epochs ({out['break_even_students']:.3f} students)", fontsize=10)
    left.set_title(f"{out['teacher']} teaches {out['student']}", fontsize=10)
    left.legend(frameon=False, loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _figures(folder: Path, bench: str, given: str, console: Console, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a benchmark measured: of a file, or of the run's folder, where it is made first if need be, with options."""
    path = Path(str(given)) if given else folder / f"{bench}.json"
    if not given and not path.is_file():
        from studies.benches.registry import run_bench  # which imports this module by name

        console.print(f"[dim]{path}: not there; measuring ./bevcask bench {bench} first ...[/dim]")
        run_bench(bench, folder, console, options)
    found = read_json(path, f"figures of `bench {bench}`")
    if not isinstance(found, dict) or found.get("bench") != bench:
        named = found.get("bench") if isinstance(found, dict) else None
        raise DataError(f"{path}: figures of bench {named!r}, expected those that `./bevcask bench {bench}` writes")
    return found


def _same_teacher(of_step: Mapping[str, Any], of_pass: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the pass's figures that is of the step's teacher; refuses what cannot be put together."""
    for key in ("cpu", "cores"):
        mine, theirs = (found.get("machine", {}).get(key) for found in (of_step, of_pass))
        if mine != theirs:
            raise ConfigError(
                f"bench step was measured on {key} {mine!r}, bench cache-teacher on {theirs!r}; measure both on one "
                "machine"
            )
    teacher = of_step.get("teacher")
    if teacher not in SECTIONS:
        raise ConfigError(
            f"bench step was measured with teacher {teacher!r}, bench cache-teacher measures {', '.join(SECTIONS)}; "
            "measure the step with one of them"
        )
    section = of_pass.get(SECTIONS[teacher], {}) if SECTIONS[teacher] else of_pass
    if "pipeline_frames_per_s" not in section:
        raise ConfigError(
            f"bench cache-teacher was run without teacher {teacher!r}; run it again with --option full=true"
        )
    on_cpu = of_step.get("device") == "cpu"
    if on_cpu != (section.get("device") == "cpu"):
        raise ConfigError(
            f"the step was measured on {of_step.get('device')!r}, the pass on {section.get('device')!r}; measure both "
            "on one device"
        )
    if on_cpu and of_step.get("torch_threads") != 1:
        raise ConfigError(
            f"the step was measured with {of_step.get('torch_threads')} threads, the pass has one; measure it again: "
            "./bevcask bench step --option torch_threads=1"
        )
    return section


def _number(found: Mapping[str, Any], key: str, where: str) -> float:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(f"{where}: {key} is {value!r}, expected a number above 0; measure it again")
    return float(value)


def _range(
    measured: Measured, training: Training, of_step: Mapping[str, Any], section: Mapping[str, Any]
) -> list[float | None] | None:
    """Break-even students of the rounds' best ratio with the fastest pass, and of the worst with the slowest."""
    ratios = of_step.get("rounds_speedup")
    rates = (section.get("rounds") or {}).get("pipeline")
    if not ratios or not rates:
        return None
    ends = ((max(ratios), max(rates)), (min(ratios), min(rates)))
    return [
        Measured(measured.cached_step_s * ratio, measured.cached_step_s, rate).break_even(training)
        for ratio, rate in ends
    ]
