"""What a check of a store finds: file, what was found, what was expected, and how it is mended."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from cache.manifest import MANIFEST

PER_FILE = 20  # findings told of one file; a shard of zeros has one for each of its members
RERUN = "run the same caching command again"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. delete: files to remove before the remedy's command."""

    file: str
    found: str
    expected: str
    remedy: str
    delete: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{_printable(self.file)}: found {self.found}, expected {self.expected}; {self.remedy}"


class Report:
    """Collects findings from several threads; of one file no more than PER_FILE."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._of_file: dict[str, int] = {}
        self._lock = threading.Lock()

    def tell(self, file: str, found: str, expected: str, delete: Sequence[str] = (), remedy: str = RERUN) -> None:
        """Adds a finding; the remedy's text begins with what is to be deleted."""
        with self._lock:
            count = self._of_file[file] = self._of_file.get(file, 0) + 1
            if count > PER_FILE:
                return
            if delete:
                remedy = f"delete {' and '.join(map(_printable, delete))}" + (f", then {remedy}" if remedy else "")
            self._findings.append(Finding(file, _printable(found), _printable(expected), remedy, tuple(delete)))

    def findings(self) -> list[Finding]:
        """All, by file; a file with too many says how many more there were."""
        out = sorted(self._findings, key=lambda finding: (finding.file != MANIFEST, finding.file))
        more = {name: count - PER_FILE for name, count in self._of_file.items() if count > PER_FILE}
        last = {finding.file: finding for finding in out}
        out += [Finding(name, f"{n} more of these", "none", last[name].remedy) for name, n in sorted(more.items())]
        return out

    def __len__(self) -> int:
        return len(self._findings)


def _printable(text: str) -> str:
    """Without control characters and undecodable bytes: what a damaged store holds goes to a screen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
