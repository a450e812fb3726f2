"""Whether a planner's endpoint can plan at all, asked once before anything is paid for.

One request of the planner's own shape: the same tools, made for the names of this run, the same cap
and sampling. Only the conversation is shorter. A server that refuses the request, a key that is not
taken and a model that does not call tools are found by it.
"""

from __future__ import annotations

from agent.planners.base import LlmPlannerConfig
from eval.chat.client import BadReply, ChatModel, ChatUnavailable
from mosaic.core.errors import UsageError
from mosaic.core.types.runs import Observation
from tools.planning.schemas import definitions, plan_model, schema_of

ASK_FOR_CALL = (
    "This checks the connection; nothing is planned yet. Call the tool past_rounds now, without "
    "arguments, and write nothing else."
)
ASK_FOR_PLAN = (
    "This checks the connection; nothing is planned yet. Answer with any plan of the given shape, "
    "as JSON and nothing else. Its rationale is the word test."
)
NO_CALL = (
    "answers with words where it should call a tool; choose a model and a server that call tools "
    "(vLLM: --enable-auto-tool-choice --tool-call-parser NAME), or set planner.tool_calls: false"
)


def check_endpoint(
    config: LlmPlannerConfig, observation: Observation, chat: ChatModel | None = None
) -> str:
    """Ask once, as a round will ask, and say what came of it.

    `observation` gives the names that the tools are made for. Raises UsageError if the endpoint
    refuses such a request or the model does not call tools, and ChatUnavailable if the endpoint is
    down or does not take the key.
    """
    chat = chat or ChatModel(config.chat)
    try:
        if config.tool_calls:
            return _called(chat, observation)
        return _planned(chat, observation)
    except ChatUnavailable as error:
        raise ChatUnavailable(f"planner: {error}", error.attempts) from None
    except BadReply as error:
        need = "mend planner.chat or the server's settings"
        if config.tool_calls and error.refusal:
            need += ", or set planner.tool_calls: false if the server has no tools"
        raise UsageError(f"planner: {error}; {need}") from None
    finally:
        chat.close()


def _called(chat: ChatModel, observation: Observation) -> str:
    tools = definitions(observation)
    messages = [{"role": "user", "content": ASK_FOR_CALL}]
    completion = chat.complete(messages, tools=tools)
    if not completion.tool_calls:
        raise UsageError(f"planner {chat.config.model} {NO_CALL}")
    return f"{chat.config.model} calls tools"


def _planned(chat: ChatModel, observation: Observation) -> str:
    schema = schema_of(plan_model(observation, "plan"))
    chat.complete([{"role": "user", "content": ASK_FOR_PLAN}], schema=schema)
    return f"{chat.config.model} answers with JSON"
