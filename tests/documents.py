"""README.md and docs/*.md as a test reads them: blocks, commands, mentions of commands in the text, links.

A block is what stands between fences, or indented by four spaces after an empty line. Commands are the logical lines of
shell blocks, and of indented blocks whose lines begin as commands do; a script (`#!`) is one command. A Kubernetes
manifest's `command:` counts as one as well.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SHELLS = ("sh", "bash", "shell", "console")
LAUNCHER = "./bevcask"
_PROGRAMS = (
    *("bevcask", "invoke", "python", "python3", "pip", "pytest", "torchrun", "dask", "rerun", "tensorboard"),
    *("git", "srun", "sbatch", "scontrol", "kubectl", "docker", "helm", "conda", "uv", "cd", "export", "tar", "ssh"),
)
_SETTING = re.compile(r"[A-Z_][A-Z0-9_]*=\S*")


@dataclass(frozen=True)
class Block:
    """language: as the fence says it, "" for none and for indented blocks; before: the line of text right above."""

    document: str
    line: int
    language: str
    text: str
    before: str


@dataclass(frozen=True)
class Command:
    """One logical line as the document has it, or a script whole."""

    document: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """As a shell splits it, without its comment."""
        return shlex.split(self.text, comments=True)

    @property
    def settings(self) -> dict[str, str]:
        """The environment that it is given in front."""
        found: dict[str, str] = {}
        for word in self.words:
            if not _SETTING.fullmatch(word):
                break
            name, _, value = word.partition("=")
            found[name] = value
        return found

    @property
    def arguments(self) -> list[str]:
        """The words behind the environment."""
        return self.words[len(self.settings) :]

    @property
    def is_script(self) -> bool:
        return self.text.startswith("#!")

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str) -> list[Block]:
    """Every block in order."""
    lines, out, before, at = text_of(document).split("\n"), [], "", 0
    while at < len(lines):
        fence = re.match(r"\s*(`{3,})(\w*)\s*$", lines[at])
        if fence:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[1])
            out.append(Block(document, at + 1, fence[2], "\n".join(lines[at + 1 : end]), before))
            at, before = end + 1, ""
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line[4:] for line in lines[at:end]).rstrip()
            out.append(Block(document, at + 1, "", text, before))
            at, before = end, ""
        else:
            before = lines[at].strip() or before
            at += 1
    return out


def commands(document: str) -> list[Command]:
    """Every command of the document's blocks, in order."""
    found: list[Command] = []
    for block in blocks(document):
        shell = block.language in SHELLS
        if block.text.startswith("#!"):
            found.append(Command(document, block.line, block.text))
        elif shell or (not block.language and any(map(_begins_as_command, block.text.split("\n")))):
            first = block.line + (1 if block.language else 0)
            found += [Command(document, first + at, text) for at, text in _logical_lines(block.text)]
        else:
            found += [Command(document, block.line, shlex.join(words)) for words in _manifest_commands(block)]
    return found


def _begins_as_command(line: str) -> bool:
    words = [word for word in line.split() if not _SETTING.fullmatch(word)]
    return bool(words) and (words[0] in _PROGRAMS or words[0].startswith(("./", ".venv/")))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 0, line with its continuations) of what is neither empty nor a comment alone."""
    begun, whole = 0, ""
    for at, line in enumerate(text.split("\n")):
        begun, whole = (at, line) if not whole else (begun, f"{whole} {line.strip()}")
        if whole.endswith("\\"):
            whole = whole[:-1].rstrip()
            continue
        if whole.strip() and not whole.lstrip().startswith("#"):
            yield begun, whole.strip()
        whole = ""


def _manifest_commands(block: Block) -> list[list[str]]:
    """`command:` lists of a YAML block that has them."""
    if "command:" not in block.text:
        return []
    found: list[list[str]] = []

    def look(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "command":
                found.append([str(word) for word in inner])
            elif isinstance(inner, dict | list):
                look(inner)

    look(yaml.safe_load(block.text))
    return found


def calls(command: Command) -> list[list[str]]:
    """The words behind each `./bevcask` of a command or script: the task's name and its arguments."""
    if not command.is_script:
        words = command.arguments
        return [words[1:]] if words[0] == LAUNCHER else []
    lines = [line for _, line in _logical_lines(command.text)]
    split = [shlex.split(line, comments=True) for line in lines if LAUNCHER in line]
    return [words[words.index(LAUNCHER) + 1 :] for words in split]


def spans(document: str) -> list[str]:
    """What stands between single backticks outside blocks."""
    text = text_of(document)
    for block in blocks(document):
        text = text.replace(block.text, "") if block.language else text
    text = "\n".join("" if line.startswith("    ") else line for line in text.split("\n"))
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def mentions(document: str, tasks: set[str]) -> list[list[str]]:
    """Commands that the text names between backticks, and that comments of blocks name: task and arguments."""
    said = [span for span in spans(document) if not span.startswith('"')]
    for block in blocks(document):
        said += [line.lstrip("# ") for line in block.text.split("\n") if line.startswith("# ")]
    out = []
    for text in said:
        plain = text.removeprefix("PYTHONPATH=. ")
        try:
            words = shlex.split(plain.replace("[", " ").replace("]", " ").replace(" ...", " "))
        except ValueError:
            continue
        if words and words[0] == LAUNCHER:
            words = words[1:]
        elif len(words) < 2 or not any(word.startswith("--") for word in words):
            words = words if len(words) == 2 and words[0] == "bench" else []
        if words and words[0] in tasks:
            out.append(words)
        elif words and plain.startswith(LAUNCHER) and words[0] != "TASK":
            out.append(words)  # a task that there is not: the parser says so
    return out


def tables_of_toml(document: str) -> list[tuple[int, dict[str, Any]]]:
    """Line and values of each block that is a part of a recipe."""
    out = []
    for block in blocks(document):
        looks = re.search(r"^\[\[?(terms|data|train|model)\b", block.text, re.MULTILINE) or "extends = " in block.text
        if block.language == "toml" or (not block.language and looks):
            out.append((block.line, tomllib.loads(block.text)))
    return out


def links(document: str) -> list[str]:
    """Targets of links and pictures, without those to other sites."""
    found = re.findall(r"\]\(([^)\s]+)\)", text_of(document))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(document: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = text_of(document)
    for block in blocks(document):
        text = text.replace(block.text, "") if block.language else text
    out = set[str]()
    for title in re.findall(r"^#{1,6} (.+?)\s*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        out.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return out
