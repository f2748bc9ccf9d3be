"""What happens when a damaged store is checked and read: in a process of its own, with little memory and little time.

A fork takes milliseconds: a thousand stores cost a thousand forks and not a thousand interpreters. The child may take
`ROOM` of address space beyond what the parent has and the store's own bytes; a reader that believes a forged size, or
waits for a pipe, is found out.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import BevcaskError
from cache.verify import verify
from studies.benches.fault_stores import TOKENS, SmallStore, read_frame

ROOM = 160 << 20  # stacks and arenas of the check's threads, code that is loaded on the way
TIME_S = 120.0  # a machine may be busy; what hangs hangs for ever


@dataclass(frozen=True)
class Outcome:
    """findings: lines of the check; delete: what their remedies remove; reading: right, refused, wrong, crashed, hung
    or killed; detail: what was said or seen."""

    findings: tuple[str, ...]
    delete: tuple[str, ...]
    reading: str
    detail: str


def check_and_read(
    store: SmallStore, folder: Path, expected: Mapping[str, Mapping[str, Any]], digest: str | None = None
) -> Outcome:
    """The findings of `verify` and what reading every field of every frame gives."""

    def work() -> dict[str, Any]:
        findings = verify(folder, digest=digest, threads=1)
        reading, detail = read_all(store, folder, expected)
        return {
            "findings": [str(finding) for finding in findings],
            "delete": [name for finding in findings for name in finding.delete],
            "reading": reading,
            "detail": detail,
        }

    result = confined(work)
    return Outcome(
        tuple(result.get("findings", ())), tuple(result.get("delete", ())), result["reading"], result["detail"]
    )


def read_all(store: SmallStore, place: Any, expected: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """right: all of it, bit for bit; refused: a BevcaskError, and what could be read was right; wrong: otherwise."""
    refused = ""
    try:
        opened = store.open(place)
    except BevcaskError as error:
        return "refused", str(error)
    if sorted(opened.tokens) != sorted(TOKENS):
        return "wrong", f"{len(opened.tokens)} frames"
    for token in TOKENS:
        try:
            found = read_frame(opened, token)
        except BevcaskError as error:
            refused = str(error)
            continue
        if found != expected[token]:
            differing = [name for name in expected[token] if found.get(name) != expected[token][name]]
            return "wrong", f"{token}: {differing or sorted(found)}"
    return ("refused", refused) if refused else ("right", "")


def confined(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """work() in a forked process under the limits; {"reading": crashed, hung or killed, "detail"} where it fails."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _run_child(work, write_end)
    os.close(write_end)
    answer, deadline = b"", time.monotonic() + TIME_S
    try:
        while (left := deadline - time.monotonic()) > 0 and select.select([read_end], [], [], left)[0]:
            part = os.read(read_end, 1 << 16)
            if not part:
                break
            answer += part
        else:
            return {"reading": "hung", "detail": f"nothing within {TIME_S:.0f} s"}
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(read_end)
        os.waitpid(child, 0)
    if not answer:
        return {"reading": "killed", "detail": "the process ended without an answer"}
    result: dict[str, Any] = json.loads(answer)
    return result


def _run_child(work: Callable[[], dict[str, Any]], write_end: int) -> None:
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
        result = work()
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        lines = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(where))
        result = {"reading": "crashed", "detail": f"{type(error).__name__}: {error} at {lines}"[:2000]}
    data = json.dumps(result).encode()
    while data:
        data = data[os.write(write_end, data) :]
    os._exit(0)
