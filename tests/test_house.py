"""Each readability figure can fail, and names the files that add most to it."""

import subprocess

import pytest

from benchmarks.figures import CannotRun
from benchmarks.house import count, rows_of, tracked

NESTED = "table = [[cell for cell in row] for row in rows]\n"


def missed(name, text):
    return {row["what"] for row in rows_of([count(name, text)]) if row["met"] is False}


def test_a_file_that_is_easy_to_read_is_within_every_limit():
    assert missed("a.py", "value = 1\n" * 100) == set()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (NESTED, "comprehensions that hold another one"),
        ("pairs = {k: sum(v for v in w) for k, w in d}\n", "comprehensions that hold another one"),
        ("x = [y for y in z]\n" * 4 + "a = 1\n" * 100, "comprehensions per 1,000 lines"),
        (f"# {'x' * 99}\n" + "a = 1\n" * 50, "lines over 100 characters"),
        ("x: Any = 1\n" + "a = 1\n" * 100, "the word `Any` per 1,000 lines"),
        ("a = 1\n" * 601, "files over 600 lines"),
        ("a = 1\n" * 150, "median lines of a file"),
    ],
)
def test_each_limit_can_be_missed(text, what):
    assert what in missed("a.py", text)


def test_only_tracked_python_files_are_counted_and_the_worst_is_named(tmp_path):
    (tmp_path / "agent").mkdir()
    for name in ("agent/bad.py", "agent/untracked.py", "other.py"):
        (tmp_path / name).write_text(NESTED)
    for command in (["init", "-q"], ["add", "agent/bad.py", "other.py"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (found,) = tracked(tmp_path)
    assert found == tmp_path / "agent" / "bad.py"
    named = [row["what"] for row in rows_of([count("agent/bad.py", found.read_text())])]
    assert any("agent/bad.py" in what for what in named)


def test_files_cannot_be_listed_without_git(tmp_path):
    with pytest.raises(CannotRun, match="not a git checkout"):
        tracked(tmp_path)
