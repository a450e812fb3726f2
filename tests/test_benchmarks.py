"""The benchmarks as a whole: one that raises does not stop the others, and seeded mistakes still apply."""

import json
from importlib import import_module

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import concurrency, every
from benchmarks.figures import figure, not_measured
from benchmarks.mutants import MUTANTS, ROOT


def test_every_benchmark_is_a_function_of_its_module():
    for name, module in benchmarks.BENCHMARKS.items():
        source = (ROOT / "benchmarks" / f"{module}.py").read_text()
        assert f"\ndef {name}(quick: bool)" in source


@pytest.mark.parametrize("module", sorted(set(benchmarks.BENCHMARKS.values())))
def test_every_module_of_a_benchmark_finds_what_it_imports(module):
    import_module(f"benchmarks.{module}")


def test_all_goes_on_after_one_that_raises_and_does_not_count_what_cannot_run(monkeypatch, capsys):
    answers = {
        "good": [figure("g", 1, "s", at_most=2)],
        "no_gpu": [not_measured("cannot run here: needs a GPU")],
    }
    monkeypatch.setattr(every, "in_process", lambda name, quick: answers[name])
    assert every.run_all(["good", "no_gpu"], True, False) == 0
    assert "cannot run here: needs a GPU" in capsys.readouterr().out
    answers["raised"] = [not_measured("did not finish", met=False)]
    assert every.run_all(["raised", "good"], True, True) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["benchmark"] for row in rows] == ["raised", "raised", "good", "good"]


def test_a_benchmark_that_raises_is_a_missed_row_that_says_what():
    (row,) = every.in_process("no_such_benchmark", quick=True)
    assert row["met"] is False
    assert "no_such_benchmark" in row["what"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_seeded_mistake_still_finds_the_text_that_it_replaces(mutant):
    for path, old, _ in mutant.changes:
        assert old in (ROOT / path).read_text()


def test_processes_may_file_the_same_folder_at_once():
    rows = concurrency.processes_over_one_store(20)
    assert [row for row in rows if row["met"] is False] == []
