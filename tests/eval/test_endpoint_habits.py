"""Endpoints as they are: every habit of the benchmark's table, and the kinds behind them by property."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.endpoints import ASKERS, HabitServer, wrong
from benchmarks.habit_table import HABITS
from benchmarks.habits import Habit, always, body_as, plain, refusal, stream
from eval.chat.client import BadReply, ChatConfig, ChatModel, ChatUnavailable
from eval.chat.fault import Fault, TokenCounts
from eval.chat.message import called, ids_of, tool_name
from eval.chat.metering import Tokens
from eval.chat.prices import Prices, micros, money_text
from eval.chat.reply import gates
from eval.chat.streams import value_of
from eval.chat.strict_json import strict_json
from eval.chat.unwrap import json_text, unwrapped, without_thoughts
from eval.judges.base import LlmJudgeConfig
from eval.judges.llm import LlmJudge

ASK = [{"role": "user", "content": "Is it met? Reply with JSON."}]
SCHEMA = {"type": "object", "properties": {"verdict": {"enum": ["met"]}}, "required": ["verdict"]}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CASES = [(habit, who) for habit in HABITS for who in habit.askers]


@pytest.mark.parametrize(("habit", "who"), CASES, ids=lambda case: getattr(case, "name", case))
def test_a_habit_ends_as_it_should_for_whoever_asks(habit, who):
    assert wrong(habit, who, ASKERS[who](habit, lambda seconds: None)) == ""


def says(text):
    return lambda request: {"role": "assistant", "content": text}


def ask(server, say=None, waits=None, **call):
    """One call to a server of this behaviour: (completion, requests)."""
    chat = call.pop("chat", {})
    sleep = (lambda seconds: None) if waits is None else waits.append
    with HabitServer(Habit("", server), say or says('{"verdict": "met"}')) as habit:
        config = ChatConfig.model_validate({"base_url": habit.url, "timeout_seconds": 5, **chat})
        try:
            return ChatModel(config, sleep).complete(ASK, **call), habit.requests
        except (BadReply, ChatUnavailable) as error:
            error.requests = habit.requests
            raise


WELL = body_as(lambda reply: reply)


# -- requests -------------------------------------------------------------------------------------


def test_each_field_of_a_request_can_be_renamed_or_left_out():
    _, [body] = ask(WELL, schema=SCHEMA)
    assert {"max_tokens", "temperature", "seed", "response_format"} <= set(body)
    assert body["response_format"]["json_schema"]["strict"] is True
    chat = {"max_tokens": None, "temperature": None, "seed": None, "strict": None}
    _, [body] = ask(WELL, schema=SCHEMA, chat=chat)
    assert set(body) == {"model", "messages", "response_format"}
    assert "strict" not in body["response_format"]["json_schema"]
    chat = {"max_tokens": "max_completion_tokens", "seed_field": "random_seed", "strict": False}
    _, [body] = ask(WELL, schema=SCHEMA, chat=chat)
    assert (body["max_completion_tokens"], body["random_seed"]) == (2048, 1)
    assert body["response_format"]["json_schema"]["strict"] is False
    _, [body] = ask(WELL, tools=TOOLS, say=says("no"), chat={"tool_choice": "required"})
    assert body["tool_choice"] == "required"
    chat = {"extra_body": {"reasoning_effort": "low", "top_k": 1}}
    _, [body] = ask(WELL, chat=chat)
    assert (body["reasoning_effort"], body["top_k"]) == ("low", 1)


def test_extra_fields_are_not_those_that_each_request_has():
    with pytest.raises(ValidationError, match="messages: MOSAIC says that itself"):
        ChatConfig(extra_body={"messages": []})


@pytest.mark.parametrize("provider", ["openai", "azure", "mistral", "deepseek", "gemini", "vllm"])
def test_a_key_that_is_given_wins_over_the_preset_even_after_the_config_was_kept(provider):
    own = {"max_tokens_field": "max_tokens", "seed": 7, "seed_field": "seed", "reply_model": "m",
           "temperature": 0.0, "structured": "none", "strict": False}  # fmt: skip
    config = ChatConfig.model_validate({"provider": provider, "model": "gpt-5", **own})
    assert {name: getattr(config, name) for name in own} == own
    assert ChatConfig.model_validate(config.json_data()) == config


def test_a_config_without_the_new_keys_is_written_as_before():
    assert set(ChatConfig().json_data()) == {
        "base_url", "model", "api_key_env", "max_attempts", "timeout_seconds", "temperature",
        "seed", "max_tokens", "structured",
    }  # fmt: skip


def test_a_judge_may_leave_the_temperature_out_and_is_no_other_judge_for_later_keys():
    plain_judge = LlmJudge(LlmJudgeConfig())
    named = LlmJudgeConfig(
        chat=ChatConfig(max_tokens_field="max_completion_tokens", max_tokens=512)
    )
    assert LlmJudge(named).identity == plain_judge.identity
    warm = LlmJudgeConfig(chat=ChatConfig(extra_body={"top_k": 5}, max_tokens=512))
    assert LlmJudge(warm).identity != plain_judge.identity
    LlmJudgeConfig(chat=ChatConfig(temperature=None))
    with pytest.raises(ValidationError, match="a judge answers at temperature 0"):
        LlmJudgeConfig(chat=ChatConfig(temperature=0.1))


@pytest.mark.parametrize(
    ("sentence", "more", "key"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", {}, "chat.max_tokens_field: max_completion_tokens"),
        ("max_tokens is too large: 2048. It is at most 1024", {}, "chat.max_tokens: a smaller number"),
        ("This model's maximum context length is 512 tokens", {}, "chat.max_tokens: a smaller number"),
        ("temperature: Extra inputs are not permitted", {}, "chat.temperature: null"),
        ("Unsupported value", {"param": "temperature"}, "chat.temperature: null"),
        ("Unknown name \"seed\": Cannot find field", {}, "chat.seed: null"),
        ("use random_seed, not seed", {}, "chat.seed_field: random_seed"),
        ("Invalid schema for response_format 'reply': 'strict' unknown", {}, "chat.strict: null"),
        ("response_format: json_schema is not available", {}, "chat.structured: json_object"),
        ("messages.2.reasoning_content: property is unsupported", {}, "chat.return_fields: standard"),
    ],
)  # fmt: skip
def test_a_refused_request_is_shown_with_the_key_that_mends_it(sentence, more, key):
    with pytest.raises(BadReply) as caught:
        ask(always(refusal(sentence, **more)), schema=SCHEMA)
    assert f"set {key}" in str(caught.value)
    assert sentence[:40] in str(caught.value)
    assert len(caught.value.requests) == 1


def test_a_server_without_a_tool_parser_is_named_with_what_it_needs():
    sentence = (
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    )
    with pytest.raises(BadReply, match=r"set planner\.tool_calls: false, or start vLLM with"):
        ask(always(refusal(sentence)), tools=TOOLS)


def test_a_provider_that_takes_the_key_in_its_own_header_gets_it(monkeypatch):
    from eval.chat.http import Endpoint

    monkeypatch.setenv("THE_KEY", "k-123")
    assert Endpoint("http://x", "THE_KEY", key_header="api-key").headers()["api-key"] == "k-123"
    assert ChatConfig(provider="azure").key_header == "api-key"


# -- the message as it came -----------------------------------------------------------------------

EXTRAS = st.dictionaries(
    st.sampled_from(["reasoning_content", "extra_content", "reasoning_details", "annotations"]),
    st.text() | st.none() | st.lists(st.integers(), max_size=3),
)
IDS = st.lists(st.sampled_from(["a", "call_0", "", None, 7, "call00000", "call00001"]), max_size=6)


@settings(max_examples=100, deadline=None)
@given(EXTRAS, IDS, st.sets(st.sampled_from(["a", "call00000", "call00002"])))
def test_a_message_goes_back_as_it_came_with_ids_that_no_other_call_has(extras, ids, taken):
    calls = []
    for identifier in ids:
        call = {"type": "function", "function": {"name": "look", "arguments": "{}"}, "x": [1]}
        calls.append(call if identifier is None else {"id": identifier, **call})
    came = {"role": "assistant", "content": "words", **extras, "tool_calls": calls}
    found = called(came, ["look"], taken, TokenCounts())
    back = found.message
    assert {name: back[name] for name in extras} == extras
    made = [call.id for call in found.calls]
    assert len(set(made) | taken) == len(made) + len(taken)
    assert ids_of([back]) == set(made)
    for before, after in zip(calls, back.get("tool_calls", []), strict=True):
        assert {**after, "id": 0} == {**before, "id": 0}
    kept = [one for one, other in zip(ids, made, strict=True) if one == other]
    assert len(kept) == len({one for one in ids if one and isinstance(one, str)} - taken)


@pytest.mark.parametrize("arguments", [None, "", " ", "null", "{}", {}, "```json\n{}\n```"])
def test_a_call_without_parameters_has_an_empty_object(arguments):
    item = {"id": "a", "function": {"name": "look", "arguments": arguments}}
    for call in (item, {"id": "a", "function": {"name": "look"}}):
        found = called({"tool_calls": [call]}, ["look"], (), TokenCounts())
        assert strict_json(found.calls[0].arguments) == {}
        function = found.message["tool_calls"][0]["function"]
        assert strict_json(function["arguments"]) == {}


@pytest.mark.parametrize("arguments", [[], 7, True, "[1]", "{", '{"a": 1,}'])
def test_arguments_that_are_no_object_are_told_to_the_model(arguments):
    item = {"id": "a", "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(Fault) as caught:
        called({"tool_calls": [item]}, ["look"], (), TokenCounts())
    assert caught.value.kind == "unparsable"
    assert "look" in caught.value.answer


@pytest.mark.parametrize(
    ("name", "meant"),
    [("functions.look", "look"), ("tool.look", "look"), ("look<|channel|>commentary", "look"), ("functions.look:3", "look"),
     (" look ", "look"), ("default_api.look", "look"), ("look.see", "look.see"), ("overlook", "overlook")],
)  # fmt: skip
def test_a_name_loses_what_a_server_puts_round_it_if_one_tool_is_left(name, meant):
    assert tool_name(name, ["look", "see"]) == meant


# -- layers ---------------------------------------------------------------------------------------

OBJECTS = st.dictionaries(
    st.text(st.characters(exclude_characters="`<>[]|｜/", codec="ascii"), max_size=8),
    st.integers() | st.booleans() | st.none(),
    max_size=4,
)
LAYERS = {
    "think": "<think>Is it {{met}}? [1]</think>\n{}",
    "no opening tag": "Is it met?</think>{}",
    "[THINK]": "[THINK]well[/THINK]{}",
    "fence": "```json\n{}\n```",
    "bare fence": "```\n{}\n```",
    "fence and words": "Here it is:\n```json\n{}\n```\nI hope this helps!",
    "control": "{}<|im_end|>",
    "two controls": "{} <|eot_id|></s>",
    "tags": "<answer>{}</answer>",
    "stray tag": "{}\n</answer>",
    "mark": "\ufeff{}",
    "think, fence, control": "<think>x</think>\n```json\n{}\n```<|im_end|>",
}


@settings(max_examples=60, deadline=None)
@given(OBJECTS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_one_layer_round_the_json_is_taken_off(layer, value):
    text = layer.replace("{{", "{").replace("}}", "}")
    place = text.rindex("{}")
    wrapped = text[:place] + json.dumps(value) + text[place + 2 :]
    assert strict_json(json_text(wrapped)) == value
    assert strict_json(json_text(json.dumps(json.dumps(value)))) == value


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_what_has_no_one_reading_is_left_as_it_is_and_json_is_never_changed(text):
    found = json_text(text)
    assert found == text or strict_json(found) is not ...
    assert (
        "".join(without_thoughts(text)).strip() in ("", text.strip())
        or "</" in text
        or "[/" in text
    )


@pytest.mark.parametrize(
    "text", ['{"x": 1} or {"x": 2}', "Sure: {\"x\": 1}", "```\n{}\n```\n```\n{}\n```", "{'x': 1}", ""]
)  # fmt: skip
def test_two_readings_are_not_guessed_between(text):
    assert json_text(text) == text


def test_json_text_stands_for_an_object_only_where_no_text_may_stand():
    schema = {
        "$defs": {"W": {"type": "object", "additionalProperties": {"type": "number"}}},
        "properties": {
            "ratios": {"$ref": "#/$defs/W"},
            "rows": {"type": "array", "items": {"$ref": "#/$defs/W"}},
            "maybe": {"anyOf": [{"$ref": "#/$defs/W"}, {"type": "null"}]},
            "either": {"anyOf": [{"$ref": "#/$defs/W"}, {"type": "string"}]},
            "rationale": {"type": "string"},
        },
    }
    inner = '{"a": 0.5}'
    value = {"ratios": inner, "rows": [inner], "maybe": inner, "either": inner, "rationale": inner}
    assert unwrapped(value, schema) == {
        "ratios": {"a": 0.5},
        "rows": [{"a": 0.5}],
        "maybe": {"a": 0.5},
        "either": inner,
        "rationale": inner,
    }
    assert unwrapped({"ratios": "half"}, schema) == {"ratios": "half"}


# -- replies --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).filter(str.strip), st.lists(st.text(), max_size=3))
def test_a_stream_is_the_reply_that_it_streams(text, arguments):
    calls = []
    for number, argument in enumerate(arguments):
        function = {"name": "look", "arguments": json.dumps({"a": argument})}
        calls.append({"id": f"c{number}", "type": "function", "function": function})
    message = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    reply = {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 3, "completion_tokens": 4}}  # fmt: skip
    whole = gates(json.dumps(reply).encode(), "m", json_text=False, tools=True)
    assert gates(stream(reply), "m", json_text=False, tools=True) == whole
    assert value_of(b"\xef\xbb\xbf" + json.dumps(reply).encode()) == reply


@pytest.mark.parametrize("cut", [False, True])
def test_an_error_in_a_stream_is_that_error(cut):
    events = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n' if cut else b""
    body = events + b'data: {"error": {"message": "overloaded", "code": 529}}\n\n'
    with pytest.raises(Fault) as caught:
        gates(body, "m", json_text=False, tools=False)
    assert (caught.value.said, caught.value.status) == ("overloaded", 529)


@pytest.mark.parametrize("word", ["stop", None, "eos", "", "STOP", "function_call", "whatever", 7])
def test_a_whole_reply_is_taken_whatever_its_end_is_called(word):
    message = {"content": '{"verdict": "met"}'}
    reply = {"model": "m", "choices": [{"message": message, "finish_reason": word}]}
    assert gates(json.dumps(reply).encode(), "m", json_text=True, tools=False).text


@pytest.mark.parametrize("word", ["length", "MAX_TOKENS", "model_length", "max_output_tokens"])
def test_every_word_for_a_cut_is_a_cut(word):
    message = {"content": '{"verdict": "met"}'}
    reply = {"model": "m", "choices": [{"message": message, "finish_reason": word}]}
    with pytest.raises(Fault, match="cut off"):
        gates(json.dumps(reply).encode(), "m", json_text=True, tools=False)


@pytest.mark.parametrize(
    ("completion", "text", "cut"),
    [(50, '{"a": 1}', True), (49, '{"a": 1}', False), (80, '{"a": 1}', False), (80, '{"a": ', True), (50, '{"a"', True)],
)  # fmt: skip
def test_a_reply_at_its_cap_is_cut_unless_it_went_past_it_and_is_whole(completion, text, cut):
    usage = {"prompt_tokens": 1, "completion_tokens": completion}
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    body = json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode()
    if cut:
        with pytest.raises(Fault) as caught:
            gates(body, "m", json_text=True, tools=False, cap=50)
        assert caught.value.kind == "truncated"
    else:
        assert gates(body, "m", json_text=True, tools=False, cap=50).text == text


def test_a_cut_reply_without_a_cap_to_raise_is_asked_for_once():
    cut = body_as(lambda reply: {**reply, "choices": [{**reply["choices"][0], "finish_reason": "length"}]})  # fmt: skip
    with pytest.raises(BadReply, match="truncated") as caught:
        ask(cut, chat={"max_tokens": None})
    assert len(caught.value.requests) == 1


def test_words_that_cannot_be_read_are_shown_to_the_model_and_never_asked_for_alike():
    with pytest.raises(BadReply, match="unparsable") as caught:
        ask(WELL, say=says("I think it is met."), schema=SCHEMA)
    talks = [request["messages"] for request in caught.value.requests]
    assert [len(talk) for talk in talks] == [1, 3, 5]
    assert talks[1][1] == {"role": "assistant", "content": "I think it is met."}
    assert "could not be read: not valid JSON" in talks[1][2]["content"]


@pytest.mark.parametrize(
    ("sentence", "hint", "unpaid"),
    [("Insufficient Balance", None, True), ("Your credit balance is too low", None, True), ("余额不足", None, True),
     ("You exceeded your current quota, please check your plan and billing details", None, True),
     ("You exceeded your current quota. Please retry in 31s.", None, False),
     ("You exceeded your current quota", "30", False), ("Rate limit reached for requests", None, False)],
)  # fmt: skip
def test_wanting_money_pauses_at_once_and_a_rate_limit_does_not(sentence, hint, unpaid):
    answer = plain({"error": {"message": sentence}}, 429, {"Retry-After": hint} if hint else {})
    waits = []
    with pytest.raises(ChatUnavailable) as caught:
        ask(always(answer), waits=waits, chat={"max_attempts": 2})
    assert ("wants payment" in str(caught.value)) is unpaid
    assert len(caught.value.requests) == (1 if unpaid else 2)
    assert sentence[:20] in str(caught.value)


@pytest.mark.parametrize("hint", ["0", "-5", "Thu, 01 Jan 1970 00:00:00 GMT", "soon"])
def test_a_hint_that_is_not_in_the_future_is_none_and_the_wait_grows(hint):
    waits = []
    with pytest.raises(ChatUnavailable):
        ask(always(plain({}, 429, {"Retry-After": hint})), waits=waits, chat={"max_attempts": 5})
    for number, wait in enumerate(waits):
        assert 0.25 * 2**number <= wait <= 0.5 * 2**number


def test_a_judge_is_down_if_the_server_answers_everything_strangely_and_says_what_it_said():
    habit = Habit("", always(refusal("the sentence", 200)))
    end = ASKERS["judge"](habit, lambda seconds: None)
    assert "the sentence" in end.text
    assert "start the server" not in end.text


# -- money ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.decimals(0, 1000, places=4), st.decimals(0, 1000, places=4))  # fmt: skip
def test_a_cost_is_exact_and_rounded_up_to_a_millionth(read, written, price_in, price_out):
    prices = Prices(input=float(price_in), output=float(price_out))
    exact = Fraction(price_in) * read + Fraction(price_out) * written
    assert 0 <= prices.cost(Tokens(read, written)) - exact < 1
    assert prices.at_most(read + written) >= prices.cost(Tokens(read, written)) - 1


@given(st.integers(0, 10**12))
def test_money_is_read_as_it_is_written(millionths):
    assert micros(float(money_text(millionths))) == millionths
