"""Templates and rows bent at random: what is learnt is the answers and their ends, or nothing is."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.template_shapes import Shape, make_tokenizer
from eval.rendering.pins import pin
from eval.rendering.probe import turn_shape
from eval.rendering.render import texts_of
from eval.rendering.turns import TurnEncoder
from mosaic.core.errors import UsageError
from training.models.chat_template import IGNORED, tokenise

CONTROL = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|eos|>", "<|bos|>")
HEADERS = {
    "tag": "<|assistant|>",
    "line": "<|assistant|>\\n",
    "space": "<|assistant|> ",
    "words": "ASSISTANT:",
    "words and space": "ASSISTANT: ",
    "lines": "\\n\\nassistant\\n\\n",
}
ENDS = (
    "<|end|>",
    "<|end|>\\n",
    "<|eos|>",
    " <|eos|>",
    "\\n\\n",
    "",
    "END",
    ".<|end|>",
    "<|end|><|eos|>",
)
CONTENTS = (
    "m.content",
    "m.content | trim",
    "m.content | upper",
    "m.content | replace('a', 'b')",
    "m.content.split('.')[0]",
    "m.content + m.content",
    "m.content.lstrip('\\n')",
    "' ' + m.content",
    "m.content.split('</think>')[-1]",
    "''",
)
# What stands round an answer of the assistant: HEAD, TEXT and END are put in.
TURNS = (
    "HEADTEXTEND",
    "{% generation %}HEADTEXTEND{% endgeneration %}",
    "HEAD{% generation %}TEXT{% endgeneration %}END",
    "HEAD{% generation %}TEXTEND{% endgeneration %}",
    "{% if loop.last %}HEAD{% generation %}TEXTEND{% endgeneration %}{% else %}HEADTEXTEND{% endif %}",
    "{% if loop.last %}HEADTEXTEND{% else %}<|user|>TEXTEND{% endif %}",
    "{% if loop.last %}HEADTEXTEND{% else %}HEADTEXT<|eos|>{% endif %}",
    "{% if loop.last %}HEADTEXTEND{% endif %}",
    "{% if loop.first or loop.last %}HEADTEXTEND{% else %}HEADnoEND{% endif %}",
    "HEAD<think>\\n\\n</think>\\n\\nTEXTEND",
    "{% if loop.last %}HEAD<think>\\n</think>TEXTEND{% else %}HEADTEXTEND{% endif %}",
    "{% if 'box' in m.content %}HEADTEXTEND{% else %}<|user|>TEXTEND{% endif %}",
    "{% if messages[0].role == 'system' %}HEADTEXTEND{% else %}HEAD{% generation %}TEXT{% endgeneration %}{% endif %}",
    "<|user|>TEXTHEADTEXTEND",
    "HEADTEXTENDTEXTEND",
    "HEADEND",
    "{# {% generation %} #}HEADTEXTEND",
)
USERS = (
    "<|user|>{{ m.content }}<|end|>",
    "<|user|>{{ m.content | trim }}\\n",
    "USER: {{ m.content }} ",
    "<|user|><|end|>",
    "<|assistant|>{{ m.content }}<|end|>",
    "<|user|>{{ m.content | lower }}<|end|>",
)
SYSTEMS = (
    "<|system|>{{ m.content }}<|end|>",
    "{{ m.content }}\\n",
    "",
    "{{ raise_exception('no system messages') }}",
)
PROMPTS = ("HEAD", "HEAD", "HEAD", "HEAD\\n", "HEAD<think>\\n", "", "<|user|>")

pieces = st.sampled_from(
    [
        *("Keep it", "dry", ".", " ", "\n", "\n\n", "box", "yes", "no", "7", "a", "(", "é", "日"),
        *("🙂", "</think>", "<|end", "|>", "ASSISTANT:", "<|assistant", "Zqanswer0x", "USER: "),
    ]
)
texts = st.lists(pieces, max_size=6).map("".join)
answers = st.one_of(texts, st.sampled_from(["yes", " ", "\n", "", "yes ", "\nyes", "<|end|>"]))


@st.composite
def templates(draw):
    """(a template, the text of its assistant header)."""

    # Mostly sound parts, so that a good share is accepted; one in a few is bent.
    def part(options, sound):
        return draw(st.one_of(st.sampled_from(options[:sound]), st.sampled_from(options)))

    head = HEADERS[draw(st.sampled_from(sorted(HEADERS)))]
    turn = part(TURNS, 4).replace("HEAD", head).replace("END", part(ENDS, 3))
    turn = turn.replace("TEXT", "{{ " + part(CONTENTS, 2) + " }}")
    user, system = part(USERS, 2), part(SYSTEMS, 2)
    prompt = part(PROMPTS, 3).replace("HEAD", head)
    body = (
        "<|bos|>{% for m in messages %}"
        "{% if m.role == 'assistant' %}" + turn + "{% elif m.role == 'user' %}" + user +
        "{% else %}" + system + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )  # fmt: skip
    return body.replace("\\n", "\n"), head.replace("\\n", "\n")


@st.composite
def chats(draw):
    chat = []
    if draw(st.booleans()):
        chat.append({"role": "system", "content": draw(texts)})
    asked = draw(texts)
    for _ in range(draw(st.integers(1, 3))):
        chat.append({"role": "user", "content": draw(st.one_of(texts, st.just(asked)))})
        chat.append({"role": "assistant", "content": draw(st.one_of(answers, st.just(asked)))})
    return chat


def segments_of(labels):
    """(start, end) of each run of labels; an end token always ends one."""
    runs, start = [], None
    for position, label in enumerate([*labels, IGNORED]):
        if label != IGNORED and start is None:
            start = position
        if label == IGNORED and start is not None:
            runs.append((start, position))
            start = None
    return runs


def unseen_fault(tokenizer, chat, head):
    """What a wrong labelling would be, by decoding it; None if it is right, "refused" if refused."""
    try:
        ((ids,), (labels,)) = tokenise(tokenizer, [chat])
    except UsageError:
        return "refused"
    wanted = [m["content"].strip() for m in chat if m["role"] == "assistant"]
    ends = set(tokenizer.convert_tokens_to_ids(["<|end|>", "<|eos|>"]))
    runs = segments_of(labels)
    if len(runs) != len(wanted):
        return f"{len(runs)} runs for {len(wanted)} answers"
    for (start, end), answer in zip(runs, wanted, strict=True):
        if ids[end - 1] not in ends or ends & set(ids[start : end - 1]):
            return f"ends in {ids[start:end]}"
        if tokenizer.decode(ids[start : end - 1]).strip() != answer:
            return f"{tokenizer.decode(ids[start : end - 1])!r} learnt for {answer!r}"
        if head.strip() not in tokenizer.decode(ids[:start])[-len(head) - 30 :]:
            return f"after {tokenizer.decode(ids[:start])!r}"
    (prompt,) = texts_of(tokenizer, [chat[:-1]], answer_next=True)
    given_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if ids[: runs[-1][0]] != list(given_ids):
        return "the last answer is not learnt after the generation prompt"
    text = tokenizer.decode(ids)
    for message in chat:
        if message["content"].strip() not in text:
            return f"{message} is not in what the model sees"
    return None


@pytest.mark.parametrize("family", ["bytes", "words", "pieces"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=templates(), chat=chats())
def test_what_is_learnt_is_the_answers_and_their_ends_or_the_chat_is_refused(family, made, chat):
    template, head = made
    shape = Shape("bent", template, CONTROL, "<|eos|>", "<|bos|>", family)
    tokenizer = make_tokenizer(shape)
    pin(tokenizer)
    assert unseen_fault(tokenizer, chat, head) in (None, "refused"), template


def told(read, chat):
    """The number of tokens that reading a chat gives, or "refused"."""
    try:
        (found,) = read([chat])
    except UsageError:
        return "refused"
    return found if isinstance(found, int) else len(found.ids)


@pytest.mark.parametrize("family", ["bytes", "words", "pieces"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=templates(), chat=chats(), off=st.integers(0, 2))
def test_a_pool_counts_what_training_takes_and_no_other_row(family, made, chat, off):
    template, _ = made
    tokenizer = make_tokenizer(Shape("bent", template, CONTROL, "<|eos|>", "<|bos|>", family))
    pin(tokenizer)
    try:
        encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
    except UsageError:
        return
    if any("<|end|>" in message["content"] for message in chat):
        return  # the build has refused it before it counts
    assert told(encoder.lengths, chat) == told(encoder.encode, chat), template
    if told(encoder.encode, chat) == "refused":
        return
    (whole,) = encoder.encode([chat])
    answered = [message for message in chat if message["role"] == "assistant"]
    answered[off % len(answered)]["learn"] = False
    (part,) = encoder.encode([chat])
    assert part.ids == whole.ids
    rest = [span for i, span in enumerate(whole.answers) if i != off % len(answered)]
    assert part.answers == rest
