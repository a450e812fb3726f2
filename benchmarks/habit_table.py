"""The table of habits that `python -m benchmarks endpoints` tries."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.habits import (
    FAILURE,
    Answer,
    Habit,
    Reply,
    Request,
    always,
    as_text,
    body_as,
    choice_with,
    content_with,
    cut_at_cap,
    each_function,
    fields_of,
    first,
    keeps,
    message_with,
    one_id,
    plain,
    refusal,
    refusing,
    signs_calls,
    stream,
    text_with,
    without,
)

STANDARD = (
    "model",
    "messages",
    "tools",
    "tool_choice",
    "response_format",
)
SAID = "the sentence of the provider"
PAST = "Thu, 01 Jan 1970 00:00:00 GMT"


def _parts(message: Reply) -> None:
    """Content as thinking and text."""
    if message.get("content"):
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Well: {"}]}
        message["content"] = [thought, {"type": "text", "text": message["content"]}]


def _legacy(message: Reply) -> None:
    """The first call in the older field."""
    calls = message.pop("tool_calls", None)
    if calls:
        message["function_call"] = calls[0]["function"]


CHANNELS = "<|channel|>analysis<|message|>Is it {met}?<|end|><|start|>assistant<|channel|>final<|message|>"  # fmt: skip


def _functions(message: Reply) -> list[dict[str, Any]]:
    """The calls of a message as a model writes them."""
    written = []
    for call in message.get("tool_calls") or []:
        function = call["function"]
        written.append({"name": function["name"], "arguments": json.loads(function["arguments"])})
    return written


def _as_words(message: Reply) -> Reply:
    """Calls as text between tags."""
    lines = [f"<tool_call>\n{json.dumps(each)}\n</tool_call>" for each in _functions(message)]
    return {"role": "assistant", "content": "\n".join(lines)} if lines else message


def _as_listed(message: Reply) -> Reply:
    """Calls as a list behind a control token."""
    calls = _functions(message)
    if not calls:
        return message
    return {"role": "assistant", "content": f"[TOOL_CALLS]{json.dumps(calls)}"}


def _as_thought(message: Reply) -> Reply:
    return {"role": "assistant", "content": None, "reasoning_content": message.get("content")}


def _no_content(message: Reply) -> None:
    if message.get("tool_calls"):
        del message["content"]


def _twice(function: dict[str, Any]) -> None:
    function["arguments"] = json.dumps(function["arguments"])


def _channelled(function: dict[str, Any]) -> None:
    function["name"] += "<|channel|>commentary"


def _thinks_and_forgets(request: Request, reply: Reply, number: int) -> Answer:
    """Sends its thoughts, and refuses to be sent them."""
    for message in request["messages"]:
        if "reasoning_content" in message:
            return refusal("messages: property 'reasoning_content' is unsupported")
    reply["choices"][0]["message"]["reasoning_content"] = "Let me think."
    return plain(reply)


def _named(message: dict[str, Any]) -> None:
    message["name"] = f"functions.{message['name']}"


def _sensitive(message: Reply) -> Reply:
    return {**message, "content": None, "tool_calls": None, "refusal": "I can't help with that."}


def _odd_part(message: Reply) -> Reply:
    return {"role": "assistant", "content": [{"type": "hologram", "data": SAID}]}


def _arguments(value: object) -> Any:
    """Arguments of calls without parameters replaced by this value."""

    def change(function: dict[str, Any]) -> None:
        if json.loads(function["arguments"]) == {}:
            function["arguments"] = value

    return change


def _no_arguments(function: dict[str, Any]) -> None:
    if json.loads(function["arguments"]) == {}:
        del function["arguments"]


def _object_arguments(function: dict[str, Any]) -> None:
    function["arguments"] = json.loads(function["arguments"])


def _chatty_once(request: Request, reply: Reply, number: int) -> Answer:
    """Words instead of JSON, until somebody says so."""
    told = "could not be read" in str(request["messages"][-1].get("content"))
    if not told and number == 1:
        reply["choices"][0]["message"] = {"role": "assistant", "content": "Sure! It is {met}."}
    return plain(reply)


def _broken_arguments(request: Request, reply: Reply, number: int) -> Answer:
    """Arguments with a stray comma, until somebody says so."""
    message = reply["choices"][0]["message"]
    for call in message.get("tool_calls") or []:
        if number == 1:
            call["function"]["arguments"] = '{"a": 1,,}'
    if message.get("content") and number == 1:
        message["content"] = '{"a": 1,,}'
    return plain(reply)


def _nameless_once(request: Request, reply: Reply, number: int) -> Answer:
    if number == 1:
        call = {"id": "a", "type": "function", "function": {"arguments": "{}"}}
        reply["choices"][0]["message"] = {"role": "assistant", "tool_calls": [call]}
    return plain(reply)


def _only_completion_tokens(request: Request) -> str:
    if "max_tokens" in request:
        return (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead."
        )
    if request.get("temperature") == 0:
        return "Unsupported value: 'temperature' does not support 0 with this model."
    return ""


def _mistral(request: Request) -> str:
    if "seed" in request:
        return "Extra inputs are not permitted: body.seed"
    if "max_completion_tokens" in request:
        return "Extra inputs are not permitted: body.max_completion_tokens"
    return ""


def _deepseek(request: Request) -> str:
    wanted = (request.get("response_format") or {}).get("type")
    if wanted == "json_schema":
        return "This response_format type is unavailable now"
    if wanted == "json_object" and "json" not in json.dumps(request["messages"]).lower():
        return "Prompt must contain the word 'json'"
    return ""


def _gemini(request: Request) -> str:
    unknown = fields_of(*STANDARD, "temperature", "max_tokens")(request)
    schema = (request.get("response_format") or {}).get("json_schema") or {}
    return unknown or ("Unknown name 'strict': cannot find field." if "strict" in schema else "")


def _tool_choice(request: Request) -> str:
    if request.get("tool_choice") == "auto":
        return "tool_choice must be one of 'any', 'none'"
    return ""


OTHER_NAME = body_as(lambda reply: {**reply, "model": "gpt-4o-2026-08-06"})
ONE_FENCE = text_with("```json\n", "\n```")

HABITS: tuple[Habit, ...] = (
    Habit("as the standard says", body_as(lambda reply: reply)),
    # What a request may hold.
    Habit("no max_tokens, temperature not 0", refusing(_only_completion_tokens), FAILURE,
          "chat.max_tokens_field: max_completion_tokens"),
    Habit("the same, with the settings for it", refusing(_only_completion_tokens),
          chat={"max_tokens_field": "max_completion_tokens", "temperature": None}),
    Habit("OpenAI's reasoning models, by provider", refusing(_only_completion_tokens),
          chat={"provider": "openai", "model": "o3-mini"}),
    Habit("no temperature", refusing(without("temperature", "temperature is not supported")),
          FAILURE, "chat.temperature: null"),
    Habit("no seed", refusing(without("seed", "Unrecognized request argument supplied: seed")),
          FAILURE, "chat.seed: null"),
    Habit("no json_schema", refusing(without("response_format", "response_format is not supported")),
          FAILURE, "chat.structured", askers=("client", "judge")),
    Habit("no tools", refusing(without("tools", "This model does not support tools")), FAILURE,
          "planner.tool_calls: false", askers=("planner",)),
    Habit("no tool_choice auto", refusing(_tool_choice), FAILURE, "chat.tool_choice",
          askers=("planner",)),
    Habit("tool_choice any, as set", refusing(_tool_choice), chat={"tool_choice": "any"}),
    Habit("no cap at all", refusing(without("max_tokens", "max_tokens: unknown field")),
          chat={"max_tokens": None}),
    Habit("Mistral, by provider", refusing(_mistral, 422), chat={"provider": "mistral"}),
    Habit("DeepSeek, by provider", refusing(_deepseek), chat={"provider": "deepseek"}),
    Habit("Gemini, by provider", refusing(_gemini), chat={"provider": "gemini"}),
    Habit("vLLM, by provider", body_as(lambda reply: reply), chat={"provider": "vllm"}),
    Habit("Azure, by provider", OTHER_NAME, chat={"provider": "azure", "model": "my-deployment"}),
    Habit("a deployment's name, the model's in replies", OTHER_NAME, FAILURE, "chat.reply_model",
          chat={"model": "my-deployment"}),
    Habit("the same, with reply_model", OTHER_NAME,
          chat={"model": "my-deployment", "reply_model": "gpt-4o"}),
    Habit("replies that name no model", body_as(lambda reply: {**reply, "model": None}), FAILURE,
          "chat.reply_model"),
    Habit("the same, with reply_model *", body_as(lambda reply: {**reply, "model": None}),
          chat={"reply_model": "*"}),
    # What must come back.
    Habit("reasoning_content must come back", keeps("reasoning_content", "Let me think.")),
    Habit("reasoning must come back", keeps("reasoning", "Let me think.")),
    Habit("reasoning_details must come back", keeps("reasoning_details", [{"id": "r1"}])),
    Habit("thought signatures must come back", signs_calls),
    Habit("one id for all calls", one_id("call_0")),
    Habit("calls without ids", one_id(None)),
    Habit("calls with an empty id", one_id("")),
    # How a reply may look.
    Habit("content as thinking and text", message_with(_parts)),
    Habit("finish_reason null", choice_with(finish_reason=None)),
    Habit("finish_reason eos", choice_with(finish_reason="eos")),
    Habit("finish_reason function_call", choice_with(finish_reason="function_call")),
    Habit("finish_reason end_turn", choice_with(finish_reason="end_turn")),
    Habit("finish_reason STOP", choice_with(finish_reason="STOP")),
    Habit("arguments null", each_function(_arguments(None))),
    Habit("arguments empty", each_function(_arguments(""))),
    Habit("arguments absent", each_function(_no_arguments)),
    Habit("arguments an object", each_function(_object_arguments)),
    Habit("nested objects as JSON text", each_function(as_text(["ratios", "bucket_weights"]))),
    Habit("the older function_call", message_with(_legacy)),
    Habit("names with functions.", each_function(_named)),
    Habit("a byte order mark", body_as(lambda reply: b"\xef\xbb\xbf" + json.dumps(reply).encode())),
    Habit("an event stream", body_as(stream)),
    Habit("an event stream that is cut", body_as(lambda reply: stream(reply, done=False)), FAILURE,
          "ends before its reply does"),
    Habit("blank lines before the reply", body_as(lambda reply: b"\n\n" + json.dumps(reply).encode())),
    Habit("comments before the reply",
          body_as(lambda reply: b": PROCESSING\n\n" + json.dumps(reply).encode())),
    Habit("a leading think block", content_with("<think>Is it {met}?</think>\n"), words=True),
    Habit("thoughts without their opening tag", content_with("Is it {met}?</think>\n"), words=True),
    Habit("a code fence", ONE_FENCE, words=True),
    Habit("a trailing control token", text_with("", "<|im_end|>"), words=True),
    Habit("a pair of tags", text_with("<answer>", "</answer>"), words=True),
    Habit("words in place of JSON, once", _chatty_once, words=True),
    Habit("broken JSON, once", _broken_arguments, words=True),
    Habit("cut at the cap, finish_reason tool_calls", cut_at_cap("tool_calls")),
    Habit("cut at the cap, finish_reason stop", cut_at_cap("stop")),
    Habit("calls as text, without a parser", message_with(_as_words), words=True),
    Habit("calls in a list after a token", message_with(_as_listed), words=True),
    Habit("every channel left in", content_with(CHANNELS, "<|return|>"), words=True,
          askers=("client", "judge")),
    Habit("the answer among the thoughts", message_with(_as_thought), askers=("client", "judge")),
    Habit("arguments as JSON text of JSON text", each_function(_twice), words=True),
    Habit("no content beside calls", message_with(_no_content)),
    Habit("tool_calls: null", message_with(lambda message: {"tool_calls": None, **message})),
    Habit("tool_calls: []", message_with(lambda message: {"tool_calls": [], **message})),
    Habit("no usage", body_as(lambda reply: {**reply, "usage": None})),
    Habit("no role", message_with(lambda message: message.pop("role") and message)),
    Habit("a name with its kind of channel", each_function(_channelled)),
    Habit("an event stream without blank lines",
          body_as(lambda reply: stream(reply).replace(b"\n\n", b"\n"))),
    Habit("an event stream with CRLF", body_as(lambda reply: stream(reply).replace(b"\n", b"\r\n"))),
    Habit("529, once", first(refusal("Overloaded", 529))),
    Habit("429 with retry-after-ms, once", first(plain({}, 429, {"retry-after-ms": "20"}))),
    # What does not answer the question.
    Habit("the context is too short",
          always(refusal("This model's maximum context length is 512 tokens", 400)), FAILURE,
          "chat.max_tokens"),
    Habit("returned fields are refused", _thinks_and_forgets, FAILURE,
          "chat.return_fields: standard", askers=("planner",)),
    Habit("the same, with return_fields: standard", _thinks_and_forgets,
          chat={"return_fields": "standard"}),
    Habit("a stream of an error",
          always(Answer(b'data: {"error": {"message": "' + SAID.encode() + b'"}}\n\n')), FAILURE, SAID),
    Habit("UTF-16", body_as(lambda reply: json.dumps(reply).encode("utf-16")), FAILURE, "not UTF-8"),
    Habit("choices: null and a detail", always(plain({"choices": None, "detail": SAID})), FAILURE, SAID),
    Habit("the older text of a completion",
          body_as(lambda reply: {**reply, "choices": [{"text": SAID}]}), FAILURE, SAID),
    Habit("200 with an error", always(refusal(SAID, 200)), FAILURE, SAID),
    Habit("200 with an error as text", always(plain({"error": SAID})), FAILURE, SAID),
    Habit("200 with an error that has a status",
          always(refusal(SAID, 200, code=502)), FAILURE, SAID),
    Habit("200 with a code and a msg", always(plain({"code": 1113, "msg": SAID})), FAILURE, SAID),
    Habit("200, the balance is used up",
          always(plain({"error": {"message": "Insufficient Balance", "code": "x"}})), FAILURE,
          "wants payment"),
    Habit("402", always(refusal(SAID, 402)), FAILURE, SAID),
    Habit("429, the quota is used up",
          always(refusal("You exceeded your current quota", 429, code="insufficient_quota")), FAILURE,
          "wants payment"),
    Habit("400, the credit is used up",
          always(refusal("Your credit balance is too low to access the API.", 400)), FAILURE,
          "wants payment"),
    Habit("429 with a Retry-After in the past, once",
          first(plain({}, 429, {"Retry-After": PAST}))),
    Habit("429 with Retry-After: 0, once", first(plain({}, 429, {"Retry-After": "0"}))),
    Habit("503 for good", always(refusal(SAID, 503)), FAILURE, SAID),
    Habit("500, once", first(refusal(SAID, 500))),
    Habit("401", always(refusal(SAID, 401)), FAILURE, SAID),
    Habit("403", always(refusal(SAID, 403)), FAILURE, SAID),
    Habit("404", always(refusal(SAID, 404)), FAILURE, SAID),
    Habit("422 with a list of details", always(plain({"detail": [{"msg": SAID}]}, 422)), FAILURE, SAID),
    Habit("Gemini's errors in a list", always(plain([{"error": {"message": SAID}}], 400)), FAILURE, SAID),
    Habit("choices: []", body_as(lambda reply: {**reply, "choices": [], "note": SAID}), FAILURE, SAID),
    Habit("no choices", always(plain({"message": SAID})), FAILURE, SAID),
    Habit("a page", always(Answer(b"<html>Please log in</html>")), FAILURE, "Please log in"),
    Habit("an empty body", always(Answer(b"")), FAILURE, "a body with"),
    Habit("a part of content nobody knows", message_with(_odd_part), FAILURE, SAID),
    Habit("a refusal", message_with(_sensitive), FAILURE, "refused"),
    Habit("a filter", choice_with(finish_reason="content_filter"), FAILURE, "refused"),
    Habit("an end in an error",
          choice_with(finish_reason="error", error={"message": SAID}), FAILURE, SAID),
    Habit("a choice with an error and no end",
          choice_with(finish_reason=None, message={"content": ""}, error={"message": SAID}), FAILURE, SAID),
    Habit("an error beside half an answer",
          body_as(lambda reply: {**reply, "error": {"message": SAID, "code": 502}}), FAILURE, SAID),
    Habit("a refusal that says why",
          choice_with(message={"content": None, "refusal": SAID}), FAILURE, SAID),
    Habit("a filter that says so with 400",
          always(refusal(SAID, 400, code="content_filter")), FAILURE, SAID),
    Habit("a call without a name, once", _nameless_once, words=True, askers=("planner",)),
    Habit("a redirect", always(Answer(b"", 307, {"Location": "/elsewhere"})), FAILURE,
          "chat.base_url"),
)  # fmt: skip
