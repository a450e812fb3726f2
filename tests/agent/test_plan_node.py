"""A planning that failed leaves its conversation in the trace, whoever plans after it."""

import pytest

from agent.graph import run as run_graph
from agent.planners.base import LlmPlannerConfig
from agent.planners.baselines import StaticPlanner
from agent.planners.llm import LlmPlanner
from agent.planners.surrogate import SurrogatePlanner
from benchmarks.judge_server import JudgeServer
from benchmarks.standins import StandIn, Witness
from eval.chat.client import ChatConfig, ChatModel
from mosaic.app.views.report_data import report_data
from mosaic.app.views.story_text import entry_text
from mosaic.app.views.telling import entry_of
from mosaic.core.errors import PausedError, TrainingError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.events import ToolCall
from mosaic.lab.server import ScriptedServer
from tools.effects.model_calls import journaled


@pytest.fixture(scope="module")
def standin():
    return StandIn.make("rounds=1", "budget.tokens_total=100000", per_slice=2)


@pytest.fixture
def start(standin, tmp_path):
    """One start of the controller; `change` may replace parts of its context first."""
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    standin.create(folder)

    def run(change):
        journal = Journal.open(folder)
        try:
            journal.acquire()
            context = standin.context(folder, journal, witness)
            change(context)
            run_graph(context, folder)
        finally:
            journal.close()

    run.folder, run.witness = folder, witness
    return run


def llm_planner(context, url, on_failure="profile"):
    """The planner by a model, which waits for nothing between two tries."""
    chat = ChatConfig(base_url=url)
    config = LlmPlannerConfig(chat=chat, on_failure=on_failure)
    model = ChatModel(chat, sleep=lambda seconds: None)
    return LlmPlanner(config, model, journaled(context.steps))


@pytest.mark.parametrize(
    ("on_failure", "fault", "said"),
    [
        ("profile", "cut_json", "truncated"),
        ("pause", "cut_json", "truncated"),
        ("profile", "error_503", "http_503"),
    ],
)
def test_a_conversation_that_ends_without_a_plan_is_in_the_trace(start, on_failure, fault, said):
    with ScriptedServer(pick=lambda n: fault if n > 1 else None) as server:

        def by_model(context):
            context.planner = llm_planner(context, server.url, on_failure)
            context.fallback = SurrogatePlanner() if on_failure == "profile" else None

        if on_failure == "profile" and fault == "cut_json":
            start(by_model)
            replaced = report_data(start.folder).rounds[1].replaced
            assert (replaced.planner, replaced.by) == ("llm", "profile")
            assert "truncated" in replaced.reason
        else:
            with pytest.raises(PausedError):
                start(by_model)
    journal = Journal.open(start.folder)
    (event,) = journal.events(kind="failed")
    journal.close()
    calls = [call for call in event.record.calls if isinstance(call, ToolCall)]
    lines = [call for call in calls if call.tool == "model"]
    assert len(lines) == 2
    assert {attempt["error"] for attempt in lines[1].result["attempts"]} == {said}
    assert (event.record.step, event.record.planner, event.place.round) == ("plan", "llm", 1)
    text = entry_text(entry_of(start.folder, event.seq), 1000, full=True)
    assert "plan of llm failed" in text.splitlines()[0]
    assert said in text
    assert "the model, call 2, gave no usable reply" in text


def test_why_the_endpoint_refused_the_request_stands_in_the_event_that_replaces_the_planner(start):
    with JudgeServer(lambda name, turns: {}, lambda call: "400") as server:

        def by_model(context):
            context.planner = llm_planner(context, server.url)
            context.fallback = SurrogatePlanner()

        start(by_model)
    journal = Journal.open(start.folder)
    (event,) = journal.events(kind="replaced")
    journal.close()
    assert "the endpoint refuses the request (HTTP 400): told to" in event.record.reason
    assert (event.record.planner, event.record.by) == ("llm", "profile")


@pytest.mark.parametrize("mended", [False, True])
def test_a_replacement_stands_after_a_restart_unless_another_is_configured(start, mended):
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

    def flaky(context):
        context.planner = planner

    def killed(context):
        """The controller dies when the adapter of round 1 is to be measured."""
        flaky(context)
        generator = context.evaluator.generator
        generate = generator.generate

        def answers(prompts, adapter, *more):
            if context.state.calibration is not None:
                raise KeyboardInterrupt
            return generate(prompts, adapter, *more)

        generator.generate = answers

    def mend(context):
        flaky(context)
        context.fallback = StaticPlanner()

    with pytest.raises(KeyboardInterrupt):
        start(killed)
    trained = sum(line.startswith("train") for line in start.witness.lines())
    assert (trained, planner.asked) == (2, 1)
    if mended:
        start(mend)
        assert planner.asked == 2
        return
    start(flaky)
    assert planner.asked == 1
    assert sum(line.startswith("train") for line in start.witness.lines()) == trained
    round_ = report_data(start.folder).rounds[1]
    assert round_.planner == "need"
    assert "refuses the request" in round_.replaced.reason


def test_an_error_keeps_its_own_details():
    assert TrainingError("broken", "hang").details == {"failure": "hang"}
    assert PausedError("down").details == {}
