"""README.md and docs/*.md: every command is run, word for word, on a tiny world, or is named here with the reason.

What a command stands for on that world (`/data/nuscenes`, `CACHE`, eight processes) is declared in
`tests.document_world.SWAPS`. All commands, those too that only the text or a task's help names, must parse, with every
option known to its task and every recipe, preset, benchmark, claim, selector and term there is. Links must lead
somewhere.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from invoke.exceptions import ParseError

from cache.errors import BevcaskError
from tests import document_checks as checks
from tests.document_world import (
    SWAPS,
    World,
    called_from,
    named_file,
    prepare,
    program_names,
    run,
    run_python,
    window_names,
)
from tests.documents import (
    DOCUMENTS,
    ROOT,
    Command,
    anchors,
    blocks,
    calls,
    commands,
    links,
    mentions,
    spans,
    tables_of_toml,
    text_of,
)
from trainer.main import _parser as rank_parser
from trainer.terms import TERMS

HISTORY = "docs/decisions.md"  # speaks of what was, too: its names need not be there today
NOW = [document for document in DOCUMENTS if document != HISTORY]
TRAIN = "./bevcask train --recipe bevdistill-r50 --cache"

# Commands that cannot run here: (document, how it begins) -> why. They are parsed, and their names looked up.
NOT_RUN = {
    ("README.md", "./bevcask demo"): "13 minutes; tests/studies/test_demo.py runs it small",
    ("README.md", "./bevcask test"): "this suite",
    ("docs/clusters.md", ".venv/bin/pip install"): "a download; the file and the extra are looked up",
    ("docs/clusters.md", "./bevcask cache-teacher --cache /shared/cask"): "no SLURM; tests/pipeline/test_engine.py "
    "checks the job script",
    ("docs/evaluation.md", "./bevcask inspect --cache CACHE --scene"): "the extra viewer is not among what tests "
    "install; tests/studies/test_recording.py runs it where it is",
    ("docs/training.md", f"{TRAIN} CACHE --run RUN --nproc 8 --nnodes 2"): "several machines; prove --claim two-hosts",
    ("docs/training.md", "#!/bin/bash"): "no SLURM; its syntax and the command in it are checked",
    ("docs/training.md", f"{TRAIN} s3://BUCKET/cache --run /runs/bevdistill"): "no Kubernetes",
}
# Blocks of Python: (document, how it begins) -> the test that runs it, or what it is run with here.
ELSEWHERE = {
    "docs/integrate.md": "tests/test_integrate.py::test_the_page_runs_from_outside_the_repository",
}
RUN_WITH: dict[tuple[str, str], Callable[[World, Path], dict[str, Any]]] = {
    ("docs/format.md", "import io, numcodecs"): lambda world, folder: {},
    ("docs/format.md", "import zarr"): lambda world, folder: {},
    ("docs/training.md", "windows = scene_windows"): window_names,
    ("docs/training.md", "program = torch.export.load"): program_names,
}
RUNNING = [name for name in DOCUMENTS if commands(name) or any(where == name for where, _ in RUN_WITH)]
# Options in the text that are other programs': torchrun's, dask's, pip's, pytest-xdist's.
OTHERS = {"--max-restarts", "--nthreads", "--no-deps", "--dist"}
WRITTEN = ("--out", "--report", "--csv", "--export", "--export-summary", "--performance-report")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("documents"))
    with made.ending:
        yield made


def reason_not_to_run(command: Command) -> str | None:
    found = [
        why for (document, begins), why in NOT_RUN.items()
        if document == command.document and " ".join(command.text.split()).startswith(begins)
    ]  # fmt: skip
    return found[0] if found else None


def every_command() -> list[Command]:
    return [command for document in DOCUMENTS for command in commands(document)]


@pytest.mark.parametrize("document", RUNNING)
def test_every_command_and_block_of_a_document_runs(document: str, world: World) -> None:
    folder = world.root / "called-from" / document.replace("/", "-").removesuffix(".md")
    prepare(document, world, folder)
    wrong = []
    for command in commands(document):
        if reason_not_to_run(command):
            continue
        ran, _ = run(command, world, folder)
        if problem := _problem_of(command, ran, folder):
            wrong.append(f"{command}\n  {problem}\n{ran.out[-1500:]}{ran.err[-1500:]}")
    for (where, begins), names in RUN_WITH.items():
        if where == document:
            (code,) = [block.text for block in blocks(document) if block.text.startswith(begins)]
            with called_from(folder, {}):
                ran = run_python(code, names(world, folder))
            wrong += [f"{document}: {begins} ...\n{ran.err[-1500:]}"] if ran.code else []
    assert not wrong, "\n\n".join(wrong)


def _problem_of(command: Command, ran: Any, folder: Path) -> str:
    """What is not as a reader expects it: exit status 0, the next step, which parses as well, and the files named."""
    words = command.arguments
    if ran.code:
        return f"exit status {ran.code}"
    if "Traceback" in ran.out + ran.err:
        return "a traceback"
    for option, value in itertools.pairwise(words):
        if option in WRITTEN and "." in value and not (folder / value).is_file():
            return f"{option} {value} was not written"
    if words[0] != "./bevcask":
        return ""
    said = [line.removeprefix("next: ") for line in ran.out.splitlines() if line.startswith("next: ")]
    if not said:
        return "it does not say what to do next"
    for line in said:
        if told := re.match(r"\./bevcask ([^;]*?)( draws | sets |;|$)", line):
            _require(told[1].split())
    return ""


def _require(words: list[str]) -> None:
    """Fails with the words where a command is not one."""
    try:
        checks.check(checks.with_values(words))
    except (ParseError, BevcaskError, AssertionError) as error:
        raise AssertionError(f"./bevcask {' '.join(words)}: {error}") from None


def test_what_is_not_run_is_named_once_and_there() -> None:
    for document, begins in NOT_RUN:
        found = [c for c in commands(document) if " ".join(c.text.split()).startswith(begins)]
        assert len(found) == 1, f"{document}: {begins}: {len(found)} commands begin so"


def test_what_stands_for_something_is_said_by_a_command_that_runs() -> None:
    for swap in SWAPS:
        where = swap.documents or DOCUMENTS
        texts = [" ".join(c.arguments) for d in where for c in commands(d) if not reason_not_to_run(c)]
        pattern = rf"(^|[\s(]){re.escape(swap.said)}([\s),]|$)"
        assert any(re.search(pattern, text) for text in texts), f"{swap.said}: no command says so"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_parses_and_names_what_there_is(document: str) -> None:
    for command in commands(document):
        found = calls(command)
        for call in found:
            _require(call)
        if command.is_script:
            done = subprocess.run(["bash", "-n"], input=command.text, text=True, capture_output=True, check=False)
            assert found and not done.stderr, done.stderr
        elif command.arguments[0].endswith("pip"):
            checks.check_pip(command.arguments[1:])
        elif command.arguments[0] == "torchrun":
            behind = command.arguments[command.arguments.index("trainer.main") + 1 :]
            rank_parser().parse_args(behind)
        else:
            assert found or command.arguments[0] == "python", f"{command}: no way to check it"


@pytest.mark.parametrize("document", NOW)
def test_commands_and_options_in_the_text_are_there(document: str) -> None:
    for words in mentions(document, checks.task_names()):
        _require(words)
    known = OTHERS | {flag for context in checks.namespace().to_contexts() for flag in context.flags}
    for span in spans(document):
        if span.startswith("--"):
            assert span.split()[0].split("=")[0] in known, f"{document}: {span}: no task takes it"


@pytest.mark.parametrize("document", NOW)
def test_recipes_files_modules_and_tests_that_a_document_names_are_there(document: str) -> None:
    for line, values in tables_of_toml(document):
        try:
            checks.check_recipe(values)
        except BevcaskError as error:
            raise AssertionError(f"{document}:{line}: {error}") from None
    for span in spans(document):
        checks.check_span(span)
    for block in blocks(document):
        if block.language in ("yaml", "yml"):
            assert isinstance(yaml.safe_load(block.text), dict), f"{document}:{block.line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in links(document):
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}: no such file"
        if anchor:
            assert anchor in anchors(str(file.resolve().relative_to(ROOT))), f"{document}: {target}: no such heading"


def test_every_block_of_python_is_run() -> None:
    for document in DOCUMENTS:
        code = [block for block in blocks(document) if block.language in ("python", "py")]
        if test := ELSEWHERE.get(document):
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text()
            assert code and f"def {name}(" in text and Path(document).name in text, f"{document}: {test}"
            continue
        for block in code:
            known = [begins for where, begins in RUN_WITH if where == document and block.text.startswith(begins)]
            module = (named_file(block) or "").removesuffix(".py")
            used = module and any(f"{module}:" in block.text for block in blocks(document))
            assert known or used, f"{document}:{block.line}: no test runs this block"
    for document, begins in RUN_WITH:
        assert any(block.text.startswith(begins) for block in blocks(document)), f"{document}: {begins}"


def test_every_document_is_linked_from_the_readme_and_every_task_named() -> None:
    assert {f"docs/{Path(link).name}" for link in links("README.md")} >= set(DOCUMENTS) - {"README.md"}
    assert checks.task_names() <= set(spans("README.md"))
    assert f"{len(TERMS)} terms by name" in text_of("README.md")


def test_figures_of_the_readme_are_those_of_the_benchmarks_and_the_results() -> None:
    table = text_of("README.md").split("## Measured")[1].split("\n## ")[0]
    figures = [figure for line in table.splitlines() if line.startswith("| ") for figure in _figures(line)]
    assert len(figures) > 8
    measured = _figures(text_of("docs/benchmarks.md")) + _figures(text_of("docs/results.md"))
    assert [figure for figure in figures if figure not in measured] == []


def _figures(text: str) -> list[str]:
    return re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?", text)


@pytest.mark.parametrize("task", sorted(checks.task_names()))
def test_the_help_of_a_task_has_an_example_and_the_next_step(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    import tasks

    text = str(getattr(tasks, task.replace("-", "_")).__doc__)
    if task == "bench":  # its help lists the benchmarks instead
        tasks.bench.body(None, "--help")
        text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0].endswith("."), f"{task}: the list of tasks shows its first line alone"
    examples = [line.removeprefix("Example: ./bevcask ") for line in lines if line.startswith("Example: ./bevcask ")]
    assert examples and any(line.startswith("Next: ") for line in lines), text
    for example in examples:
        assert example.split()[0] == task
        _require(example.split())


def test_a_misspelt_option_of_any_command_is_noticed() -> None:
    """By the checks above, word by word: an option with a letter too many, and with one too few."""
    seen = 0
    for command in every_command():
        for call in calls(command):
            for at, word in enumerate(call):
                if word.startswith("--"):
                    for other in (f"{word}x", word[:-1]):
                        with pytest.raises((ParseError, AssertionError)):
                            checks.check([*call[:at], other, *call[at + 1 :]])
                    seen += 1
    assert seen > 100


@pytest.mark.parametrize(
    "words",
    [
        "train --recipe demo-studnet --cache CACHE --run RUN",
        "trian --recipe demo-student --cache CACHE --run RUN",
        "train demo-student",
        "train --recipe",
        "cache-teacher --cache CACHE --name x --teacher centerpoint-voxel-0.2",
        "cache-teacher --cache CACHE --name x --coverage gaussians",
        "cache-teacher --cache CACHE --name x --fields logit",
        "cache-teacher --cache CACHE --name x --dtype float61",
        "plan --model cp-voxel-xs --against cp-vox",
        "bench steam",
        "bench order --option farmes=1",
        "prove --claim kills-too",
        "prove --part 12",
        "ablate --suite bevdistil",
        "evaluate --cache CACHE --run RUN --subset destription=night",
        "export --run RUN --out x.pt2 --format pt3",
        "inspect --cache CACHE --order --world three",
    ],
)
def test_a_misspelt_name_is_noticed(words: str) -> None:
    with pytest.raises((ParseError, AssertionError, BevcaskError)):
        checks.check(words.split())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "```sh\n./bevcask train --cache A \\\n    --run B  # there\n\n# none\nls\n```",
            ["./bevcask train --cache A --run B  # there", "ls"],
        ),
        (
            "Text:\n\n    ./bevcask gc\n    X=1 ./bevcask gc --delete\n\nMore",
            ["./bevcask gc", "X=1 ./bevcask gc --delete"],
        ),
        ("Text:\n\n    L = sum_k w_k\n", []),
        ("* a list\n    ./bevcask is not a block here\n", []),
        ("```toml\n[train]\nsteps = 1\n```", []),
        ("```yaml\nspec: {containers: [{command: [./bevcask, gc, --delete]}]}\n```", ["./bevcask gc --delete"]),
    ],
)
def test_commands_are_found_in_every_kind_of_block(
    text: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    assert [command.text for command in commands("page.md")] == found


def test_a_new_command_in_a_document_is_not_passed_over(world: World) -> None:
    """A command that is neither in the table nor known to run is an error, as is one whose file is not written."""
    with pytest.raises(AssertionError, match="it is not known how to run 'kubectl'"):
        run(Command("README.md", 1, "kubectl apply -f job.yaml"), world, world.root / "elsewhere")
    command = Command("README.md", 1, "./bevcask verify --cache nowhere")
    ran, _ = run(command, world, world.root / "elsewhere")
    assert _problem_of(command, ran, world.root) == "exit status 1"
