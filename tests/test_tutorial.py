"""The tutorial as a reader would run it: every command works, and says what the page says it says.

What may differ from machine to machine is left out of the comparison: numbers, the lines of tables,
and whatever the page leaves out.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
DRAWN = re.compile(r"[\u2500-\u257f]")
PYTHON = re.compile(r"\S*/python[\d.]* ")
NUMBER = re.compile(r"[+-]?\d[\d,.]*")
LEFT_OUT = "..."


def steps(page):
    """(command, the lines that the page shows) of every block, in order."""
    found = []
    for block in BLOCK.findall(page):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip() and line.strip() != LEFT_OUT:
                found[-1][1].append(line)
    return found


def plain(text):
    """Words alone: a number is #, where lines are folded does not matter, nor where Python lies.

    >>> plain("│ rows │ 1,240 │")
    'rows #'
    """
    text = PYTHON.sub("python ", text)
    return " ".join(NUMBER.sub("#", DRAWN.sub(" ", text)).split())


def missing(shown, printed):
    """The lines of the page that the command did not print."""
    whole = plain(printed)
    return [line for line in shown if plain(line) not in whole]


def test_the_page_has_commands_and_shows_what_they_print():
    found = steps(PAGE.read_text())
    assert len(found) >= 8
    silent = [command for command, shown in found if not shown]
    assert all(command.startswith(("cp ", "cd ")) for command in silent), silent


def test_a_line_that_was_not_printed_is_found():
    printed = "│ rows │ 12 │\n│ a long line │\n│ that is folded │"
    assert missing(["rows 3", "a long line"], printed) == []
    assert missing(["columns 3"], printed) == ["columns 3"]


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_the_page_says(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "mosaic" / "lab" / "data", tmp_path / "mosaic" / "lab" / "data")
    folder = tmp_path
    for command, shown in steps(PAGE.read_text()):
        words = command.split()
        if words[0] == "cd":
            folder = folder / words[1]
            continue
        script = re.sub(r"^python ", f"{sys.executable} ", command)
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{printed}"
        assert missing(shown, printed) == [], f"{command} printed\n{printed}"
