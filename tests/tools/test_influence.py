"""Influence as a step: what is filed, what its identity holds, and what cannot be estimated."""

import itertools
import shutil
from dataclasses import replace

import pytest

from eval.suite import Suite, prompts_digest
from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.data import BucketReport, CurationReport, DatasetReport
from mosaic.core.types.evaluation import FailureProfile, Response, Scored, SuiteFiles
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import EstimateInfluence
from mosaic.core.types.runs import Adapter, SftRecipe, Trial, TrialSpec
from tests.training.influence.conftest import steering, with_random_lora
from tools.effects.influence import InfluenceTool, delivered_shares
from training.data.curate import curate, write_training_set
from training.data.pool import build_pool
from training.influence.settings import InfluenceConfig
from training.methods.sft import read_rows
from training.models.tokenizer import load_tokenizer


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
    return InfluenceTool(tiny_model, "base", pool, suites, ["kind", "old"], 2, settings)


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
    spec = TrialSpec(plan=plan, recipe=SftRecipe(), base="base")
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
    found = tool.influence(steps, [trial], [])
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
    found = tool.influence(steps, [trial], [])
    shutil.rmtree(steps.store.path(trial.adapter.digest))
    assert tool.influence(steps, [trial], []) == found
    assert tool.look_ahead(steps, [trial], []) == found
    (step,) = steps.journal.steps(EstimateInfluence)
    assert step.inputs.adapter == trial.adapter.digest
    expected = {name: prompts_digest(made.prompts) for name, made in tool.suites.items()}
    assert step.inputs.references == expected


def test_two_estimates_of_the_same_are_equal_to_the_last_digit(
    tool, steps, trial, tmp_path, new_journal
):
    other = Steps(new_journal(tmp_path / "other"), Store(tmp_path / "other"))
    other.store.put_folder(steps.store.path(trial.adapter.digest))
    assert tool.influence(other, [trial], []) == tool.influence(steps, [trial], [])


def test_an_estimate_that_was_stopped_leaves_an_intent_and_is_made_again(tool, steps, trial):
    batches = itertools.count()
    stopped = replace(steps, stopping=lambda: next(batches) == 5)
    with pytest.raises(StopRequested):
        tool.influence(stopped, [trial], [])
    assert steps.journal.steps(EstimateInfluence) == []
    assert tool.influence(steps, [trial], []) == tool.look_ahead(steps, [trial], [])
    assert len(steps.journal.steps(EstimateInfluence)) == 1


def test_rows_are_read_as_the_trainer_reads_them(tool, tiny_model, tmp_path):
    path = tmp_path / "rows.parquet"
    write_training_set(tool.pool, curate(tool.pool, tool.sample), path)
    trained = read_rows(path, load_tokenizer(tiny_model), SftRecipe())
    found = tool.rows()
    assert (found.ids, found.labels, found.weights) == (
        trained.ids,
        trained.labels,
        trained.weights,
    )


def test_the_chat_template_of_the_config_writes_rows_and_contrasts(tool, tiny_model, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("the old" + load_tokenizer(tiny_model).chat_template)
    other = replace(tool, template=template)
    start = load_tokenizer(tiny_model)("the old", add_special_tokens=False)["input_ids"]
    assert other.rows().ids == [[*start, *ids] for ids in tool.rows().ids]
    plain, changed = tool.contrasts(tool.given), other.contrasts(tool.given)
    for name, made in plain.items():
        for one, same in zip(made.usable, changed[name].usable, strict=True):
            assert same.context == [*start, *one.context]
            assert (same.good, same.bad) == (one.good, one.bad)


def test_every_pass_over_a_token_is_counted(tool, steps, trial):
    found = tool.influence(steps, [trial], [])
    rows = sum(bucket.tokens for bucket in found.buckets)
    read = 0
    for made in tool.contrasts(tool.given).values():
        read += sum(len(one.context) for one in made.usable)
    assert found.tokens == 3 * rows + 2 * read


def test_an_adapter_that_was_deleted_before_any_estimate_is_named(tool, steps, trial):
    shutil.rmtree(steps.store.path(trial.adapter.digest))
    with pytest.raises(UsageError, match=r"was deleted; .* `keep: all`"):
        tool.influence(steps, [trial], [])


def test_looking_ahead_writes_nothing_and_finds_the_same(tool, steps, trial):
    ahead = tool.look_ahead(steps, [trial], [])
    assert steps.journal.steps(EstimateInfluence) == []
    assert tool.influence(steps, [trial], []) == ahead


def test_another_setting_is_another_step(tool, steps, trial):
    one = tool.influence(steps, [trial], [])
    changed = replace(tool, settings=InfluenceConfig(tokens_per_bucket=120, damping=10))
    assert changed.influence(steps, [trial], []).buckets != one.buckets
    assert len(steps.journal.steps(EstimateInfluence)) == 2


def test_prompts_without_references_are_counted_by_reason(tool, steps, trial):
    prompts = steering("kind", "keep it .", "tell me .")
    prompts[0] = prompts[0].model_copy(update={"bad": None})
    prompts[1] = prompts[1].model_copy(update={"bad": prompts[1].good})
    suites = {**tool.suites, "kind": suite("kind", prompts)}
    found = replace(tool, suites=suites).influence(steps, [trial], [])
    assert found.prompts["kind"].used == 4
    assert sorted(found.prompts["kind"].dropped.values()) == [1, 1]


def bare(tool, *names):
    """The tool with suites that bring no reference answers for some objectives."""
    suites = dict(tool.suites)
    for name in names:
        prompts = [p.model_copy(update={"good": None, "bad": None}) for p in suites[name].prompts]
        suites[name] = suite(name, prompts)
    return replace(tool, suites=suites)


def answered(steps, trial, objective, answers):
    """The trial with what it answered to prompts of one objective: prompt -> (answer, score)."""
    responses, scored = [], []
    for prompt, (answer, score) in answers.items():
        response = Response(id=prompt, answers=[answer], finish_reasons=["stop"], n_tokens=5)
        responses.append(response.json_data())
        scored.append(Scored(id=prompt, status="ok", score=score).json_data())
    put = steps.store.put_json
    files = SuiteFiles(responses=put(responses), judgments=put([]), scored=put(scored))
    return trial.model_copy(update={"files": {objective: {"steering": files}}})


def test_an_objective_without_references_has_no_influence_and_no_say(tool, steps, trial):
    found = bare(tool, "kind").influence(steps, [trial], [])
    assert found.unread == ["kind"]
    assert found.prompts["kind"].dropped == {"no good and bad reference answer": 6}
    for bucket in found.buckets:
        assert set(bucket.effects) == {"old"}
        assert bucket.mean == bucket.effects["old"]


def test_without_any_reference_the_counts_are_named(tool, steps, trial):
    with pytest.raises(UsageError, match=r"\(kind 0, old 0\); add `good` and `bad`"):
        bare(tool, "kind", "old").influence(steps, [trial], [])
    # What a constraint has helps no objective that has data.
    with pytest.raises(UsageError, match=r"\(kind 0\)"):
        replace(bare(tool, "kind"), traded=["kind"]).influence(steps, [trial], [])


def test_prompts_without_references_take_the_best_and_the_worst_judged_answer(tool, steps, trial):
    poorer = bare(tool, "kind")
    ids = [prompt.id for prompt in poorer.suites["kind"].prompts]
    base = dict.fromkeys(ids, ("tell me .", 2.0))
    better = dict.fromkeys(ids, ("keep it .", 4.0))
    better[ids[0]] = ("keep it .", 2.0)
    judged = [answered(steps, trial, "kind", answers) for answers in (base, better)]
    found = poorer.influence(steps, [trial], judged)
    assert found.unread == []
    assert found.prompts["kind"].used == len(ids) - 1
    # The same answers as references of the suite's own give the same loss and effects.
    own = suite("kind", tool.suites["kind"].prompts[1:])
    expected = replace(tool, suites={**tool.suites, "kind": own}).influence(steps, [trial], [])
    assert found.buckets == expected.buckets
    assert found.prompts["kind"].loss == expected.prompts["kind"].loss


def test_other_references_are_another_step(tool, steps, trial):
    poorer = bare(tool, "kind")
    ids = [prompt.id for prompt in poorer.suites["kind"].prompts]
    for good in ("keep it .", "the bridge ."):
        found = [dict.fromkeys(ids, ("tell me .", 2.0)), dict.fromkeys(ids, (good, 4.0))]
        poorer.influence(steps, [trial], [answered(steps, trial, "kind", one) for one in found])
    assert len(steps.journal.steps(EstimateInfluence)) == 2


def test_a_bucket_without_two_rows_is_named(tool, steps, trial):
    small = replace(tool, settings=InfluenceConfig(tokens_per_bucket=50))
    found = small.influence(steps, [trial], [])
    estimated = {(b.dataset, b.bucket) for b in found.buckets}
    assert estimated | set(found.without_rows) == {(d, b) for d in "ab" for b in "xyz"}


def test_a_pool_without_a_row_of_the_quality_is_refused(tool, pool):
    with pytest.raises(UsageError, match=r"quality 6"):
        _ = replace(tool, min_quality=6).sample
