"""DPO the real way on a tiny model: the loss, the reference, multi-turn masks, checkpoints, adapters."""

import json
import math
from pathlib import Path

import pytest

from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import PAIRS, DpoRecipe
from training.methods.base import never
from training.methods.checkpoints import last_checkpoint
from training.methods.dpo import PairCollator, check_recipe, train
from training.methods.hf import load_model
from training.methods.log_ratios import log_likelihoods
from training.methods.preference_rows import (
    PreferenceRow,
    conversation,
    read_pairs,
    tokenised_pairs,
    write_pairs,
)
from training.models.adapter import check_adapter
from training.models.chat_template import tokenise
from training.models.tokenizer import load_tokenizer

GOOD, BAD = "keep it dry .", "keep it in a dry cabinet . keep it dry ."


def row(tokenizer, number, turns=1, good=GOOD, bad=BAD):
    prompt = Prompt(id=f"p{number}", turns=[f"bread {number} ?"] * turns, slice="s", weight=1)
    sides = {}
    for side, answer in (("chosen", good), ("rejected", bad)):
        asked, rest = conversation(prompt, [answer] * turns)
        (ids,), _ = tokenise(tokenizer, [[*asked, *rest]])
        sides |= {"prompt": asked, side: rest, f"{side}_tokens": len(ids)}
    return PreferenceRow(id=prompt.id, slice="o/s", gap=1.0, **sides)


@pytest.fixture
def order(pair_order, tiny_model):
    """Makes a job on eight pairs and its workplace; `start` is a folder to continue from."""
    tokenizer = load_tokenizer(tiny_model)
    numbers = iter(range(100))

    def make(rows=None, work="work", **more):
        pairs = rows or [row(tokenizer, number) for number in range(8)]
        made = pair_order(f"{work}{next(numbers)}", pairs=pairs, **more)
        return made.job, made.place

    return make


def weights(folder):
    return (Path(folder) / "adapter_model.safetensors").read_bytes()


def test_pairs_are_written_and_read_as_they_are(tiny_model, tmp_path):
    rows = [row(load_tokenizer(tiny_model), number, turns=2) for number in range(3)]
    write_pairs(rows, tmp_path / "a.parquet")
    write_pairs(rows, tmp_path / "b.parquet")
    assert read_pairs(tmp_path / "a.parquet") == rows
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_only_the_models_own_words_count_in_several_turns(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    (pair,) = tokenised_pairs([row(tokenizer, 1, turns=2)], tokenizer, 512)
    own = [t for t, mask in zip(pair.chosen, pair.chosen_mask, strict=True) if mask]
    assert tokenizer.decode(own) == f"{GOOD}<|end|>{GOOD}<|end|>"
    assert pair.supervised < pair.tokens
    example = {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
    for side in ("chosen", "rejected"):
        example |= {f"{side}_ids": getattr(pair, side)}
        example |= {f"{side}_mask": getattr(pair, f"{side}_mask")}
    batch = PairCollator()([example])
    assert batch["input_ids"].shape == (2, max(len(pair.chosen), len(pair.rejected)))
    assert int(batch["completion_mask"].sum()) == pair.supervised
    assert int(batch["attention_mask"].sum()) == pair.tokens


def test_what_was_counted_is_what_is_trained_or_it_is_an_error(tiny_model, order):
    import dataclasses

    tokenizer = load_tokenizer(tiny_model)
    wrong = dataclasses.replace(row(tokenizer, 1), chosen_tokens=3)
    with pytest.raises(UsageError, match="tokens were counted"):
        train(*order(rows=[wrong]))
    with pytest.raises(UsageError, match=r"methods\.dpo\.max_length is 9"):
        train(*order(max_length=9))


def test_log_likelihoods_are_those_of_a_model_read_alone(tiny_model):
    """Padding and the prompt's tokens add nothing."""
    import torch

    tokenizer = load_tokenizer(tiny_model)
    model = load_model(tiny_model, "float32")
    rows = [row(tokenizer, number, bad="no .") for number in range(3)]
    pairs = tokenised_pairs(rows, tokenizer, 512)
    ids = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    masks = [p.chosen_mask for p in pairs] + [p.rejected_mask for p in pairs]
    found = log_likelihoods(model, ids, masks)
    for tokens, mask, value in zip(ids, masks, found, strict=True):
        logs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        alone = sum(float(logs[i - 1, tokens[i]]) for i in range(1, len(tokens)) if mask[i])
        assert value == pytest.approx(alone, abs=1e-3)


def test_the_first_loss_is_log_2_and_the_chosen_answer_gains(tiny_model, order):
    """Against where it began the policy has no log-ratio, so that the loss begins at log 2."""
    from peft import PeftModel

    seen = []
    job, place = order(epochs=10, warmup_ratio=0.0)
    result = train(job, place, seen.append)
    losses = [event["loss"] for event in seen if "loss" in event]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < 0.9 * losses[0]
    assert result.tokens == 10 * sum(r.tokens for r in read_pairs(Path(place.paths[PAIRS])))
    check_adapter(Path(result.adapter), tiny_model)
    files = sorted(p.name for p in Path(result.adapter).iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]

    tokenizer = load_tokenizer(tiny_model)
    pairs = tokenised_pairs(read_pairs(Path(place.paths[PAIRS])), tokenizer, 512)
    base = load_model(tiny_model, "float32")

    def margins(model):
        chosen = log_likelihoods(model, [p.chosen for p in pairs], [p.chosen_mask for p in pairs])
        other = log_likelihoods(
            model, [p.rejected for p in pairs], [p.rejected_mask for p in pairs]
        )
        return [one - two for one, two in zip(chosen, other, strict=True)]

    before = margins(base)
    after = margins(PeftModel.from_pretrained(base, result.adapter))
    assert all(late > early for early, late in zip(before, after, strict=True))


def test_the_likelihood_of_chosen_answers_is_a_part_of_the_loss_where_it_is_asked_for(
    tiny_model, order
):
    from peft import PeftModel

    assert "sft_weight" not in DpoRecipe().model_dump(), "jobs of earlier releases stay"
    gains = {}
    for weight in (0.0, 2.0):
        seen = []
        job, place = order(epochs=10, batch_size=8, warmup_ratio=0.0, sft_weight=weight)
        result = train(job, place, seen.append)
        rows = read_pairs(Path(place.paths[PAIRS]))
        pairs = tokenised_pairs(rows, load_tokenizer(tiny_model), 512)
        ids, masks = [p.chosen for p in pairs], [p.chosen_mask for p in pairs]
        base = load_model(tiny_model, "float32")
        before = sum(log_likelihoods(base, ids, masks))
        first = next(event["loss"] for event in seen if "loss" in event)
        unlikely = -before / sum(sum(mask) for mask in masks)
        assert first == pytest.approx(math.log(2) + weight * unlikely, abs=2e-3)
        trained = PeftModel.from_pretrained(base, result.adapter)
        gains[weight] = sum(log_likelihoods(trained, ids, masks)) - before
    assert gains[2.0] > gains[0.0]


def test_a_stage_continues_from_the_adapter_before_it(tiny_model, order):
    """With a learning rate of nearly nothing the adapter stays what it was, and not a fresh one."""
    from safetensors.torch import load_file

    first = train(*order(epochs=5))
    seen = []
    job, place = order(start=first.adapter, learning_rate=1e-9, work="second")
    second = train(job, place, seen.append)
    losses = [event["loss"] for event in seen if "loss" in event]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    old = load_file(Path(first.adapter) / "adapter_model.safetensors")
    new = load_file(Path(second.adapter) / "adapter_model.safetensors")
    assert old.keys() == new.keys()
    assert all((old[name] - new[name]).abs().max() < 1e-6 for name in old)
    assert any(old[name].abs().max() > 0 for name in old if "lora_B" in name)


def test_the_same_job_gives_the_same_bytes_and_another_seed_others(order):
    one, two = train(*order(work="one")), train(*order(work="two"))
    other = train(*order(work="three", seed=2))
    assert weights(one.adapter) == weights(two.adapter)
    assert weights(one.adapter) != weights(other.adapter)


@pytest.mark.parametrize("continued", [False, True])
def test_a_stopped_training_ends_where_an_unbroken_one_does(order, continued, tmp_path):
    """The checkpoint holds the one adapter that is trained, and is read back as it was written."""
    start = train(*order(epochs=3, work="start")).adapter if continued else None
    whole = train(*order(start=start, epochs=4, save_every=2, work="whole"))
    asked = []

    def stopping():
        asked.append(1)
        return len(asked) == 3

    job, place = order(start=start, epochs=4, save_every=2, work="cut")
    with pytest.raises(StopRequested):
        train(job, place, stopping=stopping)
    checkpoint = Path(last_checkpoint(job, Path(place.work)))
    assert not (checkpoint / "ref").exists()
    steps = []
    result = train(job, place, lambda event: steps.append(event.get("step")), never)
    assert min(step for step in steps if step) > 3
    assert weights(result.adapter) == weights(whole.adapter)


def test_recipes_that_make_no_sense_are_refused(tiny_model):
    check_recipe(tiny_model, DpoRecipe(lora_r=4))
    for fields, text in (
        ({"rule": "objective"}, "only with it"),
        ({"objective": "safety"}, "only with it"),
        ({"packing": True}, "never packed"),
        ({"n": 1}, "greater than or equal to 2"),
        ({"temperature": 0.0}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=text):
            DpoRecipe(**fields)
    written = json.loads(DpoRecipe(lora_r=4).model_dump_json())
    assert DpoRecipe.model_validate(written) == DpoRecipe(lora_r=4)
