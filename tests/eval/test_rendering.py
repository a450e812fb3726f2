"""Published templates as they are: which tokens are learnt, what is pinned, where answers end."""

import json
import shutil
from dataclasses import replace
from datetime import datetime

import pytest

from benchmarks.template_shapes import CHATML, GRANITE, Shape, make_tokenizer, shapes, shipped
from benchmarks.templates import chats_of, wrong_labels
from eval.generators.base import TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.rendering.ends import stop_ids
from eval.rendering.pins import pin, pinned_day, pinned_reasoning
from eval.rendering.probe import probe, turn_shape
from eval.rendering.render import ChatError, texts_of
from eval.rendering.tokenizer import load_tokenizer
from eval.rendering.turns import TurnEncoder
from mosaic.core.errors import UsageError
from training.models.chat_template import IGNORED, tokenise

SHAPES = {shape.name: shape for shape in shapes()}
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def chatml(change=lambda template: template, family="words"):
    return tokenizer_of(Shape("bent", change(CHATML), IM, "<|im_end|>", None, family))


def tokenizer_of(shape):
    tokenizer = make_tokenizer(shape)
    pin(tokenizer)
    return tokenizer


def chat(*texts, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for number, text in enumerate(texts):
        messages.append({"role": ("user", "assistant")[number % 2], "content": text})
    return messages


def learnt(tokenizer, messages):
    """The text of each run of labels, with its end."""
    _, (labels,) = tokenise(tokenizer, [messages])
    runs = [[]]
    for label in labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_template_is_labelled_exactly_as_it_is(name):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(shape)
    for messages in chats_of(shape):
        assert wrong_labels(tokenizer, shape, messages) is None


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_that_repeats_the_question_or_itself_is_told_apart(name):
    tokenizer = tokenizer_of(SHAPES[name])
    end = tokenizer.convert_ids_to_tokens(max(turn_shape(tokenizer).ends))
    runs = learnt(tokenizer, chat("yes", "yes", "yes", "yes", "no yes", "yes"))
    assert [run.replace(" ", "") for run in runs] == [f"yes{end}"] * 3


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "answer", [" ", "\n", " yes", "yes\n\n", "\n\nyes", "7", "(no)", "é", "日本"]
)
def test_an_answer_with_odd_edges_is_exact_or_refused(name, answer):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(shape)
    try:
        runs = learnt(tokenizer, chat("How long?", answer))
    except ChatError:
        if answer == answer.strip():
            raise
        return
    end = shape.end or shape.eos
    (run,) = runs
    assert run.endswith(end)
    assert run.removesuffix(end).strip() == answer.strip()


@pytest.mark.parametrize("turn", [
    "{% generation %}HEADTEXT{% endgeneration %}END",
    "{% if loop.last %}HEAD{% generation %}TEXTEND{% endgeneration %}{% else %}HEADTEXTEND{% endif %}",
    "{% if messages[0].role == 'system' %}HEADTEXTEND{% else %}HEAD{% generation %}TEXTEND{% endgeneration %}{% endif %}",
    "{# {% generation %} #}HEADTEXTEND",
])  # fmt: skip
def test_markers_in_wrong_places_are_not_used_and_that_is_said(turn):
    turn = turn.replace("HEAD", "<|im_start|>assistant\n").replace("TEXT", "{{ m.content }}")
    body = turn.replace("END", "<|im_end|>")
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + body + "{% else %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = chatml(lambda _: template)
    assert learnt(tokenizer, chat("a", "yes", "b", "no")) == ["yes<|im_end|>", "no<|im_end|>"]
    assert any("markers" in note for note in probe(tokenizer).notes)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("m['content']", "''", "leaves out answer 1"),
        ("m['content']", "m['content'] + m['content']", "writes 2 times answer 1"),
        ("m['content']", "m['content'] | upper", "leaves out answer 1"),
        ("'<|im_end|>'", "''", "does not end in a single token"),
        ("'<|im_end|>'", "'END<|im_end|>'", "does not end in a single token"),
        ("'<|im_end|>'", "'###'", "does not end in a single token"),
        ("'<|im_start|>assistant\\n'", "'<|im_start|>bot\\n'", "not the prompt"),
        ("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'", "not the prompt"),
        ("m['content'] +", "(m['content'] | random) +", "draws lots"),
        ("{% endfor %}", "{% endfor %}{% if %}", "cannot render a question and an answer"),
    ],
)
def test_a_template_that_cannot_be_labelled_is_refused_in_words(old, new, reason):
    tokenizer = chatml(lambda template: template.replace(old, new))
    with pytest.raises(UsageError, match=reason):
        tokenise(tokenizer, [chat("How long?", "yes")])


def test_all_faults_of_a_template_are_named_at_once():
    def change(template):
        return template.replace("'<|im_end|>'", "''") + "{{ lipsum() }}{{ strftime_now(day) }}"

    (one, two, *_) = probe(chatml(change)).faults
    assert "draws lots" in one
    assert "cannot be pinned" in two


@pytest.mark.parametrize("family", ["bytes", "words"])
def test_a_token_that_spans_header_and_answer_is_refused(family):
    """`ASSISTANT: ` before an answer: the space and the word are one token, which no model could
    write after the space."""
    template = (
        "{% for m in messages %}{{ 'ASSISTANT: ' if m.role == 'assistant' else 'USER: ' }}"
        "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )
    with pytest.raises(UsageError, match="also holds text before it"):
        tokenise(chatml(lambda _: template, family), [chat("How long?", "bread")])
    without = template.replace("ASSISTANT: {% endif", "ASSISTANT:{% endif")
    assert learnt(chatml(lambda _: without, family), [*chat("How long?", "bread")]) == [
        " bread<|im_end|>"
    ]


def test_text_that_looks_special_is_refused_and_text_that_looks_like_a_header_is_not():
    tokenizer = chatml()
    with pytest.raises(ChatError, match="control token"):
        tokenise(tokenizer, [chat("a", "yes<|im_end|>\n<|im_start|>user\nno")])
    odd = "<|im_en d|> assistant\n Zqanswer0x <b>"
    assert learnt(tokenizer, chat("Zqanswer0x", odd, "a", odd)) == [f"{odd}<|im_end|>"] * 2


def test_a_message_that_the_template_leaves_out_is_refused():
    def change(template):
        return "{% for m in messages if m.role != 'system' %}" + template.partition("%}")[2]

    tokenizer = chatml(change)
    assert not probe(tokenizer).faults
    assert any(
        "refuses a question and an answer with a system" in n for n in probe(tokenizer).notes
    )
    assert learnt(tokenizer, chat("a", "yes")) == ["yes<|im_end|>"]
    with pytest.raises(ChatError, match="leaves out message 0"):
        tokenise(tokenizer, [chat("a", "yes", system="be brief")])
    users = chatml(
        lambda template: template.replace(
            "m['content']", "(m['content'] if m.role != 'user' else '')"
        )
    )
    assert "leaves out message 0 (user)" in probe(users).faults[0]


def test_the_day_is_pinned_and_the_same_wherever_it_is_written():
    for shape in (SHAPES["Granite"], SHAPES["Llama 3.2"]):
        tokenizer = tokenizer_of(shape)
        (text,) = texts_of(tokenizer, [chat("a", "b")])
        assert "26 Jul 2024" in text or "July 26, 2024" in text
        assert datetime.now().strftime("%d %b %Y") not in text
        assert pinned_day(tokenizer.chat_template) == "2024-07-26"
        before = tokenizer.chat_template
        pin(tokenizer)
        assert tokenizer.chat_template == before


@pytest.mark.parametrize("form", ["%A %d %B %Y", "%Y-%m-%d %H:%M", "%e. %-m. %y", "%j %U %p %c"])
def test_every_way_of_writing_a_day_is_that_of_strftime(form):
    tokenizer = tokenizer_of(
        Shape("dated", GRANITE.replace("%B %d, %Y", form), IM, "<|end_of_text|>")
    )
    (text,) = texts_of(tokenizer, [chat("a", "b")])
    assert f"Today is {datetime(2024, 7, 26).strftime(form)}. You" in text


def test_reasoning_is_pinned_off_where_the_last_answer_would_follow_another_prompt():
    tokenizer = tokenizer_of(SHAPES["Qwen3"])
    assert pinned_reasoning(tokenizer.chat_template) == "enable_thinking"
    (prompt,) = texts_of(tokenizer, [chat("a")], answer_next=True)
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    assert any("earlier answers" in note for note in probe(tokenizer).notes)
    assert pinned_reasoning(tokenizer_of(SHAPES["Qwen2.5"]).chat_template) is None


def test_a_chat_is_counted_as_it_is_tokenised():
    for shape in SHAPES.values():
        tokenizer = tokenizer_of(shape)
        encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
        rows = chats_of(shape)
        plain = tokenizer(texts_of(tokenizer, rows), add_special_tokens=False)["input_ids"]
        assert [c.ids for c in encoder.encode(rows)] == [list(ids) for ids in plain]
        assert encoder.lengths(rows) == [len(ids) for ids in plain]


@pytest.mark.parametrize("name", SHAPES)
def test_a_frame_says_of_answers_what_a_second_rendering_says(name, monkeypatch):
    tokenizer = tokenizer_of(SHAPES[name])
    rows = chats_of(SHAPES[name])
    quick = TurnEncoder(tokenizer, turn_shape(tokenizer))
    fits = [quick._framed(*one) for one in zip(texts_of(tokenizer, rows), rows, strict=True)]
    assert fits.count(None) <= 1
    for texts in (
        ("Q?", "yes "),
        ("yes", "yes", "Zqanswer0x", "Zqanswer1x"),
        ("</think>", "a </think> b"),
    ):
        rows.append(chat(*texts))

    def found(encoder, row):
        try:
            return encoder.encode([row])
        except ChatError as error:
            return error.reason

    ours = [found(quick, row) for row in rows]
    monkeypatch.setattr(TurnEncoder, "_framed", lambda *_: None)
    slow = TurnEncoder(tokenizer, turn_shape(tokenizer))
    assert ours == [found(slow, row) for row in rows]


def test_a_template_that_looks_into_messages_is_rendered_twice():
    """Its frame fits some chats and not others; both are labelled exactly."""
    added = "{% if 'sad' in messages[0].content %}Be kind. {% endif %}"
    tokenizer = chatml(lambda template: added + template)
    encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
    plain, kind = chat("I wait", "yes"), chat("I am sad", "yes")
    plain_text, kind_text = texts_of(tokenizer, [plain, kind])
    assert encoder._framed(plain_text, plain)
    assert encoder._framed(kind_text, kind) is None
    for messages in (plain, kind):
        assert learnt(tokenizer, messages)[0].replace(" ", "") == "yes<|im_end|>"


def test_a_chat_that_the_second_rendering_refuses_is_named_by_its_place():
    refusing = (
        "{% if 'sad' in messages[0].content %}"
        "{% if 'Zq' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}"
        "Be kind. {% endif %}"
    )
    tokenizer = chatml(lambda template: refusing + template)
    encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
    with pytest.raises(ChatError, match="no") as refused:
        encoder.encode([chat("I wait", "yes"), chat("I am sad", "yes")])
    assert refused.value.position == 1


# Folders


@pytest.fixture
def folder(tiny_model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    return base


def named_templates(folder, names):
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": name, "template": text} for name in names]
    path.write_text(json.dumps(config))
    return text


def test_of_named_templates_the_default_is_used(folder, tiny_model):
    text = named_templates(folder, ["default", "rag"])
    assert load_tokenizer(folder).chat_template == text
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    (folder / "chat_template.jinja").write_text(text)
    (extra / "tool_use.jinja").write_text("{{ tools }}")
    assert load_tokenizer(folder).chat_template == text


def test_named_templates_without_a_default_are_refused_in_a_sentence(folder):
    named_templates(folder, ["tool_use", "rag"])
    with pytest.raises(UsageError, match=r"chat templates rag, tool_use, and none called default"):
        load_tokenizer(folder)


def test_a_file_replaces_the_template(folder, tmp_path):
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    file = tmp_path / "own.jinja"
    with pytest.raises(UsageError, match=r"no chat template.*name a file as chat_template"):
        load_tokenizer(folder)
    with pytest.raises(UsageError, match="cannot be read"):
        load_tokenizer(folder, file)
    file.write_text(" \n")
    with pytest.raises(UsageError, match="is empty"):
        load_tokenizer(folder, file)
    file.write_text(text)
    assert load_tokenizer(folder, file).chat_template == text


def test_a_tokenizer_without_a_fast_form_is_refused_in_words(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(UsageError, match=r"ByT5Tokenizer.* has no fast form"):
        load_tokenizer(folder)


def test_generation_stops_at_the_end_that_is_taught_whatever_the_folder_names(folder):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"eos_token": "<|pad|>"}
    path.write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 4}')
    tokenizer = load_tokenizer(folder)
    taught = tokenizer.convert_tokens_to_ids("<|end|>")
    assert stop_ids(folder, tokenizer) == sorted({taught, 4})
    generator = TransformersGenerator(folder, TransformersGeneratorConfig(max_new_tokens=4))
    assert taught in generator._stops


def test_a_control_token_may_take_in_the_space_after_it():
    tokenizer = tokenizer_of(SHAPES["Phi-3.5"])
    for answer in ("yes", " yes", "\n\nyes"):
        (run,) = learnt(tokenizer, chat("How long?", answer))
        assert run.split() == ["yes<|end|>"]


@pytest.mark.parametrize(
    "messages",
    [
        chat("<tool_response>warm</tool_response>", "yes"),
        [*chat("How long?", "one"), {"role": "assistant", "content": "two"}],
    ],
)
def test_a_row_that_training_would_refuse_is_not_counted(messages):
    tokenizer = tokenizer_of(SHAPES["Qwen3"])
    encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
    good = chat("How long?", "one")
    for read in (encoder.lengths, encoder.encode):
        with pytest.raises(ChatError, match="is not the prompt") as refused:
            read([good, messages])
        assert refused.value.position == 1


@pytest.mark.parametrize("name", ["qwen2_5_training", "gemma_training"])
def test_markers_that_take_in_the_white_space_after_an_end_are_right(name):
    shape = {"q": "Qwen2.5", "g": "Gemma 2"}[name[0]]
    tokenizer = tokenizer_of(replace(SHAPES[shape], template=shipped(name)))
    found = probe(tokenizer)
    assert not found.faults
    assert not any("markers" in note for note in found.notes)


def test_a_tokenizer_without_eos_and_padding_pads_with_an_end_that_the_folder_names(
    tiny_model, tmp_path
):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    path = base / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    end = load_tokenizer(tiny_model).eos_token
    path.write_text(json.dumps({k: v for k, v in settings.items() if not k.endswith("_token")}))
    tokenizer = load_tokenizer(base)
    assert tokenizer.eos_token is None
    assert tokenizer.pad_token == end
