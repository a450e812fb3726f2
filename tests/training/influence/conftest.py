"""The tiny model with an adapter of random matrices, rows of two buckets and steering contrasts."""

import pytest

from eval.steering_loss import contrasts
from mosaic.core.types.evaluation import Prompt
from training.influence.estimate import SampledRows
from training.models.chat_template import tokenise
from training.models.tokenizer import load_tokenizer

ANSWERS = ["keep it in a dry cabinet .", "the bridge is old and green .", "tell me a story ."]
SHARES = {("a", "x"): 0.7, ("b", "y"): 0.3}


def with_random_lora(base):
    """A LoRA of all linear layers, B not zero as after a training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(6)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(plain, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def lora_model(tiny_model):
    return with_random_lora(tiny_model)


@pytest.fixture(scope="session")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="session")
def sampled(tokenizer):
    return sampled_rows(tokenizer)


@pytest.fixture(scope="session")
def suites(tokenizer):
    return steering_contrasts(tokenizer)


def sampled_rows(tokenizer):
    """Twelve rows of different lengths, half of each bucket."""
    chats = []
    for number in range(12):
        question = {"role": "user", "content": f"how do i store the bread {number} ?"}
        answer = {"role": "assistant", "content": ANSWERS[number % 3] + " dry" * (number % 4)}
        chats.append([question, answer])
    ids, labels = tokenise(tokenizer, chats)
    cells = [("a", "x") if number % 2 else ("b", "y") for number in range(12)]
    return SampledRows(ids, labels, [1.0] * 12, cells)


def steering(name, good, bad, count=6):
    prompts = []
    for number in range(count):
        turns = ["please add one , two and three ." + " and" * number]
        prompt = Prompt(
            id=f"{name}{number}", turns=turns, slice="all", weight=1, good=[good], bad=[bad]
        )
        prompts.append(prompt)
    return prompts


def steering_contrasts(tokenizer):
    """Contrasts of two objectives."""
    found = {}
    for name, good, bad in (("kind", "keep it .", "tell me ."), ("old", "the old .", "a river .")):
        found[name] = contrasts(tokenizer, steering(name, good, bad)).usable
    return found
