"""Shapes of replies beside those of the habit table: arguments, streams and ends under other names."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.endpoints import HabitServer
from benchmarks.habits import Answer, Habit, always, body_as, plain
from eval.chat.client import BadReply, ChatConfig, ChatModel, ChatUnavailable
from eval.chat.fault import Fault, TokenCounts
from eval.chat.message import called
from eval.chat.refusals import mend, refusal_of
from eval.chat.reply import gates
from eval.chat.streams import value_of
from eval.chat.strict_json import strict_json


def event(delta, finish=None):
    value = {"model": "m", "choices": [{"delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.mark.parametrize("name", ["arguments", "parameters", "input", "args"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("value", [{"dataset": "guard"}, '{"dataset": "guard"}'])
def test_arguments_are_found_under_the_names_that_servers_give_them(name, flat, value):
    function = {"name": "look", name: value}
    item = {"id": "a", **function} if flat else {"id": "a", "function": function}
    found = called({"tool_calls": [item]}, ["look"], (), TokenCounts())
    assert strict_json(found.calls[0].arguments) == {"dataset": "guard"}
    (back,) = found.message["tool_calls"]
    assert back == {"id": "a", "type": "function", "function": back["function"]}
    assert set(back["function"]) == {"name", "arguments"}


@pytest.mark.parametrize("name", ["arguments", "parameters"])
def test_a_call_that_is_written_as_text_keeps_its_arguments(name):
    text = f'<tool_call>{{"name": "look", "{name}": {{"a": 1}}}}</tool_call>'
    found = called({"content": text}, ["look"], (), TokenCounts())
    assert found.calls[0].arguments == '{"a":1}'


def test_json_in_place_of_its_text_is_read_as_that_text():
    reply = {"model": "m", "choices": [{"message": {"content": {"verdict": "met"}}}]}
    completion = gates(json.dumps(reply).encode(), "m", json_text=True, tools=False)
    assert strict_json(completion.text) == {"verdict": "met"}


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["{", '"a"', ":", "1", "}"]), min_size=1, max_size=5),
    repeats=st.sets(st.sampled_from(["id", "type", "name"])),
    numbered=st.booleans(),
)
def test_a_streamed_call_is_one_call_whatever_its_pieces_say_again(pieces, repeats, numbered):
    """Some servers say id and name anew in each piece, others leave out the number of the call."""
    if not numbered:
        repeats = set()  # without a number, a name or an id begins another call
    place = {"index": 0} if numbered else {}
    function = {"name": "look", "arguments": ""}
    body = event({"tool_calls": [{**place, "id": "a", "type": "function", "function": function}]})
    for text in pieces:
        more = {"arguments": text} | ({"name": "look"} if "name" in repeats else {})
        again = {"id": "a", "type": "function"}
        said = {name: again[name] for name in again if name in repeats}
        body += event({"tool_calls": [{**place, **said, "function": more}]})
    body += event({}, "tool_calls") + b"data: [DONE]\n\n"
    whole = value_of(body)["choices"][0]["message"]["tool_calls"]
    function = {"name": "look", "arguments": "".join(pieces)}
    assert whole == [{"id": "a", "type": "function", "function": function}]


def test_what_a_later_piece_adds_to_a_call_is_kept():
    first = {"index": 0, "function": {"name": "look", "arguments": "{}"}}
    later = {"index": 0, "id": "a", "extra_content": {"signature": "s"}}
    body = event({"tool_calls": [first]}) + event({"tool_calls": [later]}, "tool_calls")
    (call,) = value_of(body)["choices"][0]["message"]["tool_calls"]
    assert (call["id"], call["extra_content"]) == ("a", {"signature": "s"})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_only_line_breaks_part_the_lines_of_a_stream(character, end):
    value = {"model": "m", "choices": [{"delta": {"content": f"a{character}b"}}]}
    body = f"data: {json.dumps(value, ensure_ascii=False)}{end}{end}data: [DONE]{end}{end}"
    message = value_of(body.encode())["choices"][0]["message"]
    assert message["content"] == f"a{character}b"


@pytest.mark.parametrize(
    ("word", "kind"),
    [("content-filter", "refused"), ("max_new_tokens", "truncated"), ("max-length", "truncated")],
)
def test_an_end_is_known_under_its_other_names(word, kind):
    reply = {"model": "m", "choices": [{"message": {"content": "a"}, "finish_reason": word}]}
    with pytest.raises(Fault) as caught:
        gates(json.dumps(reply).encode(), "m", json_text=False, tools=False)
    assert caught.value.kind == kind


def ask(habit, scheme="http"):
    """One call to a server of this habit."""
    with HabitServer(Habit("", habit), says_met) as server:
        url = server.url.replace("http:", f"{scheme}:")
        config = ChatConfig(base_url=url, timeout_seconds=5, max_attempts=3)
        asked = [{"role": "user", "content": "Is it met?"}]
        return ChatModel(config, lambda seconds: None).complete(asked)


def says_met(request):
    return {"role": "assistant", "content": "met"}


@pytest.mark.parametrize("status", [200, 201, 202])
def test_every_success_is_one_if_it_brings_a_reply(status):
    assert ask(lambda request, reply, number: plain(reply, status)).text == "met"


def test_a_success_that_brings_nothing_is_an_answer_that_cannot_be_read():
    with pytest.raises(BadReply) as caught:
        ask(always(Answer(b"", 204)))
    assert caught.value.strange


def test_a_server_without_tls_is_not_called_down():
    with pytest.raises(ChatUnavailable) as caught:
        ask(body_as(lambda reply: reply), scheme="https")
    assert "check http or https in chat.base_url" in str(caught.value)
    assert "start the server" not in str(caught.value)


@pytest.mark.parametrize(
    "sentence",
    [
        "insufficient_quota",
        "This request requires more credits, or fewer max_tokens",
        "Account balance is negative",
        "Payment method required",
        "Your trial period has ended; trial expired",
        "Monthly spending limit reached",
    ],
)
def test_a_provider_that_wants_money_is_known_by_more_words(sentence):
    for body in ({"error": sentence}, {"error": {"message": sentence}}, {"detail": sentence}):
        assert refusal_of(json.dumps(body).encode()).unpaid(429, None)


@pytest.mark.parametrize(
    ("sentence", "asked", "key"),
    [
        ("Prompt is too long", {}, "chat.max_tokens: a smaller number, or a model with a longer"),
        ("The input tokens exceed the limit: 9000 > 8192", {}, "chat.max_tokens: a smaller number"),
        ("response_format is not supported", {"type": "json_schema"}, "chat.structured: json_obj"),
        ("response_format is not supported", {"type": "json_object"}, "chat.structured: none"),
    ],
)
def test_the_key_that_mends_a_refusal_is_not_the_one_that_is_set(sentence, asked, key):
    assert mend(sentence, "", {"max_tokens": 512, "response_format": asked}).startswith(key)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "temperature", "seed"])
def test_extra_fields_do_not_get_round_the_keys_that_limits_and_judges_rest_on(name):
    with pytest.raises(ValidationError, match=f"{name}: set chat."):
        ChatConfig(extra_body={name: 1})


@pytest.mark.parametrize(
    "name", ["api_key", "apikey", "X-API-Key", "Authorization", "access_token"]
)
def test_a_key_is_not_put_into_a_config_that_is_kept(name):
    with pytest.raises(ValidationError, match="api_key_env"):
        ChatConfig(extra_body={name: "canary-0123"})
    assert ChatConfig(extra_body={"min_tokens": 1, "stop_token_ids": [2]}).extra_body


@pytest.mark.parametrize("role", [{}, {"role": None}, {"role": "model"}, {"role": "assistant"}])
def test_a_message_goes_back_as_the_assistants_whatever_role_it_came_with(role):
    found = called({**role, "content": "words", "x": 1}, ["look"], (), TokenCounts())
    assert found.message == {"role": "assistant", "content": "words", "x": 1}


@pytest.mark.parametrize("provider", [None, "openai", "vllm"])
@pytest.mark.parametrize("cap", [None, "max_completion_tokens"])
def test_a_cap_of_null_counts_over_a_config_that_was_kept_too(provider, cap):
    """`resume --set judge.chat.max_tokens=null` changes a config that names the field already."""
    kept = ChatConfig(provider=provider, max_tokens_field="max_tokens").json_data()
    changed = ChatConfig.model_validate({**kept, "max_tokens": cap})
    assert changed.max_tokens_field == cap


CALL = '{"name": "look", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    "text", [CALL, f"<|python_tag|>{CALL}<|eom_id|>", f"[{CALL}]", f"<think>so</think>\n{CALL}"]
)
def test_a_text_that_is_nothing_but_a_call_is_that_call(text):
    (call,) = called({"content": text}, ["look"], (), TokenCounts()).calls
    assert (call.name, call.arguments) == ("look", '{"a":1}')


@pytest.mark.parametrize(
    "text",
    [f"I would say {CALL}", f"{CALL} {CALL}", CALL.replace("look", "leave"), "{}", "[]", "[1]"],
)
def test_a_text_that_is_more_or_less_than_a_call_is_none(text):
    assert called({"content": text}, ["look"], (), TokenCounts()).calls == []
