"""`import mosaic`: light, typed, and the same code as the command line's."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mosaic
from mosaic.app.cli.main import app
from mosaic.app.loop import stop_signals
from mosaic.core.errors import BudgetError, UsageError

ENV = {**os.environ, "PYTHONPATH": os.getcwd(), "COLUMNS": "200"}
HEAVY = ("torch", "transformers", "langgraph", "pydantic", "pyarrow", "numpy", "yaml", "typer")


@pytest.fixture
def run(finished):
    return mosaic.open_run(finished)


def printed(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_import_brings_nothing_heavy():
    code = f"import sys, mosaic; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.stdout.strip() == "[]"


def test_a_name_that_is_not_there_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'runs'"):
        mosaic.runs  # noqa: B018


def test_report_status_and_trace_are_what_the_commands_print(run):
    assert run.report().json_data() == printed("report", run.path, "--json")
    assert run.status().json_data() == printed("status", run.path, "--json")
    assert run.trace(1) == printed("trace", run.path, "--round", 1, "--json")


def test_rounds_and_trials_are_those_of_the_journal(run):
    assert [round_.round for round_ in run.rounds] == [0, 1]
    assert run.rounds[1].plan is not None
    ids = [trial.id for trial in run.trials]
    assert run.rounds[1].trial.id in ids
    assert len(ids) == len(set(ids)) == 3  # base, one repeat of the calibration, one round
    assert run.config.rounds == 1
    assert run.pending() is None


def test_the_data_frame_has_a_row_per_round_objective_and_role(run):
    frame = run.to_pandas()
    report = run.report()
    audited = frame[frame.role == "audit"]
    assert set(audited["round"]) == {0, report.chosen} - {None}
    assert len(frame) == 2 * 2 * 2 + len(audited)
    row = frame[(frame["round"] == 1) & (frame.objective == "safety") & (frame.role == "selection")]
    assert row["mean"].item() == report.rounds[1].scores["safety"]["selection"].mean
    assert frame.chosen.any() == (report.chosen is not None)


def test_a_notebook_shows_scores_and_nothing_that_a_name_smuggles_in(run):
    shown = run._repr_html_()
    assert shown.count("<table>") == 2
    assert "safety, selection" in shown
    from mosaic.app.views.notebook import run_html

    named = run.report().model_copy(update={"run": "<script>x</script>"})
    assert "<script>" not in run_html(named)


def test_a_finished_run_that_is_resumed_does_nothing_twice(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    before = len(mosaic.open_run(folder).trace())
    assert mosaic.open_run(folder).resume().status().state == "finished"
    assert len(mosaic.open_run(folder).trace()) == before
    if find_spec("opentelemetry.sdk"):
        assert (folder / "spans.jsonl").is_file()
    else:
        assert "telemetry: spans not handed on: opentelemetry.sdk is not" in capsys.readouterr().err


def test_every_cell_of_the_example_runs_on_a_finished_run(run, tmp_path, capsys):
    cells = (Path(mosaic.__file__).parents[1] / "examples" / "notebook.py").read_text()
    begun = next(line for line in cells.splitlines() if line.startswith("run = "))
    copy = tmp_path / "notebook.py"
    copy.write_text(cells.replace(begun, f"run = mosaic.open_run({str(run.path)!r})"))
    runpy.run_path(str(copy))
    assert "planned by llm" in capsys.readouterr().out


def test_a_run_that_cannot_be_paid_is_refused_before_a_folder_is_left(tmp_path):
    with pytest.raises(BudgetError, match="cannot pay calibration"):
        mosaic.run("lab", overrides={"budget.tokens_total": 10}, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_override_is_checked_as_on_the_command_line(tmp_path):
    with pytest.raises(UsageError, match="rounds"):
        mosaic.run("lab", overrides={"rounds": "three"}, run_dir=tmp_path / "run")


def test_what_is_no_run_cannot_be_opened(tmp_path):
    with pytest.raises(UsageError, match="no run directory"):
        mosaic.open_run(tmp_path)


def test_the_loop_may_run_outside_of_the_main_thread():
    seen = []

    def inside():
        with stop_signals(print) as stopping:
            seen.append(stopping())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [False]
