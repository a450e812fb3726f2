"""A run planned by a model over HTTP: an outage pauses it, and on resume the model's plan is trained."""

import json
import shutil

import pytest

from mosaic.app.config_file import BUNDLED, load_config
from mosaic.app.uncounted import check_consent
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.events import ToolCall
from mosaic.core.types.records import AskPlanner
from mosaic.lab.server import ScriptedServer
from tests import command_line

KEY = "sk-canary-0123456789abcdef"
SMALL = [
    "rounds=1",
    "calibration.repeats=1",
    "budget.tokens_per_round=1500",
    "generator.max_new_tokens=8",
    "methods.sft.batch_size=4",
    "methods.sft.epochs=1",
    "planner.kind=llm",
    "planner.chat.max_attempts=2",
    "planner.explore_share=1",
]


def mosaic(*arguments):
    return command_line.mosaic(*arguments, MOSAIC_API_KEY=KEY)


def test_an_outage_pauses_the_run_and_resume_lets_the_model_plan(tmp_path):
    lab, folder = tmp_path / "lab", tmp_path / "run"
    shutil.copytree(BUNDLED, lab)
    for path in (lab / "suites").rglob("*.jsonl"):
        if path.parent.name == "retention":
            continue  # a floor needs more than a few
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for i, line in enumerate(lines) if i % 32 < 4) + "\n")
    with ScriptedServer(pick=lambda n: None) as server:
        port = server.port
    sets = [
        part
        for s in (*SMALL, f"planner.chat.base_url=http://127.0.0.1:{port}/v1")
        for part in ("--set", s)
    ]
    paused = mosaic("run", lab / "config.yaml", "--run-dir", folder, *sets)
    assert paused.returncode == 6, paused.stderr
    assert "start the server, then resume" in paused.stderr

    with ScriptedServer(port):
        done = mosaic("resume", folder, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    round_ = report["rounds"][1]
    assert round_["planner"] == "llm", round_["replaced"]
    assert round_["replaced"] is None
    assert "get more of the budget" in round_["plan"]["rationale"]
    journal = Journal.open(folder)
    calls = journal.steps(AskPlanner)
    planned = journal.events(kind="planned")[0].record
    journal.close()
    assert len(calls) >= 3
    used = report["model_calls"]["planner"]
    assert used["answers"] == used["requests"] == len(calls)
    assert used["tokens"] == sum(c.result.charged for c in calls) > 0
    asked = [c for c in planned.calls if isinstance(c, ToolCall) and c.tool == "model"]
    assert len(asked) == len(calls)
    page = mosaic("report", folder, "--html", tmp_path / "report.html")
    assert page.returncode == 0, page.stderr
    assert (
        f"Planner: {len(calls)} answers of a language model"
        in (tmp_path / "report.html").read_text()
    )
    key = KEY.encode()
    assert all(p.is_dir() or key not in p.read_bytes() for p in folder.rglob("*"))


def test_a_plan_that_no_limit_counts_is_asked_for_only_if_that_is_agreed_to():
    """`plan` and `replay` ask the model outside of the run."""
    chat = "planner.chat.base_url=http://127.0.0.1:9/v1"
    free = load_config("lab", ["planner.kind=llm", chat, "planner.chat.model=m"])
    limited = free.model_copy(
        update={"budget": free.budget.model_copy(update={"planner_tokens": 9})}
    )
    said = []
    with pytest.raises(UsageError, match=r"the model m .* do not count .*add --may-cost-money"):
        check_consent(limited, False, said.append)
    assert said == []
    check_consent(limited, True, said.append)
    check_consent(free, False, said.append)
    assert len(said) == 2
    assert "may cost money" in said[0]
    check_consent(load_config("lab"), False, said.append)
    assert len(said) == 2
