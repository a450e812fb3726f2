"""Influence as a step: what is filed, what its identity holds, and what cannot be estimated."""

import shutil
from dataclasses import replace

import pytest

from eval.suite import Suite
from mosaic.core.errors import UsageError
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.data import BucketReport, CurationReport, DatasetReport
from mosaic.core.types.evaluation import FailureProfile
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import EstimateInfluence
from mosaic.core.types.runs import Adapter, SftRecipe, Trial, TrialSpec
from tests.training.influence.conftest import steering, with_random_lora
from tools.effects.influence import InfluenceTool, delivered_shares
from training.data.pool import build_pool
from training.influence.settings import InfluenceConfig


def suite(name, prompts):
    return Suite(name, "steering", prompts, f"digest of {name} {len(prompts)}")


@pytest.fixture(scope="module")
def pool(tiny_model, tmp_path_factory):
    from tests.conftest import make_rows, write_jsonl

    folder = tmp_path_factory.mktemp("counted")
    lines = make_rows(count=30)
    for line in lines:
        del line["n_tokens"]
    source = write_jsonl(folder / "rows.jsonl", lines)
    return build_pool([source], folder / "pool", model=tiny_model, max_length=512)


@pytest.fixture
def tool(tiny_model, pool):
    suites = {
        "kind": suite("kind", steering("kind", "keep it .", "tell me .")),
        "old": suite("old", steering("old", "the old .", "a river .")),
    }
    settings = InfluenceConfig(tokens_per_bucket=120)
    return InfluenceTool(
        tiny_model, "base", SftRecipe(), pool, suites, ["kind", "old"], 2, settings
    )


@pytest.fixture
def steps(tmp_path, new_journal):
    journal = new_journal(tmp_path / "run")
    return Steps(journal, Store(tmp_path / "run"))


@pytest.fixture
def trial(steps, tiny_model, tmp_path):
    """The trial of an adapter with random matrices, trained on two buckets."""
    model = with_random_lora(tiny_model)
    model.save_pretrained(tmp_path / "adapter")
    digest = steps.store.put_folder(tmp_path / "adapter")
    adapter = Adapter(
        digest=digest, base="base", tokens=400, supervised=200, steps=4, loss=1, seconds=1
    )
    plan = ActionPlan(rationale="all of it", ratios={"a": 0.75, "b": 0.25})
    spec = TrialSpec(plan=plan, base="base")
    datasets = {
        "a": DatasetReport(buckets={"x": BucketReport(selected=300), "y": BucketReport()}),
        "b": DatasetReport(buckets={"x": BucketReport(selected=100)}),
    }
    report = CurationReport(datasets=datasets, total=BucketReport(selected=400), digest="rows")
    profile = FailureProfile(round=0, slices=[])
    return Trial(
        id=spec.id, spec=spec, adapter=adapter, curation=report, scores={}, profile=profile
    )


def test_every_bucket_of_the_pool_gets_an_effect_on_every_objective(tool, steps, trial):
    found = tool.influence(steps, [trial])
    cells = [(bucket.dataset, bucket.bucket) for bucket in found.buckets]
    assert cells == [(dataset, bucket) for dataset in "ab" for bucket in "xyz"]
    assert found.adapters == [trial.adapter.digest]
    for bucket in found.buckets:
        assert set(bucket.effects) == {"kind", "old"}
        assert bucket.tokens <= 120
        assert bucket.rows >= 2
    shares = {(b.dataset, b.bucket): b.share for b in found.buckets}
    assert shares["a", "x"] == 0.75
    assert shares["a", "z"] == 0
    assert delivered_shares(trial.curation) == {("a", "x"): 0.75, ("a", "y"): 0, ("b", "x"): 0.25}
    assert found.prompts["kind"].used == 6
    assert found.prompts["kind"].loss > 0


def test_what_is_filed_is_read_and_not_estimated_again(tool, steps, trial):
    found = tool.influence(steps, [trial])
    shutil.rmtree(steps.store.path(trial.adapter.digest))
    assert tool.influence(steps, [trial]) == found
    assert tool.look_ahead(steps, [trial]) == found
    (step,) = steps.journal.steps(EstimateInfluence)
    assert step.inputs.adapter == trial.adapter.digest
    assert step.inputs.suites == {name: made.digest for name, made in tool.suites.items()}


def test_an_adapter_that_was_deleted_before_any_estimate_is_named(tool, steps, trial):
    shutil.rmtree(steps.store.path(trial.adapter.digest))
    with pytest.raises(UsageError, match=r"was deleted; .* `keep: all`"):
        tool.influence(steps, [trial])


def test_looking_ahead_writes_nothing_and_finds_the_same(tool, steps, trial):
    ahead = tool.look_ahead(steps, [trial])
    assert steps.journal.steps(EstimateInfluence) == []
    assert tool.influence(steps, [trial]) == ahead


def test_another_setting_is_another_step(tool, steps, trial):
    one = tool.influence(steps, [trial])
    changed = replace(tool, settings=InfluenceConfig(tokens_per_bucket=120, damping=10))
    assert changed.influence(steps, [trial]).buckets != one.buckets
    assert len(steps.journal.steps(EstimateInfluence)) == 2


def test_prompts_without_references_are_counted_by_reason(tool, steps, trial):
    prompts = steering("kind", "keep it .", "tell me .")
    prompts[0] = prompts[0].model_copy(update={"bad": None})
    prompts[1] = prompts[1].model_copy(update={"bad": prompts[1].good})
    suites = {**tool.suites, "kind": suite("kind", prompts)}
    found = replace(tool, suites=suites).influence(steps, [trial])
    assert found.prompts["kind"].used == 4
    assert sorted(found.prompts["kind"].dropped.values()) == [1, 1]


def test_an_objective_that_has_data_and_no_references_is_named(tool, steps, trial):
    bare = [prompt.model_copy(update={"good": None}) for prompt in steering("kind", "a .", "the .")]
    poorer = replace(tool, suites={**tool.suites, "kind": suite("kind", bare)})
    with pytest.raises(UsageError, match=r"0 steering prompts of kind .* take influence out"):
        poorer.influence(steps, [trial])
    # One that has none, a constraint, is left out and says so.
    found = replace(poorer, traded=["old"]).influence(steps, [trial])
    assert found.prompts["kind"].loss is None
    assert sum(found.prompts["kind"].dropped.values()) == 6
    assert set(found.buckets[0].effects) == {"old"}


def test_a_bucket_without_two_rows_is_named(tool, steps, trial):
    small = replace(tool, settings=InfluenceConfig(tokens_per_bucket=50))
    found = small.influence(steps, [trial])
    estimated = {(b.dataset, b.bucket) for b in found.buckets}
    assert estimated | set(found.without_rows) == {(d, b) for d in "ab" for b in "xyz"}


def test_a_pool_without_a_row_of_the_quality_is_refused(tool, pool):
    with pytest.raises(UsageError, match=r"quality 6"):
        _ = replace(tool, min_quality=6).sample
