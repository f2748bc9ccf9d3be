"""The registry of benchmarks: what is listed, how options travel, what is written."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cache.errors import ConfigError
from studies.benches import registry

ABOUT = "a benchmark made for this test"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """This very module as the benchmark `mine`; the options that it was run with."""
    seen: list[dict[str, Any]] = []

    def run(work: Path, console: Console, *, rounds: int = 1) -> dict[str, Any]:
        assert work.is_dir()
        seen.append({"work": work.name, "rounds": rounds})
        return {"figure": 2 * rounds}

    module = types.SimpleNamespace(ABOUT=ABOUT, run=run)
    monkeypatch.setattr(registry, "BENCHES", {"mine": __name__, "stream": registry.BENCHES["stream"]})
    real = registry.importlib.import_module
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: module if name == __name__ else real(name))
    return seen


def test_every_benchmark_is_listed_with_its_own_line_without_being_imported(listed: list[dict[str, Any]]) -> None:
    lines = registry.listing()
    assert lines[0] == f"mine    {ABOUT}"
    assert lines[1].startswith("stream  ")
    assert all(len(line) <= 120 for line in lines)


def test_figures_are_written_with_date_and_machine(listed: list[dict[str, Any]], tmp_path: Path) -> None:
    result = registry.run_bench("mine", tmp_path, Console(), {"rounds": 3})
    assert listed == [{"work": "mine", "rounds": 3}]
    assert result["figure"] == 6 and result["options"] == {"rounds": 3}
    assert result["machine"]["cores"] >= 1 and result["machine"]["torch"][0].isdigit()
    assert json.loads((tmp_path / "mine.json").read_text()) == result


def test_an_unknown_name_or_option_is_refused_by_name(listed: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no benchmark 'yours'; there are mine, stream"):
        registry.run_bench("yours", tmp_path, Console(), {})
    with pytest.raises(ConfigError, match="no option turns; it takes rounds"):
        registry.run_bench("mine", tmp_path, Console(), {"turns": 1})
    assert listed == []


def test_options_are_json_where_they_parse_and_text_elsewhere() -> None:
    found = registry.parse_options(["rounds=3", "peers=npz,litdata", "quick=true", "text=a=b"])
    assert found == {"rounds": 3, "peers": "npz,litdata", "quick": True, "text": "a=b"}
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        registry.parse_options(["rounds"])
