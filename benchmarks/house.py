"""How readable the code is: five figures over the six packages, each with its limit.

`make lint` runs it, so it imports nothing heavy: it parses the files and never runs them.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from benchmarks.figures import CannotRun, Rows, figure

PACKAGES = ("mosaic", "agent", "tools", "training", "eval", "prompts")
ROOT = Path(__file__).resolve().parents[1]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
MAX_WIDTH = 100
MAX_LINES = 600
# How many of the worst files are named below each figure.
NAMED = 3


@dataclass(frozen=True)
class Counts:
    """What was counted in one file."""

    name: str
    lines: int
    comprehensions: int
    nested: int
    long_lines: int
    anys: int


def count(name: str, text: str) -> Counts:
    """Count the constructs of one source file. Raises SyntaxError if it is not Python.

    The word `Any` counts wherever it stands, in comments too. A comprehension is nested if another
    one stands anywhere inside it; the outer one is counted.

    >>> found = count("a.py", "rows = [[x for x in row] for row in table]\\n")
    >>> found.comprehensions, found.nested
    (2, 1)
    """
    lines = text.splitlines()
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, COMPREHENSIONS)]
    return Counts(
        name=name,
        lines=len(lines),
        comprehensions=len(found),
        nested=sum(holds_another(node) for node in found),
        long_lines=sum(len(line) > MAX_WIDTH for line in lines),
        anys=len(re.findall(r"\bAny\b", text)),
    )


def holds_another(comprehension: ast.AST) -> bool:
    """Whether a comprehension stands anywhere inside this one."""
    inside = list(ast.walk(comprehension))[1:]
    return any(isinstance(node, COMPREHENSIONS) for node in inside)


def tracked(root: Path, folders: Iterable[str] = PACKAGES) -> list[Path]:
    """The Python files below these folders that git tracks.

    Raises CannotRun outside of a git checkout.
    """
    command = ["git", "ls-files", "-z", "--", *folders]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(f"{root} is not a git checkout: {done.stderr.strip()}")
    paths = [root / name for name in done.stdout.split("\0") if name.endswith(".py")]
    return [path for path in paths if path.exists()]


def rows_of(files: list[Counts]) -> Rows:
    """A row per figure with its limit, and below each the files that add most to it."""
    sizes = [file.lines for file in files]
    lines = sum(sizes)
    comprehensions = 1000 * _total(files, "comprehensions") / lines
    nested = _total(files, "nested")
    long_lines = 100 * _total(files, "long_lines") / lines
    anys = 1000 * _total(files, "anys") / lines
    too_long = sum(size > MAX_LINES for size in sizes)
    wide = f"lines over {MAX_WIDTH} characters"
    return [
        figure("comprehensions per 1,000 lines", comprehensions, "per 1,000", at_most=30),
        *_worst(files, "comprehensions", "comprehensions"),
        figure("comprehensions that hold another one", nested, "comprehensions", at_most=0),
        *_worst(files, "nested", "that hold another one"),
        figure(wide, long_lines, "%", below=1),
        *_worst(files, "long_lines", wide),
        figure("the word `Any` per 1,000 lines", anys, "per 1,000", at_most=8),
        *_worst(files, "anys", "times `Any`"),
        figure(f"files over {MAX_LINES} lines", too_long, "files", at_most=0),
        *_worst(files, "lines", "lines"),
        figure("median lines of a file", statistics.median(sizes), "lines", below=150),
    ]


def _total(files: list[Counts], field: str) -> int:
    return sum(getattr(file, field) for file in files)


def _worst(files: list[Counts], field: str, unit: str) -> Rows:
    """A row without a goal for each of the files with most of something."""
    rows = []
    for file in sorted(files, key=attrgetter(field), reverse=True)[:NAMED]:
        found = getattr(file, field)
        if found:
            rows.append(figure(f"  {file.name} ({file.lines} lines)", found, unit))
    return rows


def house(quick: bool) -> Rows:
    """The readability figures of this checkout. `quick` changes nothing: it takes a second."""
    files = []
    for path in tracked(ROOT):
        files.append(count(str(path.relative_to(ROOT)), path.read_text()))
    return rows_of(files)
