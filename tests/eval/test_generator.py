"""The transformers generator on a tiny random model: replay, batching, adapters."""

import json
import shutil

import pytest

from eval.generators.base import TransformersGeneratorConfig
from eval.generators.draws import draw_tokens
from eval.generators.transformers import TransformersGenerator
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import Sampling


def prompts(*chats):
    return [
        Prompt(id=f"p{i}", turns=list(turns), slice="s", weight=1) for i, turns in enumerate(chats)
    ]


@pytest.fixture(scope="module")
def generator(tiny_model):
    return TransformersGenerator(
        tiny_model, TransformersGeneratorConfig(batch_size=4, max_new_tokens=8)
    )


CHATS = [
    ("how do i store the bread ?",),
    ("hello", "the old bridge"),
    ("a", "b", "please add one"),
    ("the river",),
]


def test_answers_do_not_depend_on_batching(tiny_model, generator):
    single = TransformersGenerator(
        tiny_model, TransformersGeneratorConfig(batch_size=1, max_new_tokens=8)
    )
    assert generator.generate(prompts(*CHATS), None) == single.generate(prompts(*CHATS), None)


def test_what_a_folder_wants_for_decoding_changes_no_answer(tiny_model, generator, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    wanted = {
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 8,
        "do_sample": True,
        "top_k": 3,
    }
    path.write_text(
        json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **wanted})
    )
    other = TransformersGenerator(tmp_path / "base", generator.config)
    assert other.generate(prompts(*CHATS), None) == generator.generate(prompts(*CHATS), None)


def test_call_k_sees_k_user_turns_and_its_own_earlier_answers(generator, monkeypatch):
    seen = []
    encode = generator._encode
    monkeypatch.setattr(
        generator, "_encode", lambda chats: seen.append([list(c) for c in chats]) or encode(chats)
    )
    response = generator.generate(prompts(("a", "b", "please add one")), None)[0]
    roles = [[m["role"] for m in calls[0]] for calls in seen]
    assert roles == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
    ]
    assert [m["content"] for m in seen[2][0] if m["role"] == "assistant"] == response.answers[:2]
    assert len(response.answers) == len(response.finish_reasons) == 3


def test_an_adapter_changes_answers_and_leaves_the_base_alone(tiny_model, generator, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    before = generator.generate(prompts(*CHATS), None)
    adapted = generator.generate(prompts(*CHATS), tmp_path / "adapter")
    assert adapted != before
    assert generator.generate(prompts(*CHATS), None) == before


DRAWN = Sampling(n=4, temperature=1.0, seed=7)


def test_n_answers_per_prompt_are_drawn_and_differ(generator):
    drawn = generator.generate(prompts(*CHATS), None, DRAWN)
    assert [r.id for r in drawn] == [f"p{i}" for i in range(4) for _ in range(4)]
    assert [len(r.answers) for r in drawn[8:12]] == [3] * 4
    assert all(len({r.answers[0] for r in drawn[i : i + 4]}) > 1 for i in (0, 4, 8, 12))


def test_the_same_seed_draws_the_same_answers_and_another_draws_others(generator):
    drawn = generator.generate(prompts(*CHATS), None, DRAWN)
    assert generator.generate(prompts(*CHATS), None, DRAWN) == drawn
    other = DRAWN.model_copy(update={"seed": 8})
    assert generator.generate(prompts(*CHATS), None, other) != drawn


def test_a_draw_does_not_depend_on_what_else_is_drawn(tiny_model, generator):
    drawn = generator.generate(prompts(*CHATS), None, DRAWN)
    single = TransformersGenerator(
        tiny_model, TransformersGeneratorConfig(batch_size=1, max_new_tokens=8)
    )
    assert single.generate(prompts(*CHATS), None, DRAWN) == drawn
    backwards = generator.generate(prompts(*CHATS)[::-1], None, DRAWN)
    assert [r for i in (12, 8, 4, 0) for r in backwards[i : i + 4]] == drawn
    fewer = DRAWN.model_copy(update={"n": 2})
    kept = [r for i in (0, 4, 8, 12) for r in drawn[i : i + 2]]
    assert generator.generate(prompts(*CHATS), None, fewer) == kept


def test_each_sample_of_a_chat_continues_with_its_own_answers(generator, monkeypatch):
    seen = []
    encode = generator._encode
    monkeypatch.setattr(
        generator, "_encode", lambda chats: seen.append([list(c) for c in chats]) or encode(chats)
    )
    drawn = generator.generate(prompts(("a", "b", "please add one")), None, DRAWN)
    for chat, response in zip(seen[2], drawn, strict=True):
        own = [m["content"] for m in chat if m["role"] == "assistant"]
        assert own == response.answers[:2]


def test_a_draw_at_almost_no_temperature_or_from_one_token_is_greedy(generator):
    greedy = generator.generate(prompts(*CHATS), None)
    cold = Sampling(temperature=1e-4, seed=1)
    assert generator.generate(prompts(*CHATS), None, cold) == greedy
    narrow = Sampling(temperature=1.0, top_p=1e-6, seed=1)
    assert generator.generate(prompts(*CHATS), None, narrow) == greedy
    generator.generate(prompts(*CHATS), None, DRAWN)
    assert generator.generate(prompts(*CHATS), None) == greedy


def test_tokens_are_drawn_as_often_as_the_model_says():
    import torch

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(20_000, 4)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    all_of_them = draw_tokens(logits, uniforms, temperature=1.0, top_p=1.0).bincount(minlength=4)
    assert all_of_them.tolist() == pytest.approx([10_000, 6_000, 3_000, 1_000], rel=0.06)
    nucleus = draw_tokens(logits, uniforms, temperature=1.0, top_p=0.8).bincount(minlength=4)
    assert nucleus.tolist() == pytest.approx([12_500, 7_500, 0, 0], rel=0.03)
    warm = draw_tokens(logits, uniforms, temperature=2.0, top_p=1.0).bincount(minlength=4)
    weights = probabilities.sqrt() / probabilities.sqrt().sum() * 20_000
    assert warm.tolist() == pytest.approx(weights.tolist(), rel=0.06)


def test_likelihood_is_the_models_own(generator):
    texts = ["the bridge is old", "the bridge is old and green ."]
    values = generator.log_likelihood(texts, None)
    assert [v.tokens for v in values] == [3, 6]  # a token per word; the first is given
    assert all(v.mean < 0 for v in values)


def test_the_mean_likelihood_is_over_all_tokens_but_the_first(generator):
    import torch

    text = "the bridge is old"
    ids = generator._tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = generator._base(input_ids=ids, labels=ids).loss
    (value,) = generator.log_likelihood([text], None)
    assert value.mean == pytest.approx(-float(loss), rel=1e-5)


@pytest.mark.parametrize(("text", "reason"), [("the", "single token"), ("old " * 600, "split")])
def test_a_text_that_has_no_likelihood_is_refused(generator, text, reason):
    with pytest.raises(UsageError, match=reason):
        generator.log_likelihood([text], None)


def test_a_folder_without_chat_template_or_with_remote_code_is_refused(tiny_model, tmp_path):
    import json
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        TransformersGenerator(bare, TransformersGeneratorConfig()).generate(prompts(("a",)), None)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(UsageError, match="remote code"):
        TransformersGenerator(bare, TransformersGeneratorConfig()).generate(prompts(("a",)), None)
