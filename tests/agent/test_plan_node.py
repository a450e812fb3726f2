"""A planning that failed leaves its conversation in the trace, whoever plans after it."""

from types import SimpleNamespace

import pytest

from agent.graph import run as run_graph
from agent.nodes import all as nodes
from agent.planners.base import LlmPlannerConfig
from agent.planners.baselines import StaticPlanner
from agent.planners.llm import LlmPlanner
from benchmarks.standins import StandIn, Witness
from eval.chat.client import ChatConfig, ChatModel
from mosaic.app.views.report_data import report_data
from mosaic.app.views.trace_tree import _node, tree_text
from mosaic.core.errors import PausedError, TrainingError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.lab.server import ScriptedServer, _send
from tools.effects.model_calls import journaled


@pytest.mark.parametrize(
    ("on_failure", "fault", "said"),
    [
        ("profile", "cut_json", "truncated"),
        ("pause", "cut_json", "truncated"),
        ("profile", "error_503", "http_503"),
    ],
)
def test_a_conversation_that_ends_without_a_plan_is_in_the_trace(
    observe, small_pool, tmp_path, monkeypatch, on_failure, fault, said
):
    seen = observe()
    journal = Journal.create(tmp_path / "run", "run", {}, 1000)
    journal.acquire()
    store = Store(tmp_path / "run")
    steps = Steps(journal, store)
    monkeypatch.setattr(
        nodes, "_replace", lambda services, state, reason, planner: {"fallback": reason}
    )
    with ScriptedServer(pick=lambda n: fault if n > 1 else None) as server:
        chat = ChatConfig(base_url=server.url)
        config = LlmPlannerConfig(chat=chat, on_failure=on_failure)
        planner = LlmPlanner(config, ChatModel(chat, sleep=lambda s: None), journaled(steps))
        services = SimpleNamespace(
            steps=steps, planner=planner, fallback=None, state=lambda: SimpleNamespace(latest_files=None),
            pool=small_pool,
        )  # fmt: skip
        state = {
            "round": seen.round,
            "observation": store.put_json(seen.json_data()),
            "attempt": 0,
            "rejected": [],
            "violations": [],
        }
        if on_failure == "profile" and fault == "cut_json":
            assert "truncated" in nodes.plan(services, state)["fallback"]
        else:
            with pytest.raises(PausedError):
                nodes.plan(services, state)
    (event,) = journal.events(kind="failed")
    lines = [c for c in event.payload["calls"] if c.get("tool") == "model"]
    assert len(lines) == 2
    assert {a["error"] for a in lines[1]["result"]["attempts"]} == {said}
    assert event.payload["planner"] == "llm"
    text = tree_text([_node(event, store)], limit=10_000)
    assert text.startswith("plan failed")
    assert said in text
    assert "asked model" in text
    journal.close()


def test_why_the_endpoint_refused_the_request_stands_in_the_event_that_replaces_the_planner(
    observe, small_pool, tmp_path, monkeypatch
):
    async def refuse(self, body, writer):
        return await _send(writer, 400, b'{"error": {"message": "tool_choice is not supported"}}')

    monkeypatch.setattr(ScriptedServer, "_chat", refuse)
    journal = Journal.create(tmp_path / "run", "run", {}, 1000)
    journal.acquire()
    store = Store(tmp_path / "run")
    steps = Steps(journal, store)
    with ScriptedServer() as server:
        chat = ChatConfig(base_url=server.url)
        services = SimpleNamespace(
            steps=steps, planner=LlmPlanner(LlmPlannerConfig(chat=chat), ask=journaled(steps)),
            fallback=SimpleNamespace(kind="profile"), state=lambda: SimpleNamespace(latest_files=None),
            pool=small_pool, notify=lambda text: None,
        )  # fmt: skip
        seen = store.put_json(observe().json_data())
        state = {
            "observation": seen,
            "attempt": 0,
            "rejected": [],
            "violations": [],
            "round": 1,
            "planner": "llm",
        }
        nodes.plan(services, state)
    (event,) = journal.events(kind="replaced")
    assert (
        "the endpoint refuses the request (HTTP 400): tool_choice is not supported"
        in event.payload["reason"]
    )
    journal.close()


@pytest.mark.parametrize("mended", [False, True])
def test_a_replacement_stands_after_a_restart_unless_another_is_configured(tmp_path, mended):
    made = StandIn.make("rounds=1", "budget.tokens_total=100000", per_slice=4)
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    made.create(folder)

    class Flaky:
        """Fails when first asked; an endpoint that came back would answer now."""

        kind = "llm"
        asked = 0

        def propose(self, observation, toolbox, n=1):
            self.asked += 1
            if self.asked == 1:
                raise UsageError("the endpoint refuses the request")
            return [observation.last_plan]

    planner = Flaky()

    def start(killed, fallback=None):
        journal = Journal.open(folder)
        journal.acquire()
        services = made.services(folder, journal, witness)
        services.planner = planner
        services.fallback = fallback or services.fallback
        generator = services.evaluator.generator
        generate = generator.generate

        def answers(prompts, adapter):
            if killed and services.steps.round == 1:
                raise KeyboardInterrupt
            return generate(prompts, adapter)

        generator.generate = answers
        try:
            run_graph(services, folder)
        finally:
            journal.close()

    with pytest.raises(KeyboardInterrupt):
        start(killed=True)
    trained = sum(line.startswith("train") for line in witness.lines())
    if mended:
        start(killed=False, fallback=StaticPlanner())
        assert planner.asked == 2
        return
    start(killed=False)
    assert planner.asked == 1
    assert sum(line.startswith("train") for line in witness.lines()) == trained
    round_ = report_data(folder)["rounds"][1]
    assert (round_["planner"], "refuses the request" in round_["replaced"]["reason"]) == (
        "need",
        True,
    )


def test_an_error_keeps_its_own_details():
    assert TrainingError("broken", "hang").details == {"failure": "hang"}
    assert PausedError("down").details == {}
