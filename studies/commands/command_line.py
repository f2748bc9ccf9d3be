"""What every task shares: the decorator that turns errors into one line, option parsers, closing lines.

Tasks stand in the modules beside this one; `tasks.py` at the top collects them.
"""

from __future__ import annotations

import functools
import inspect
import json as json_text
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invoke.exceptions import Exit
from invoke.tasks import task as invoke_task
from rich.console import Console
from rich.text import Text

from cache.errors import BevcaskError, ConfigError, DataError
from cache.manifest import Manifest

console = Console(highlight=False, emoji=False)  # a name such as ":car:" stays as it is


def task(
    body: Callable[..., Any] | None = None,
    *,
    help: Mapping[str, str] | None = None,
    positional: Sequence[str] = (),
    iterable: Sequence[str] = (),
) -> Any:
    """An invoke task whose BevcaskError becomes one red line and exit status 1, and Ctrl-C exit status 130.

    help: option -> what it is, for `./bevcask TASK --help`. positional: arguments given by place, only `bench` has one.
    iterable: options that may be given more than once.
    """
    if body is None:
        return functools.partial(task, help=help, positional=positional, iterable=iterable)

    signature = inspect.signature(body)
    numbers = {p.name: type(p.default) for p in signature.parameters.values() if type(p.default) in (int, float)}

    @functools.wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            for name in numbers.keys() & kwargs.keys():
                kwargs[name] = _number(kwargs[name], numbers[name], f"--{name.replace('_', '-')}")
            return body(*args, **kwargs)
        except BevcaskError as error:
            message = " ".join(str(error).split()) or type(error).__name__
            # soft_wrap: a long path must stay one line that can be copied; markup off: a path may hold brackets
            Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
            raise Exit(code=error.exit_status) from error
        except OSError as error:
            message = (
                f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the disk"
            )
            if isinstance(error, TimeoutError) and error.filename is None:  # of no file: a worker, a scheduler
                said = " ".join(str(error).split()) or "no more is known"
                message = (
                    f"a process or a machine did not answer in time ({said}); on a machine with less other work the "
                    "same command goes on where it can"
                )
            Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
            raise Exit(code=1) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted; the same command goes on where it can", style="yellow")
            raise Exit(code=130) from error

    # texts to invoke, which ends in a traceback where a number does not parse
    guarded.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(default=str(p.default)) if p.name in numbers else p for p in signature.parameters.values()
        ]
    )
    # an empty list matters: invoke would make an argument without a default positional, and then --help runs the task
    return invoke_task(guarded, positional=list(positional), iterable=list(iterable), help=dict(help or {}))


def need(value: str | None, option: str, what: str) -> str:
    """Options are never positional, so a missing one is told here."""
    if not value:
        raise ConfigError(f"{option} is missing, expected {what}; `--help` lists the options")
    return value


def whole(value: str | None, option: str, least: int | None = None) -> int | None:
    """invoke hands over a string for an option whose default is None. ConfigError where it is no number, or below
    `least`."""
    if value is None:
        return None
    number = int(_number(value, int, option))
    if least is not None and number < least:
        raise ConfigError(f"{option} {number}: expected {least} or more")
    return number


def number(value: str | None, option: str) -> float | None:
    """A number, None where the option was left out; else ConfigError."""
    return None if value is None else float(_number(value, float, option))


def share(value: str | None, option: str) -> float | None:
    """A number of 0 to 1, None where the option was left out; else ConfigError."""
    if value is None:
        return None
    number = float(_number(value, float, option))
    if not 0 <= number <= 1:
        raise ConfigError(f"{option} {number:g}: expected 0 to 1")
    return number


def _number(value: Any, kind: type, option: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{option} {value!r} is not {expected}; `--help` lists the options") from None


def letter_sizes(value: str, option: str) -> dict[str, int]:
    """`K=900,N=300` as a dict."""
    pairs = [part.partition("=") for part in value.split(",") if part]
    if not all(letter.strip() and size.strip().isdecimal() for letter, _, size in pairs):
        raise ConfigError(f"{option} {value!r}: expected LETTER=SIZE, with commas between")
    return {letter.strip(): int(size) for letter, _, size in pairs}


def scenes_of(value: str | None, option: str) -> int | tuple[str, ...] | None:
    """A whole number, or the names in a text file, one a line; None where the option was left out."""
    if value is None:
        return None
    if value.lstrip("-").isdigit():
        return int(value)
    try:
        names = tuple(line.strip() for line in Path(value).read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{option} {value!r}: expected a number of scenes, or a text file of their names, one a line ({error})"
        ) from None
    if not names:
        raise ConfigError(f"{option} {value}: the file names no scene; write names such as scene-0001, one a line")
    return names


def path_of(value: str | None) -> Path | None:
    """The path, None where the option was left out."""
    return Path(value) if value else None


def cache_root(value: str | None, what: str) -> str | Path:
    """The folder of the stores, or its URL as it is."""
    place = need(value, "--cache", what)
    return place if "://" in place else Path(place)


def print_json(value: Any) -> None:
    """The last line that scripts read."""
    print(json_text.dumps(value), flush=True)


def next_step(text: str) -> None:
    """Says what to do after a task that succeeded."""
    console.print(Text.assemble(("next:", "dim"), " ", text), soft_wrap=True)  # no markup: a path may hold brackets


def close_store(
    kind: str,
    manifest: Manifest,
    root: str | Path,
    as_json: bool,
    then: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Ends a run that wrote a store; DataError, so exit status 1, where a frame could not be read.

    then: the next steps of a run that succeeded; more: what the JSON says beside the store's own figures.
    """
    from studies.inspection import closing_lines, closing_summary

    for line in closing_lines(kind, manifest, root):
        console.print(line, style="red" if line.startswith("quarantined") else None, markup=False, soft_wrap=True)
    for command in () if manifest.quarantined else then:
        next_step(command)
    if as_json:
        print_json({**closing_summary(manifest), **(more or {})})
    if manifest.quarantined:
        raise DataError(
            f"{len(manifest.quarantined)} frames could not be read and are not in the store; its manifest.json lists "
            "them all: repair their files and run the same command again"
        )


def cluster_of(scheduler: str | None, kind: str, report: str | None) -> Any:
    """The `pipeline.engine.Cluster` that --scheduler, --cluster and --performance-report ask for."""
    from pipeline.engine import Cluster

    return Cluster(scheduler, kind, path_of(report))
