"""The readability figures can fail, and a benchmark that raises does not stop the others."""

import json
import subprocess

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import every
from benchmarks.figures import CannotRun, figure
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


def test_every_benchmark_is_a_function_of_its_module():
    for name, module in benchmarks.BENCHMARKS.items():
        source = (every.ROOT / "benchmarks" / f"{module}.py").read_text()
        assert f"\ndef {name}(quick: bool)" in source


def test_all_goes_on_after_one_that_raises_and_does_not_count_what_cannot_run(monkeypatch, capsys):
    answers = {
        "good": [figure("g", 1, "s", at_most=2)],
        "no_gpu": [every.not_measured("cannot run here: needs a GPU")],
    }
    monkeypatch.setattr(every, "in_process", lambda name, quick: answers[name])
    assert every.run_all(["good", "no_gpu"], True, False) == 0
    assert "cannot run here: needs a GPU" in capsys.readouterr().out
    answers["raised"] = [every.not_measured("did not finish", met=False)]
    assert every.run_all(["raised", "good"], True, True) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["benchmark"] for row in rows] == ["raised", "raised", "good", "good"]


def test_a_benchmark_that_raises_is_a_missed_row_that_says_what():
    (row,) = every.in_process("no_such_benchmark", quick=True)
    assert row["met"] is False
    assert "no_such_benchmark" in row["what"]
