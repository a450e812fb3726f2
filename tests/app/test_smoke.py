"""The two steps and eight prompts before a run: what they train on and where, and how they answer."""

import pyarrow.parquet as pq
import pytest
import torch

from mosaic.app import smoke, wiring
from mosaic.app.config_file import load_config
from mosaic.app.wiring import open_inputs
from mosaic.core.errors import TrainingError
from mosaic.core.types.runs import TRAINING_SET
from training.methods import sft
from training.methods.weighted_loss import WeightCollator

FEW = "generator.max_new_tokens=2"


def test_the_smoke_test_trains_where_the_run_will_and_answers_in_its_type(monkeypatch):
    config = load_config(
        "lab",
        ["executor.kind=subprocess", "generator={kind: vllm, dtype: bfloat16, max_new_tokens: 8}"],
    )
    made = []

    class Noted(wiring.TransformersGenerator):
        """Remembers what was made and whether it let go of its model."""

        def __init__(self, base, settings, **rest):
            super().__init__(base, settings, **rest)
            made.append(self)

    def here(*_):
        raise AssertionError("trained in the controller's process")

    monkeypatch.setattr("training.methods.sft.train", here)
    monkeypatch.setattr(wiring, "TransformersGenerator", Noted)
    finding, measured = smoke.smoke_test(config, open_inputs(config), serve=False)
    assert "after 2 steps on the largest batch, " in finding.result
    assert measured.training
    assert made[0].config.dtype == "bfloat16"
    assert "_base" not in made[0].__dict__


@pytest.fixture
def smoked(monkeypatch):
    """A function that runs the smoke test and returns config, inputs and n_tokens trained on."""

    def run(*overrides):
        config = load_config("lab", ["executor.kind=inline", FEW, *overrides])
        inputs = open_inputs(config)
        trained = []
        real = sft.train

        def noting(job, place, *rest):
            trained.extend(pq.read_table(place.paths[TRAINING_SET])["n_tokens"].to_pylist())
            return real(job, place, *rest)

        monkeypatch.setattr(sft, "train", noting)
        finding, _ = smoke.smoke_test(config, inputs, serve=False)
        assert "after 2 steps" in finding.result
        return config, inputs, trained

    return run


def curated_lengths(config, inputs):
    curated = smoke.first_training_set(config, inputs)
    return sorted(inputs.pool.column("n_tokens")[curated.indices].tolist(), reverse=True)


def test_the_longest_rows_of_the_first_training_set_are_trained_on(smoked):
    config, inputs, trained = smoked("methods.sft.gradient_accumulation=3")
    size = config.methods.sft.batch_size
    assert sorted(trained, reverse=True) == curated_lengths(config, inputs)[:size]


def test_packed_rows_are_as_full_as_they_can_be(smoked):
    config, _, trained = smoked("methods.sft.packing=true", "methods.sft.max_length=200")
    assert sum(trained) >= 0.99 * config.methods.sft.batch_size * 200


def test_a_set_of_fewer_rows_than_a_batch_is_repeated_as_its_epochs_do(smoked):
    config, inputs, trained = smoked("methods.sft.batch_size=1000", "budget.tokens_per_round=600")
    lengths = curated_lengths(config, inputs)
    assert len(lengths) < 1000
    assert sorted(trained) == sorted(lengths * config.methods.sft.epochs)


def test_a_training_that_only_fails_on_the_largest_batch_is_found(monkeypatch):
    config = load_config("lab", ["executor.kind=inline", FEW])
    inputs = open_inputs(config)
    lengths = curated_lengths(config, inputs)
    limit = config.methods.sft.batch_size * lengths[0] - 1
    collate = WeightCollator.__call__

    def scarce(self, rows):
        batch = collate(self, rows)
        if batch["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return batch

    monkeypatch.setattr(WeightCollator, "__call__", scarce)
    with pytest.raises(TrainingError, match=r"lower methods\.sft\.batch_size") as caught:
        smoke.smoke_test(config, inputs, serve=False)
    assert caught.value.failure == "out_of_memory"
