"""The estimate on a language model with LoRA, against automatic differentiation."""

import dataclasses

import pytest
import torch

from eval.steering_loss import mean_loss
from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.types.influence import BucketInfluence, Effect, Influence, SteeringPrompts, combine
from tests.training.influence.conftest import SHARES
from training.influence.ekfac import Covariances, SecondMoments
from training.influence.estimate import SampledRows, estimate
from training.influence.gradients import flows, trained_layers
from training.influence.sequences import batches, drawn_labels, logits_of, summed_loss
from training.influence.settings import InfluenceConfig

TRADED = ["kind", "old"]


@pytest.fixture
def estimated(lora_model, sampled, suites):
    def make(rows=sampled, variant="inverse", suites=suites, shares=SHARES, **settings):
        config = InfluenceConfig(**settings)
        return estimate(lora_model, rows, shares, suites, TRADED, config, variant)

    return make


def gradient(model, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


def test_without_curvature_an_effect_is_the_inner_product_of_two_gradients(
    estimated, lora_model, sampled, suites
):
    found = estimated(variant="identity")
    for bucket in found.buckets:
        members = sampled.of_cell()[bucket.dataset, bucket.bucket]
        total = torch.zeros(())
        for row in members:
            (batch,) = batches([sampled.ids[row]], [sampled.labels[row]], 1)
            total = total + summed_loss(logits_of(lora_model, batch), batch.labels)
        tokens = sum(len(sampled.ids[row]) for row in members)
        assert (bucket.rows, bucket.tokens) == (len(members), tokens)
        own = gradient(lora_model, total / tokens)
        falls = []
        for objective in TRADED:
            reference = gradient(lora_model, mean_loss(lora_model, suites[objective]))
            falls.append(0.01 * float(reference @ own))
            assert bucket.effects[objective].value == pytest.approx(falls[-1], rel=1e-3, abs=1e-8)
        assert bucket.mean.value == pytest.approx(sum(falls) / 2, rel=1e-3, abs=1e-8)


def test_the_losses_are_those_of_the_suites(estimated, lora_model, suites):
    found = estimated()
    for objective in TRADED:
        expected = mean_loss(lora_model, suites[objective]).item()
        assert found.losses[objective] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batches_and_their_padding_change_nothing(estimated, batch_size):
    one, other = estimated(batch_size=3), estimated(batch_size=batch_size)
    for left, right in zip(one.buckets, other.buckets, strict=True):
        for objective in TRADED:
            for field in ("value", "standard_error"):
                assert getattr(left.effects[objective], field) == pytest.approx(
                    getattr(right.effects[objective], field), rel=1e-2, abs=1e-7
                )


def test_the_order_of_rows_changes_no_gradient(estimated, sampled):
    order = [*range(6, 12), *range(6)]
    shuffled = SampledRows(
        [sampled.ids[row] for row in order],
        [sampled.labels[row] for row in order],
        [sampled.weights[row] for row in order],
        [sampled.cells[row] for row in order],
    )
    one, other = estimated(variant="identity"), estimated(shuffled, variant="identity")
    for left, right in zip(one.buckets, other.buckets, strict=True):
        assert left.mean.value == pytest.approx(right.mean.value, rel=1e-3)


def test_what_follows_the_last_answer_has_no_effect(estimated, sampled):
    """Tokens that no supervised position can see, beside those that the row is charged for."""
    longer = [[*row, 7, 9, 11] for row in sampled.ids]
    ignored = [[*row, -100, -100, -100] for row in sampled.labels]
    other = [[*row, 5, 5, 6] for row in sampled.ids]
    one = estimated(dataclasses.replace(sampled, ids=longer, labels=ignored))
    changed = estimated(dataclasses.replace(sampled, ids=other, labels=ignored))
    for left, right in zip(one.buckets, changed.buckets, strict=True):
        assert left.mean.value == pytest.approx(right.mean.value, rel=1e-3, abs=1e-9)


def test_equal_rows_and_equal_prompts_leave_no_error(estimated, sampled, suites):
    same = SampledRows(
        [sampled.ids[0]] * 4 + [sampled.ids[1]] * 4,
        [sampled.labels[0]] * 4 + [sampled.labels[1]] * 4,
        [1.0] * 8,
        [("a", "x")] * 4 + [("b", "y")] * 4,
    )
    prompts = {objective: [found[0]] * 3 for objective, found in suites.items()}
    for bucket in estimated(same, suites=prompts).buckets:
        assert bucket.mean.standard_error == pytest.approx(
            0, abs=1e-6 + 1e-3 * abs(bucket.mean.value)
        )
    for bucket in estimated().buckets:
        assert bucket.mean.standard_error > 0


def test_twice_the_rows_and_prompts_make_the_error_smaller_by_the_root(estimated, sampled, suites):
    twice = SampledRows(sampled.ids * 8, sampled.labels * 8, sampled.weights * 8, sampled.cells * 8)
    prompts = {objective: list(found) * 8 for objective, found in suites.items()}
    one = estimated(variant="identity").buckets
    other = estimated(twice, variant="identity", suites=prompts).buckets
    for left, right in zip(one, other, strict=True):
        assert right.mean.value == pytest.approx(left.mean.value, rel=1e-3)
        ratio = left.mean.standard_error / right.mean.standard_error
        assert ratio == pytest.approx((8 * (48 - 1) / (8 * (6 - 1))) ** 0.5, rel=0.1)


def test_a_bucket_of_one_row_has_no_estimate(estimated, sampled):
    cells = [("c", "z"), *sampled.cells[1:]]
    found = estimated(dataclasses.replace(sampled, cells=cells))
    assert [(b.dataset, b.bucket) for b in found.buckets] == [("a", "x"), ("b", "y")]


def test_without_any_bucket_of_two_rows_the_setting_to_raise_is_named(estimated, sampled):
    two = SampledRows(sampled.ids[:2], sampled.labels[:2], [1.0] * 2, sampled.cells[:2])
    with pytest.raises(UsageError, match=r"raise influence\.tokens_per_bucket"):
        estimated(two)


def test_a_weight_of_a_row_weighs_its_loss(estimated, sampled):
    halves = dataclasses.replace(sampled, weights=[0.5] * 12)
    one, other = estimated(variant="identity"), estimated(halves, variant="identity")
    for left, right in zip(one.buckets, other.buckets, strict=True):
        assert right.mean.value == pytest.approx(left.mean.value / 2, rel=1e-3)


def test_a_bucket_that_was_not_trained_on_bends_nothing(estimated, sampled):
    """Its rows have an effect of their own, but no part in the curvature."""
    only = {("a", "x"): 1.0}
    absurd = [
        row if cell == ("a", "x") else row[::-1]
        for row, cell in zip(sampled.ids, sampled.cells, strict=True)
    ]
    one = estimated(shares=only)
    other = estimated(dataclasses.replace(sampled, ids=absurd), shares=only)
    assert one.buckets[0].mean.value == pytest.approx(other.buckets[0].mean.value, rel=1e-3)
    with pytest.raises(UsageError, match="trained on"):
        estimated(shares={("c", "z"): 1.0})


def test_it_stops_between_two_batches(lora_model, sampled, suites):
    asked = []

    def stopping():
        asked.append(1)
        return len(asked) > 3

    config = InfluenceConfig(batch_size=4)
    with pytest.raises(StopRequested):
        estimate(lora_model, sampled, SHARES, suites, TRADED, config, stopping=stopping)
    assert len(asked) == 4


def test_labels_are_drawn_from_the_model_by_row_and_seed(lora_model, sampled):
    drawn = []
    for size, seed in ((12, 1), (5, 1), (12, 2)):
        rows = {}
        for batch in batches(sampled.ids, sampled.labels, size):
            labels = drawn_labels(logits_of(lora_model, batch), batch, seed)
            assert torch.equal(labels != -100, batch.supervised)
            for place, row in enumerate(batch.rows):
                rows[row] = labels[place][labels[place] != -100].tolist()
        drawn.append(rows)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_layers_of_full_fine_tuning_are_all_but_the_head(tiny_model, sampled):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, local_files_only=True
    )
    layers = trained_layers(model)
    assert len(layers) == 2 * 7
    assert not any("lm_head" in name for name in layers)
    covariances = Covariances()
    (batch,) = batches(sampled.ids, sampled.labels, 12)
    passed = flows(layers, lambda: summed_loss(logits_of(model, batch), batch.labels), batch.shape)
    covariances.add(passed, batch.reach.float(), torch.ones(12))
    moments = SecondMoments(covariances.bases())
    moments.add(passed, torch.ones(12))
    curvature = moments.curvature(0.1)
    vector = {name: layer.weight.detach() for name, layer in layers.items()}
    for name, solved in curvature.apply(vector).items():
        assert solved.shape == vector[name].shape
        assert torch.isfinite(solved).all()


# -- several adapters ------------------------------------------------------------------------------


def around(value, error):
    effect = Effect(value=value, standard_error=error)
    bucket = BucketInfluence(
        dataset="a", bucket="x", share=1, rows=2, tokens=9, effects={"kind": effect}, mean=effect
    )
    prompts = {"kind": SteeringPrompts(used=3, loss=value)}
    return Influence(adapters=[str(value)], prompts=prompts, buckets=[bucket])


def test_two_adapters_add_the_variance_between_them():
    found = combine([around(1.0, 0.3), around(1.4, 0.3)])
    assert found.adapters == ["1.0", "1.4"]
    effect = found.buckets[0].mean
    assert effect.value == pytest.approx(1.2)
    assert effect.standard_error == pytest.approx((0.3**2 + 0.08 / 2) ** 0.5, rel=1e-5)
    assert found.buckets[0].effects["kind"] == effect
    assert found.prompts["kind"].loss == pytest.approx(1.2)
    assert combine([around(1.0, 0.3)]) == around(1.0, 0.3)
