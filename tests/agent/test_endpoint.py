"""The planner's endpoint is asked once before a run, over real HTTP, in the shape of a round's request."""

import pytest

from agent.planners.base import LlmPlannerConfig
from agent.planners.endpoint import check_endpoint
from benchmarks.judge_server import JudgeServer
from eval.chat.client import ChatConfig, ChatModel, ChatUnavailable
from mosaic.core.errors import UsageError
from mosaic.lab.script import reply
from mosaic.lab.server import ScriptedServer
from tools.planning.schemas import definitions


def asked(url, seen, **changes):
    chat = ChatConfig(base_url=url, timeout_seconds=5, max_attempts=2)
    config = LlmPlannerConfig(chat=chat, **changes)
    return check_endpoint(config, seen, ChatModel(chat, sleep=lambda seconds: None))


@pytest.mark.parametrize("tool_calls", [True, False])
def test_an_endpoint_that_plans_is_asked_once_with_the_shapes_of_a_round(observe, tool_calls):
    seen, bodies = observe(), []

    def script(request):
        bodies.append(request)
        return reply(request)

    with ScriptedServer(script=script) as server:
        said = asked(server.url, seen, tool_calls=tool_calls)
    assert said == ("mosaic calls tools" if tool_calls else "mosaic answers with JSON")
    (body,) = bodies
    assert len(str(body["messages"])) < 400
    if tool_calls:
        assert body["tools"] == definitions(seen)
    else:
        schema = body["response_format"]["json_schema"]["schema"]
        assert {"ratios", "bucket_weights", "rationale"} <= set(schema["properties"])


def test_a_model_that_answers_with_words_is_refused_with_what_to_do(observe):
    words = {"role": "assistant", "content": "Certainly! I would look at the past rounds."}
    with (
        ScriptedServer(script=lambda request: words) as server,
        pytest.raises(UsageError, match="answers with words where it should call a tool") as caught,
    ):
        asked(server.url, observe())
    assert "planner.tool_calls: false" in str(caught.value)


@pytest.mark.parametrize("status", ["400", "422"])
def test_a_refused_request_is_quoted(observe, status):
    with (
        JudgeServer(lambda name, turns: {}, lambda call: status) as server,
        pytest.raises(UsageError, match=rf"^planner: .*refuses the request .*{status}.*told to"),
    ):
        asked(server.url, observe())


@pytest.mark.parametrize(
    ("status", "said"), [("401", "put a valid key"), ("404", "check base_url")]
)
def test_a_wrong_key_or_address_pauses(observe, status, said):
    with (
        JudgeServer(lambda name, turns: {}, lambda call: status) as server,
        pytest.raises(ChatUnavailable, match=rf"^planner: .*{said}") as caught,
    ):
        asked(server.url, observe())
    assert caught.value.exit_code == 6
    assert server.calls == 1


def test_an_endpoint_that_is_down_pauses(observe):
    with ScriptedServer(pick=lambda n: None) as server:
        url = server.url
    with pytest.raises(ChatUnavailable, match=r"^planner: .*start the server"):
        asked(url, observe())
