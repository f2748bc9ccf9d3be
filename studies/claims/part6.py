"""Part 6: the same batches and losses whatever is killed and restarted, on one host and on two; nothing else is gone on
with than what the run was."""

from __future__ import annotations

import functools
import random
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.files import write_json
from pipeline.teacher import TeacherOptions, cache_teacher
from studies.claims.claim import Claim, NotHeldError, expect
from studies.demo import DemoWorld
from studies.ranks import (
    ROOT,
    kill_group,
    ownerless_shared_memory,
    processes_of,
    run_to_end,
    start,
    steps_logged,
    training,
)
from studies.simulated_cache import simulated_cache
from studies.two_hosts import two_hosts
from trainer.metrics import read_metrics
from trainer.recipe import load_recipe
from trainer.run_files import METRICS, WEIGHTS

WORLD = DemoWorld(train_scenes=8, val_scenes=1, frames=4)
STEPS, KILLS, EVERY = 60, 5, 5
LIMIT_S = 600  # of one command
COMPILE_S = 3000  # compiling forward and backward of a student: minutes of C++ on one core


def _cache(work: Path) -> Path:
    """A small world with the demo teacher's store on it, made once."""
    return _taught(simulated_cache(work / "part6", WORLD))


def _taught(cache: Path) -> Path:
    """The cache with the teacher store of bevdistill-tiny."""
    options = TeacherOptions(coverage="gaussian", fields="samples(boxes=teacher,points=1x1)")
    cache_teacher(cache, "bevdistill", options=options)
    return cache


def _recipe(work: Path, **train: Any) -> Path:
    """bevdistill-tiny, a few steps of it, every one in the log."""
    values = {"steps": STEPS, "log_every": 1, "checkpoint_every": EVERY, "digest": "inputs", **train}
    path = work / f"{'-'.join(['recipe', *train])}.json"
    write_json(path, load_recipe("bevdistill-tiny", {"train": values}).to_dict())
    return path


def _curve(run: Path) -> list[dict[str, Any]]:
    """Every step of a run's log without its times."""
    times = ("frames_per_s", "stall_share", "loader_s")
    return [{name: value for name, value in line.items() if name not in times} for line in read_metrics(run / METRICS)]


def _digests(run: Path) -> list[str]:
    return [line["digest"] for line in _curve(run)]


def _undisturbed(work: Path, processes: int) -> Path:
    """A run that nothing happens to, made once."""
    run = work / f"undisturbed-{processes}"
    if not (run / WEIGHTS).is_file():
        shutil.rmtree(run, ignore_errors=True)
        _finish(training(processes, _recipe(work), _cache(work), run))
    return run


def _finish(command: Sequence[str]) -> None:
    done = run_to_end(command, LIMIT_S)
    if done.returncode:
        raise NotHeldError(f"a run ended with {done.returncode}: {done.stderr[-800:]}")


def _kill_after(command: Sequence[str], run: Path, steps: int, log: Path) -> int:
    """SIGKILL to all of a run once its log has so many steps; how many it has then."""
    process, ends = start(command, log), time.monotonic() + LIMIT_S
    try:
        while steps_logged(run) < steps:
            if process.poll() is not None or time.monotonic() > ends:
                raise NotHeldError(f"a run ended before step {steps}: {log.read_text()[-800:]}")
            time.sleep(0.05)
    finally:
        kill_group(process)
    return steps_logged(run)


def a_run_killed_five_times_is_the_undisturbed_one(again: Sequence[int], work: Path) -> str:
    """SIGKILL at random steps; resumed with `again` processes in turn, begun with two."""
    whole = _undisturbed(work, 2)
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    run = work / f"killed-{'-'.join(map(str, again))}"
    shutil.rmtree(run, ignore_errors=True)
    recipe, cache = _recipe(work), _cache(work)
    killed = []
    for number, steps in enumerate(sorted(draw.sample(range(3, STEPS - 2), KILLS))):
        processes = 2 if not number else again[(number - 1) % len(again)]
        command = training(processes, recipe, cache, run, "--resume")
        killed.append(_kill_after(command, run, steps, work / f"{run.name}.log"))
    _finish(training(again[(KILLS - 1) % len(again)], recipe, cache, run, "--resume"))
    ours, theirs = _curve(run), _curve(whole)
    same = set(again) == {2}
    held = _digests(run) == _digests(whole) and len(ours) == STEPS and (not same or ours == theirs)
    identical = sum(a == b for a, b in zip(ours, theirs, strict=False))
    found = (
        f"killed at steps {killed} (seed {seed}), resumed with {', '.join(map(str, again))} processes: "
        f"{sum(a == b for a, b in zip(_digests(run), _digests(whole), strict=False))} of {STEPS} digests of the "
        f"undisturbed run, {identical} log lines bit for bit"
    )
    return expect(held, found, f"all {STEPS} digests" + (" and lines" if same else ""))


def a_host_that_is_killed_comes_back(work: Path) -> str:
    """Two machines with a process each; the one where they do not meet is killed and started again."""
    whole, run = _undisturbed(work, 2), work / "two-hosts"
    shutil.rmtree(run, ignore_errors=True)
    with two_hosts() as (first, second):
        meet = f"{first.address}:29517"

        def command(host: Any) -> list[str]:
            task = [str(ROOT / "bevcask"), "train", "--recipe", str(_recipe(work)), "--cache", str(_cache(work))]
            where = ["--nproc", "1", "--nnodes", "2", "--rdzv", meet, "--local-addr", host.address, "--threads", "1"]
            return [*host.before, *task, "--run", str(run), *where, "--resume"]

        logs = [work / "host-a.log", work / "host-b.log"]
        for log in logs:
            log.unlink(missing_ok=True)
        stays, dies = start(command(first), logs[0]), start(command(second), logs[1])
        ends = time.monotonic() + LIMIT_S
        try:
            while steps_logged(run) < STEPS // 3 and time.monotonic() < ends and stays.poll() is None:
                time.sleep(0.05)
            killed_at = steps_logged(run)
            kill_group(dies)
            dies = start(command(second), logs[1])
            statuses = [process.wait(max(ends - time.monotonic(), 1.0)) for process in (stays, dies)]
        finally:
            for process in (stays, dies):
                kill_group(process)
    held = statuses == [0, 0] and _curve(run) == _curve(whole)
    same = sum(a == b for a, b in zip(_curve(run), _curve(whole), strict=False))
    found = (
        f"two hosts, each a {first.kind}; one killed after step {killed_at} and back; statuses {statuses}; {same} of "
        f"{STEPS} log lines bit for bit those of two processes on one host"
    )
    return expect(held, found, "both ended well, with the same lines")


def what_has_changed_is_refused(work: Path) -> str:
    """Another seed, global batch and manifest, each with both values in the words, on every rank."""
    run, cache = _undisturbed(work, 2), _cache(work)
    said = []
    for train, words in (({"seed": 5}, "seed = 0, this call has 5"), ({"batch": 2}, "batch = 4, this call has 2")):
        said.append(_refusal(training(2, _recipe(work, **train), cache, run, "--resume"), words))
    other = _taught(simulated_cache(work / "part6-other", replace(WORLD, seed=2)))
    said.append(_refusal(training(2, _recipe(work), other, run, "--resume"), "this call has"))
    return "; ".join(said)


def _refusal(command: Sequence[str], words: str) -> str:
    done = run_to_end(command, LIMIT_S)
    told = next((line for line in done.stderr.splitlines() if words in line), "")
    return expect(done.returncode == 1 and bool(told), told or done.stderr[-400:], f"status 1 and {words!r}")[-160:]


def a_preempted_run_saves_and_leaves_nothing(work: Path) -> str:
    """SIGTERM and Ctrl-C to the launcher of two processes: status 75, saved at the step it was at, no process and no
    shared memory left."""
    recipe, cache, found = _recipe(work), _cache(work), []
    for name in ("SIGTERM", "SIGINT"):
        run = work / f"stopped-{name}"
        shutil.rmtree(run, ignore_errors=True)
        before = set(ownerless_shared_memory())
        task = [str(ROOT / "bevcask"), "train", "--recipe", str(recipe), "--cache", str(cache), "--run", str(run)]
        process = start([*task, "--nproc", "2", "--threads", "1"], work / f"{run.name}.log")
        ends = time.monotonic() + LIMIT_S
        while steps_logged(run) < 12 and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        asked = time.monotonic()
        process.send_signal(signal.Signals[name])
        status = process.wait(LIMIT_S)
        seconds, left = time.monotonic() - asked, processes_of(str(run))
        shared = sorted(set(ownerless_shared_memory()) - before)
        steps = steps_logged(run)
        saved = (run / "checkpoints" / f"step-{steps:08d}.safetensors").is_file()
        held = status == 75 and saved and not left and not shared
        told = f"{name}: status {status} {seconds:.1f} s later, step {steps} saved: {saved}, processes left {left}"
        found.append(expect(held, f"{told}, shared memory left {shared}", "75, saved, none left"))
    return "; ".join(found)


def a_compiled_run_is_the_plain_one(work: Path) -> str:
    """`compile = true` through torch's own compiler, one process: the same batches; losses and gradients alike in fp32.

    At a rate of 1e-6: AdamW's first steps are as long as the rate wherever a gradient is not 0, also where it is little
    more than rounding, so that at the recipe's own rate two roundings of one run drift apart within three steps.
    """
    chosen = {"steps": 3, "precision": "fp32", "lr": 1e-6}
    runs = {compiled: work / f"compiled-{compiled}" for compiled in (False, True)}
    for compiled, run in runs.items():
        shutil.rmtree(run, ignore_errors=True)
        recipe = _recipe(work, **chosen, compile=compiled)
        done = run_to_end(training(1, recipe, _cache(work), run), COMPILE_S)
        if done.returncode:
            raise NotHeldError(f"compile = {compiled}: status {done.returncode}: {done.stderr[-800:]}")
    off = {
        name: max(abs(a[name] - b[name]) / abs(a[name]) for a, b in zip(*map(_curve, runs.values()), strict=True))
        for name in ("loss", "gradient_norm")
    }
    steps = len(_curve(runs[True]))
    held = max(off.values()) < 1e-3 and _digests(runs[True]) == _digests(runs[False]) and steps == 3
    found = f"{steps} steps; losses off by {off['loss']:.1e} at most, gradients' norms by {off['gradient_norm']:.1e}"
    return expect(held, found, "the same batches, and figures to 1e-3")


_SETTINGS: Mapping[str, Sequence[int]] = {"two": (2,), "one-and-three": (1, 3)}
CLAIMS = (
    *(
        Claim(6, f"kills-{name}", 2400, functools.partial(a_run_killed_five_times_is_the_undisturbed_one, again))
        for name, again in _SETTINGS.items()
    ),
    Claim(6, "two-hosts", 1800, a_host_that_is_killed_comes_back),
    Claim(6, "refusals", 1800, what_has_changed_is_refused),
    Claim(6, "preemption", 1200, a_preempted_run_saves_and_leaves_nothing),
    Claim(6, "compiled", 3600, a_compiled_run_is_the_plain_one),
)
