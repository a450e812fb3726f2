"""What an assistant can ask over the Model Context Protocol, and what it cannot."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing

import pytest

from benchmarks.waiting import waiting_run
from mosaic.app.decisions import pending
from mosaic.app.views.report_data import report_data, status_data
from mosaic.app.views.trace import trace_data
from mosaic.core.tables import FILE

mcp = pytest.importorskip("mcp", reason="by mcp, which the extra `mcp` brings")


def ask(root, tool, **arguments):
    from mosaic.app.mcp_server import make_server

    async def once():
        async with mcp.Client(make_server(root)) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(once())


def answer(root, tool, **arguments):
    result = ask(root, tool, **arguments)
    assert not result.is_error, result.content
    return json.loads(result.content[0].text)


@pytest.fixture
def waiting(standin, tmp_path):
    folder, _ = waiting_run(standin, tmp_path)
    return folder


def test_it_answers_what_the_commands_print(finished):
    root = finished.parent
    assert answer(root, "list_runs") == {"runs": {"run": "finished"}}
    assert answer(root, "status", run="run") == status_data(finished).json_data()
    assert answer(root, "report", run="run") == report_data(finished).json_data()
    assert answer(root, "trace", run="run", round=1) == {"events": trace_data(finished, 1)}


def test_a_plan_that_waits_can_be_read_and_another_one_checked(waiting):
    root, asked = waiting.parent, pending(waiting)
    assert answer(root, "pending", run=waiting.name) == asked.json_data()
    plan = asked.plans[0].plan.json_data()
    name = waiting.name
    assert answer(root, "check_plan", run=name, plan=json.dumps(plan)) == {"violations": []}
    first, *others = plan["ratios"]
    plan["ratios"] = {first: 1.0, **dict.fromkeys(others, 0.0)}
    found = answer(root, "check_plan", run=name, plan=json.dumps(plan))["violations"]
    assert found[0]["path"].startswith("ratios")
    assert pending(waiting) == asked  # nothing was decided


def test_a_planner_that_costs_money_is_asked_only_if_that_is_agreed_to(finished):
    asked = ask(finished.parent, "propose_plan", run="run")
    assert asked.is_error
    said = asked.content[0].text
    assert "a plan asks the model mosaic" in said
    assert "may_cost_money: true" in said
    agreed = ask(finished.parent, "propose_plan", run="run", may_cost_money=True)
    # Every planned round has run, so that nobody is asked; but nothing is in the way.
    assert "may_cost_money" not in agreed.content[0].text


@pytest.mark.parametrize("fault", ["cut", "garbage", "rows", "release"])
def test_a_damaged_run_is_listed_as_such_beside_the_others(finished, tmp_path, fault):
    shutil.copytree(finished, tmp_path / "good")
    shutil.copytree(finished, tmp_path / "bad")
    path = tmp_path / "bad" / FILE
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif fault == "garbage":
        path.write_bytes(b"no database" * 500)
    else:
        change = {
            "rows": "UPDATE steps SET result = '{}' WHERE kind = 'round'",
            "release": "UPDATE meta SET value = '0' WHERE name = 'version'",
        }[fault]
        with closing(sqlite3.connect(path)) as database, database:
            assert database.execute(change).rowcount
    found = answer(tmp_path, "list_runs")["runs"]
    assert found["good"] == "finished"
    assert found["bad"].startswith("damaged: ")


def test_no_tool_decides_starts_or_stops(finished):
    from mosaic.app.mcp_server import make_server

    async def names():
        async with mcp.Client(make_server(finished.parent)) as client:
            return {tool.name for tool in (await client.list_tools()).tools}

    assert asyncio.run(names()) == {
        "list_runs", "status", "report", "trace", "pending", "propose_plan", "check_plan",
    }  # fmt: skip


@pytest.mark.parametrize("run", ["nosuch", "..", "../run", "/etc", ""])
def test_nothing_outside_of_the_folder_of_runs_can_be_named(finished, tmp_path, run):
    shutil.copytree(finished, tmp_path / "run")
    inner = tmp_path / "run" / "inner"
    inner.mkdir()
    result = ask(inner, "status", run=run)
    assert result.is_error
    assert "list_runs says which there are" in result.content[0].text
