"""What an assistant can ask over the Model Context Protocol, and what it cannot."""

import asyncio
import json
import shutil

import pytest

from benchmarks.waiting import waiting_run
from mosaic.app.decisions import pending
from mosaic.app.views.report_data import report_data, status_data
from mosaic.app.views.trace import trace_data

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
