"""`./bevcask verify`: every store of a cache checked, against digests kept elsewhere where there are some."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cache.errors import BevcaskError, ConfigError
from cache.files import sha256
from cache.findings import Finding
from cache.layout import TEACHER_NAME, frames_place, teacher_place
from cache.manifest import MANIFEST, read_document
from cache.roots import join, open_root
from cache.verify import verify


@dataclass(frozen=True)
class StoreCheck:
    """One store: name in the cache, place, digest of its manifest file, whether a digest kept elsewhere is that."""

    name: str
    place: str
    digest: str
    confirmed: bool
    findings: list[Finding]

    @property
    def line(self) -> str:
        """One line for a person."""
        if self.findings:
            return f"{self.name}: {len(self.findings)} findings"
        return f"{self.name}: every byte as committed, manifest digest {self.digest}" + (
            ", as kept elsewhere" if self.confirmed else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for --json."""
        findings = [{key: getattr(f, key) for key in ("file", "found", "expected", "remedy")} for f in self.findings]
        return {"store": self.name, "digest": self.digest, "confirmed": self.confirmed, "findings": findings}


def verify_cache(cache: str | Path, teacher: str | None, digest: str | None, console: Console) -> list[StoreCheck]:
    """Checks one teacher store, or every store of a cache. digest: hex sha256, several with commas; each must be that
    of one of the stores that are checked.

    Raises ConfigError for a digest that is none, StoreError where there is no store.
    """
    kept = _digests(digest)
    places = _places(cache, teacher)
    digests = {name: _digest_at(place) for name, place in places.items()}
    unknown = [one for one in kept if one not in digests.values()]
    out = []
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not console.is_terminal,
    ) as bars:
        for name, place in places.items():
            bar = bars.add_task(f"verify {name}", total=None)
            confirmed = digests[name] in kept
            # a digest of no store: it was of any of those that no other digest confirms
            against = unknown[0] if unknown and not confirmed else None
            findings = verify(
                place,
                digest=against,
                progress=lambda done, total, bar=bar: bars.update(bar, completed=done, total=total),  # type: ignore[misc]
            )
            out.append(StoreCheck(name, str(place), digests[name], confirmed, findings))
    strangers = _strangers(cache) if teacher is None else []
    return [*out, StoreCheck("teachers", str(join(cache, "teachers")), "", False, strangers)] if strangers else out


def _digests(text: str | None) -> list[str]:
    kept = [part.strip().lower() for part in (text or "").split(",") if part.strip()]
    wrong = [part for part in kept if not re.fullmatch(r"[0-9a-f]{64}", part)]
    if wrong or (text is not None and not kept):
        raise ConfigError(f"--digest {text!r}: expected the 64 hex digits of a manifest digest, with commas between")
    return kept


def _places(cache: str | Path, teacher: str | None) -> dict[str, str | Path]:
    """Every place that has something of a store in it, a manifest or not."""
    if teacher is not None:
        return {f"teachers/{teacher}": teacher_place(cache, teacher)}
    paths = [name.split("/") for name in open_root(cache).sizes() if name.startswith("teachers/")]
    names = {parts[1] for parts in paths if len(parts) > 2 and TEACHER_NAME.fullmatch(parts[1])}
    return {"frames": frames_place(cache), **{f"teachers/{name}": teacher_place(cache, name) for name in sorted(names)}}


def _strangers(cache: str | Path) -> list[Finding]:
    """What lies in <cache>/teachers and in no teacher store."""
    paths = [name.split("/") for name in open_root(join(cache, "teachers")).sizes()]
    names = {parts[0] for parts in paths if len(parts) < 2 or not TEACHER_NAME.fullmatch(parts[0])}
    return [
        Finding(name, "something that is no teacher store", "stores only: 1 to 64 of a-z, 0-9, - and _", "move it away")
        for name in sorted(names)
    ]


def _digest_at(place: str | Path) -> str:
    try:
        return sha256(read_document(open_root(place), MANIFEST))
    except (BevcaskError, FileNotFoundError):
        return ""
