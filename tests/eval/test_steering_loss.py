"""The steering loss reads the first token in which a good and a bad answer differ."""

import copy
import math
import re

import pytest
import torch

from eval.rendering.probe import turn_shape
from eval.rendering.render import texts_of
from eval.steering_loss import contrasts, judged_references, mean_loss
from mosaic.core.types.evaluation import Prompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt(identifier="p", turns=("how do i store the bread ?",), **changes):
    known = {"good": ["keep it in a dry cabinet ."], "bad": ["the bridge is old ."], **changes}
    return Prompt(id=identifier, turns=list(turns), slice="all", weight=1, **known)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_model)


def test_the_loss_is_that_of_the_two_next_tokens(loaded):
    model, tokenizer = loaded
    made = contrasts(tokenizer, [prompt()])
    chat = [{"role": "user", "content": "how do i store the bread ?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    logs = torch.log_softmax(model(input_ids=ids).logits[0, -1], dim=-1)
    good = tokenizer("keep it in a dry cabinet .")["input_ids"][0]
    bad = tokenizer("the bridge is old .")["input_ids"][0]
    expected = math.log(1 + math.exp(-float(logs[good] - logs[bad])))
    assert float(mean_loss(model, made.usable)) == pytest.approx(expected, abs=1e-5)


def test_what_both_answers_begin_with_is_read_before_they_part(loaded):
    _, tokenizer = loaded
    answers = {"good": ["keep it dry ."], "bad": ["keep it in the river ."]}
    one = contrasts(tokenizer, [prompt(**answers)]).usable[0]
    plain = contrasts(tokenizer, [prompt()]).usable[0]
    shared = one.context[len(plain.context) :]
    assert tokenizer.decode(shared).split() == ["keep", "it"]
    assert one.good != one.bad


def test_the_good_answers_to_earlier_turns_are_part_of_what_is_read(loaded):
    _, tokenizer = loaded
    turns = ("how do i store the bread ?", "please add one .")
    both = {"good": ["keep it dry .", "one ."], "bad": ["the river .", "two ."]}
    one = contrasts(tokenizer, [prompt(turns=turns, **both)]).usable[0]
    assert "keep it dry ." in tokenizer.decode(one.context)


def test_a_prompt_without_a_contrast_is_dropped_and_named(loaded):
    _, tokenizer = loaded
    alike = {"good": ["keep it dry ."], "bad": ["keep it dry ."]}
    made = contrasts(tokenizer, [prompt("a", good=None), prompt("b", **alike), prompt("c")])
    assert [one.prompt for one in made.usable] == ["c"]
    assert set(made.dropped) == {"a", "b"}


def test_an_answer_that_ends_earlier_is_told_by_the_end_of_its_turn(loaded):
    _, tokenizer = loaded
    longer = {"good": ["keep it dry ."], "bad": ["keep it dry . and old"]}
    (one,) = contrasts(tokenizer, [prompt(**longer)]).usable
    assert one.good in turn_shape(tokenizer).ends
    assert tokenizer.decode([one.bad]).strip() == "and"
    (other,) = contrasts(tokenizer, [prompt(good=longer["bad"], bad=longer["good"])]).usable
    assert (other.good, other.bad) == (one.bad, one.good)


def test_what_is_read_is_what_an_answer_is_generated_after(loaded):
    """With another template too, whose turns end in another token than the tokenizer names."""
    _, tokenizer = loaded
    other = copy.deepcopy(tokenizer)
    other.chat_template = CHATML
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    chat = [{"role": "user", "content": "how do i store the bread ?"}]
    for one in (tokenizer, other):
        (text,) = texts_of(one, [chat], answer_next=True)
        (made,) = contrasts(one, [prompt()]).usable
        assert made.context == one(text, add_special_tokens=False)["input_ids"]
    (made,) = contrasts(other, [prompt(bad=["keep it in a dry cabinet . and"])]).usable
    assert other.convert_ids_to_tokens(made.good) == "<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"valid": 0}, "no score counts it"),
        ({"good": ["keep it .", "keep it ."]}, "not one turn for every turn"),
        ({"bad": ["the old </s> bridge"]}, "cannot be learnt: .*control token"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_dropped_with_the_reason(loaded, changes, reason):
    _, tokenizer = loaded
    if "bad" in changes:
        changes = {"bad": [changes["bad"][0].replace("</s>", tokenizer.eos_token)]}
    made = contrasts(tokenizer, [prompt("a", **changes), prompt("b")])
    assert [one.prompt for one in made.usable] == ["b"]
    assert re.search(reason, made.dropped["a"])


def test_a_suite_without_references_has_no_steering_loss(loaded):
    model, _ = loaded
    with pytest.raises(ValueError, match="no prompt has a good and a bad reference answer"):
        mean_loss(model, [])


def test_neither_order_nor_the_length_of_neighbours_changes_the_loss(loaded):
    model, tokenizer = loaded
    long = prompt("long", turns=["tell me a story of the old river and the bridge . " * 3])
    made = contrasts(tokenizer, [prompt("short"), long]).usable
    alone = [float(mean_loss(model, [one])) for one in made]
    assert float(mean_loss(model, made)) == pytest.approx(sum(alone) / 2, abs=1e-5)
    assert float(mean_loss(model, made[::-1])) == pytest.approx(sum(alone) / 2, abs=1e-5)


def test_its_gradient_makes_the_good_answer_likelier(loaded):
    model, tokenizer = loaded
    made = contrasts(tokenizer, [prompt()]).usable
    head = model.get_input_embeddings().weight
    before = mean_loss(model, made)
    (slope,) = torch.autograd.grad(before, [head])
    kept = head.detach().clone()
    with torch.no_grad():
        head -= 0.01 * slope / slope.norm()
        after = mean_loss(model, made)
        head.copy_(kept)
    assert float(after) < float(before)


def test_references_are_the_best_and_worst_judged_answers_and_given_ones_stay():
    bare, given = prompt("a", good=None, bad=None), prompt("b")
    trials = [
        {"a": (["middling"], 3.0), "b": (["x"], 5.0)},
        {"a": (["best"], 5.0)},
        {"a": (["as good"], 5.0)},
        {"a": (["worst"], 1.0)},
    ]
    made, same = judged_references([bare, given], trials)
    assert (made.good, made.bad) == (["best"], ["worst"])
    assert same == given


def test_answers_that_all_score_alike_make_no_references():
    bare = prompt("a", good=None, bad=None)
    assert judged_references([bare], [{"a": (["x"], 4.0)}, {"a": (["y"], 4.0)}]) == [bare]
    assert judged_references([bare], []) == [bare]
