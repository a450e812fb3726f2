"""A planner's conversation with a server that has wishes of its own, and with a limit on what it may cost."""

import json

import pytest

from agent.constraints import check_plan
from agent.planners.base import LlmPlannerConfig
from agent.planners.llm import LlmPlanner
from eval.chat.client import ChatConfig, ChatModel, ChatUnavailable, Completion
from eval.chat.failures import LimitReached
from eval.chat.prices import Prices
from mosaic.core.errors import BoundaryError
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.records import AskPlanner
from mosaic.lab.script import reply
from mosaic.lab.server import ScriptedServer
from tools.effects.model_calls import journaled
from tools.effects.spending import Limits, Purse, recorded_spending
from tools.planning.toolbox import Toolbox

PRICES = {"planner": Prices(input=1, output=2), "judge": None}


@pytest.fixture
def journal(new_journal, tmp_path):
    return new_journal(tmp_path / "run")


@pytest.fixture
def propose(observe, small_pool, journal):
    """Proposes the plan of the first round through the journal, under a limit on tokens."""
    seen = observe()

    def run(server, limits=None, **changes):
        chat = ChatConfig(base_url=server.url, timeout_seconds=5)
        more = {"meter": Purse(journal, limits, PRICES).meter("planner")} if limits else {}
        model = ChatModel(chat, lambda seconds: None, **more)
        ask = journaled(Steps(journal, Store(journal.folder)))
        planner = LlmPlanner(LlmPlannerConfig(chat=chat, **changes), model, ask)
        box = Toolbox(seen, lambda *wanted: [], lambda p: check_plan(p, seen, small_pool))
        (plan,) = planner.propose(seen, box)
        assert check_plan(plan, seen, small_pool) == []
        return plan

    return run


def test_a_limit_pauses_whoever_would_plan_instead_and_more_goes_on_without_asking_twice(
    propose, journal
):
    with ScriptedServer() as server:
        with pytest.raises(LimitReached, match=r"budget\.money"):
            propose(server, Limits(money=14_000), on_failure="profile")
        asked = server.requests
        assert asked == len(journal.steps(AskPlanner)) >= 1
        before = recorded_spending(journal).money
        with pytest.raises(LimitReached, match=r"budget\.money"):
            propose(server, Limits(money=14_000))
        assert server.requests == asked
        assert recorded_spending(journal).money == before <= 14_000
        propose(server, Limits(money=10**6))
    charged = sum(step.result.charged for step in journal.steps(AskPlanner))
    assert server.requests == len(journal.steps(AskPlanner))
    assert recorded_spending(journal).planner.used.planned == charged


def test_everything_a_server_put_into_its_message_comes_back_on_resume_too(propose, journal):
    heard = []

    def script(request):
        heard.append(request["messages"])
        said = dict(reply(request))
        said["reasoning_content"] = f"thought {len(request['messages'])}"
        said["extra_content"] = {"google": {"thought_signature": "c2ln"}}
        return said

    goes_down = ScriptedServer(script=script, pick=lambda n: "error_500" if n > 2 else None)
    with goes_down, pytest.raises(ChatUnavailable, match="cannot answer now"):
        propose(goes_down)
    with ScriptedServer(script=script) as server:
        propose(server)
    told = [message for message in heard[-1] if message["role"] == "assistant"]
    assert len(told) >= 2
    for message in told:
        assert message["reasoning_content"].startswith("thought")
        assert message["extra_content"] == {"google": {"thought_signature": "c2ln"}}


def test_a_plan_whose_parts_come_as_json_text_is_read_and_not_sent_back(propose):
    def script(request):
        said = reply(request)
        for call in said.get("tool_calls") or []:
            arguments = json.loads(call["function"]["arguments"])
            for name, value in arguments.items():
                arguments[name] = json.dumps(value) if isinstance(value, dict | list) else value
            call["function"]["arguments"] = json.dumps(arguments)
        return said

    with ScriptedServer(script=script) as server:
        propose(server, max_repairs=0)


def test_a_server_that_answers_strangely_lets_another_planner_plan(propose):
    with (
        ScriptedServer(pick=lambda n: "html") as server,
        pytest.raises(BoundaryError, match="Please log in"),
    ):
        propose(server)


def test_an_answer_that_was_filed_before_messages_were_kept_is_still_read(propose, journal):
    with ScriptedServer() as server:
        propose(server)
    for step in journal.steps(AskPlanner):
        old = {name: v for name, v in step.result.completion.items() if name != "message"}
        assert Completion.model_validate(old).message is None
