"""Whether the suites fit into the context of the server, known before anything runs."""

import json
import shutil
from types import SimpleNamespace

import pytest

from eval.generators.transformers import TransformersGenerator
from mosaic.app import validation
from mosaic.app.config_file import load_config
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt
from training.models.tokenizer import load_tokenizer

SHORT = Prompt(id="short", turns=["hi"], slice="s", weight=1)
LONG = Prompt(
    id="long", system="Be brief.", turns=["hello there", "and now", "so"], slice="s", weight=1
)

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8}  # fmt: skip


def check(base, *overrides):
    config = load_config(
        "lab",
        [f"base_model={base}", "generator.kind=vllm", "generator.max_new_tokens=20", *overrides],
    )
    suites = {
        "safety": {
            "steering": SimpleNamespace(prompts=[SHORT]),
            "audit": SimpleNamespace(prompts=[LONG, SHORT]),
        }
    }
    return validation._lengths(config, SimpleNamespace(all_suites=suites, practice={}))


def test_the_longest_conversation_and_its_need_are_named(tiny_model):
    (need,) = validation.chat_lengths(load_tokenizer(tiny_model), [LONG], 20)
    assert need > 60
    assert check(tiny_model, f"generator.max_model_len={need}")[0].check == "context"
    with pytest.raises(
        UsageError,
        match=rf"generator\.max_model_len: {need - 1} .* 1 of 3 .* long, needs {need} tokens",
    ):
        check(tiny_model, f"generator.max_model_len={need - 1}")


def test_a_conversation_is_as_long_as_the_generator_makes_it(tiny_model):
    chat = [{"role": "user", "content": "hi"}]
    (ids,) = TransformersGenerator(tiny_model, None)._encode([chat])
    assert validation.chat_lengths(load_tokenizer(tiny_model), [SHORT], 7) == [len(ids) + 7]


@pytest.mark.parametrize(
    ("settings", "refused"),
    [({"max_position_embeddings": 40}, True), ({"max_position_embeddings": 4000}, False), ({}, False),
     ({"text_config": {"max_position_embeddings": 40}}, True),
     ({"max_position_embeddings": 40, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, False),
     ({"max_position_embeddings": 40, "rope_scaling": LLAMA3}, True)],
)  # fmt: skip
def test_without_a_length_the_base_says_it(tiny_model, tmp_path, settings, refused):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    for name in ("max_position_embeddings", "rope_scaling", "rope_parameters"):
        config.pop(name, None)
    (base / "config.json").write_text(json.dumps(config | settings))
    if refused:
        with pytest.raises(
            UsageError, match=r"generator\.max_model_len: 40 \(the base's max_position_embeddings"
        ):
            check(base)
    else:
        check(base)


def test_in_process_there_is_no_such_limit(tiny_model):
    assert check(tiny_model, "generator.kind=transformers") == []


def test_validate_and_the_start_of_a_run_both_ask(tiny_model, monkeypatch):
    def asked(config, inputs):
        raise UsageError("lengths asked")

    others = (
        "check_base_of",
        "_pool",
        "_contamination",
        "_suites",
        "_forged",
        "_counted",
        "_recipe",
    )
    after = ("_mixture", "training_findings", "_influence", "method_findings")
    config = SimpleNamespace(telemetry=None)
    for name in ("check_budget", "open_inputs", *others, *after):
        monkeypatch.setattr(validation, name, lambda *words: [])
    monkeypatch.setattr(validation, "_lengths", asked)
    for call in (
        lambda: validation.validate(config, False, print),
        lambda: validation.check_before_run(config, None, print),
    ):
        with pytest.raises(UsageError, match="lengths asked"):
            call()
