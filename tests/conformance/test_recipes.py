"""What every way of training promises: an adapter of the base from a job alone, and an honest bill."""

import math
import shutil
from pathlib import Path

import pytest

from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.types.runs import TrainJob
from training import worker
from training.methods.base import never
from training.methods.kinds import METHODS
from training.methods.preference_rows import read_pairs
from training.models.adapter import check_adapter

# kind -> settings of a small training; what it may train on is in the order
RECIPES = {
    "sft": {"epochs": 2},
    "sft, packed": {"epochs": 2, "packing": True, "dtype": "bfloat16"},
    "dpo": {"epochs": 2},
}


@pytest.fixture(params=RECIPES)
def new_order(request, order, pair_order):
    """Makes orders of one recipe."""
    make = pair_order if request.param == "dpo" else order
    return lambda out="adapter", **more: make(out, **{**RECIPES[request.param], **more})


def run(order, progress=None, stopping=never):
    return worker.train(order.job, order.place, progress, stopping)


def selected(order):
    """Tokens of what is trained on."""
    import pyarrow.parquet as pq

    if "pairs" in order.place.paths:
        return sum(pair.tokens for pair in read_pairs(Path(order.place.paths["pairs"])))
    return sum(pq.read_table(order.place.paths["training_set"])["n_tokens"].to_pylist())


def files(result):
    return {path.name: path.read_bytes() for path in Path(result.adapter).iterdir()}


# The adapter


def test_the_adapter_is_where_it_was_asked_for_and_fits_the_base(new_order, tiny_model):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = new_order()
    result = run(made)
    assert result.adapter == made.place.out
    check_adapter(Path(result.adapter), tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, result.adapter)(input_ids=ids).logits
    assert torch.isfinite(after).all()
    # Something was learnt.
    assert not torch.allclose(before, after, atol=1e-5)


def test_the_same_job_gives_the_same_adapter_and_another_seed_another(new_order):
    first, second = run(new_order("first")), run(new_order("second"))
    assert files(first) == files(second)
    assert (first.loss, first.tokens, first.steps) == (second.loss, second.tokens, second.steps)
    assert files(run(new_order("other", seed=2))) != files(first)


def test_an_adapter_never_takes_the_place_of_something(new_order):
    made = new_order()
    Path(made.place.out).mkdir()
    with pytest.raises(UsageError, match="exists already"):
        run(made)
    assert list(Path(made.place.out).iterdir()) == []


# The bill


def test_a_training_takes_what_its_recipe_said_it_would(new_order):
    made = new_order()
    result = run(made)
    usage = made.job.recipe.usage(selected(made))
    assert usage.cost == usage.trained + usage.sampled
    assert result.tokens == usage.trained
    assert 0 < result.supervised < result.tokens
    assert math.isfinite(result.loss)
    assert 0 < result.real_token_share <= 1
    assert 0 <= result.train_seconds <= result.seconds


def test_what_a_recipe_costs_grows_with_the_tokens_and_is_nothing_for_none(new_order):
    recipe = new_order().job.recipe
    assert recipe.usage(0).cost == 0
    assert recipe.usage(1000).cost < recipe.usage(2000).cost


def test_a_training_that_is_cut_short_does_not_take_more_than_it_would_have(new_order):
    made = new_order(max_steps=1)
    result = run(made)
    assert result.steps == 1
    assert result.tokens <= made.job.recipe.usage(selected(made)).trained


def test_each_step_is_told_once_with_how_many_there_are(new_order):
    told = []
    result = run(new_order(), told.append)
    ended = [event for event in told if "step" in event and "loss" not in event]
    assert [event["step"] for event in ended] == list(range(1, result.steps + 1))
    assert {event["steps"] for event in ended} == {result.steps}


# Stops


def test_a_stopped_training_leaves_no_adapter_and_goes_on_where_it_stood(new_order):
    whole = run(new_order("whole"))
    made, steps = new_order("cut"), []

    def note(event):
        steps.append(event.get("step", 0))

    with pytest.raises(StopRequested):
        run(made, note, lambda: max(steps, default=0) >= 1)
    assert not Path(made.place.out).exists()
    stood = max(steps)
    assert stood < whole.steps
    steps.clear()
    assert files(run(made, note)) == files(whole)
    assert min(step for step in steps if step) == stood + 1


# What cannot be trained


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_base_that_cannot_be_trained_is_refused(new_order, tiny_model, tmp_path, missing):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / missing).unlink()
    made = new_order()
    place = made.place.model_copy(update={"paths": {**made.place.paths, "base": str(base)}})
    with pytest.raises(UsageError):
        worker.train(made.job, place)
    assert not Path(made.place.out).exists()


def test_rows_that_are_not_what_the_pool_counted_are_refused(new_order):
    made = new_order(n_tokens=[99] * 12)
    with pytest.raises(UsageError, match="99"):
        run(made)
    assert not Path(made.place.out).exists()


# The recipe as data


def test_a_job_is_named_by_everything_that_decides_its_adapter(new_order):
    job = new_order().job
    assert TrainJob.model_validate_json(job.model_dump_json()) == job
    names = {job.content_digest}
    changes = (
        {"seed": 2},
        {"inputs": {**job.inputs, "base": "0" * 64}},
        {"recipe": job.recipe.model_copy(update={"learning_rate": 0.5})},
    )
    for change in changes:
        names.add(job.model_copy(update=change).content_digest)
    assert len(names) == 1 + len(changes)


def test_every_recipe_of_a_config_is_tried_here():
    tried = {name.split(",")[0] for name in RECIPES}
    # A policy draws what it learns from: tests/training/test_rl.py and test_control.py ask the same of it.
    assert tried | {"rl"} == set(METHODS)
