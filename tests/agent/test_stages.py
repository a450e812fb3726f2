"""Several methods in one trial: what each may spend, what it starts from, and what a plan may ask."""

import shutil

import pyarrow.parquet as pq
import pytest

from agent.approval import Rule, matches, request_of
from agent.constraints import check_plan
from agent.graph import run as run_graph
from agent.methods import mixture_tokens, part_of, shares_of
from agent.observe import observation, static_plan
from agent.planners.baselines import StaticPlannerConfig
from agent.planners.toolbox import open_toolbox
from agent.prediction import predicted_changes
from agent.state import fold
from benchmarks.standins import PREFERENCES, StandIn, Witness
from mosaic.app.views.cards import pairs_card
from mosaic.app.views.report_data import report_data
from mosaic.app.views.text import report_text
from mosaic.app.wiring import build_planner
from mosaic.core.errors import TrainingError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.practice_records import FormPairs, SamplePractice
from mosaic.core.types.records import Train
from mosaic.core.types.runs import TrialSpec
from tools.effects.preference_pairs import PairTool
from tools.planning.schemas import action_plan, plan_model

OBJECTIVES = ("over_refusal", "instruction_following", "safety")
SHORT = ("rounds=1", "budget.tokens_per_round=12000")


def started(standin, folder):
    standin.create(folder)
    journal = Journal.open(folder)
    journal.acquire()
    return journal


@pytest.fixture(scope="module")
def standin():
    return StandIn.make(*SHORT, *PREFERENCES, per_slice=1, objectives=OBJECTIVES)


@pytest.fixture(scope="module")
def finished(standin, tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    journal = started(standin, root / "run")
    context = standin.context(root / "run", journal, Witness(root / "witness"))
    run_graph(context, root / "run")
    yield context, journal
    journal.close()


def rounds_of(finished):
    context, journal = finished
    return fold(journal, context.settings.names).rounds


def test_shares_are_whole_tokens_and_the_first_method_has_what_nobody_names():
    plan = ActionPlan(rationale="", ratios={"a": 1.0})
    assert mixture_tokens(plan, {}, 12_000) == 12_000
    assert shares_of(plan, {"sft": 1.0, "dpo": 0.0}) == {"sft": 1.0, "dpo": 0.0}
    named = plan.model_copy(update={"method_shares": {"dpo": 0.3, "sft": 0.7}})
    assert list(shares_of(named, {"sft": 1.0, "dpo": 0.0})) == ["sft", "dpo"]
    assert mixture_tokens(named, {"sft": 1.0, "dpo": 0.0}, 30) == part_of(0.7, 30) == 21


def test_each_stage_goes_on_from_the_one_before_and_the_last_is_measured(finished):
    _, journal = finished
    trial = rounds_of(finished)[1].trial
    sft, dpo = trial.stages
    assert (sft.method, dpo.method) == ("sft", "dpo")
    jobs = {step.result.digest: step.inputs.job for step in journal.steps(Train)}
    assert jobs[sft.adapter.digest].start_from is None
    assert jobs[dpo.adapter.digest].start_from == sft.adapter.digest
    assert trial.adapter == dpo.adapter
    asked = [step.inputs.adapter for step in journal.steps(SamplePractice, 1)]
    assert set(asked) == {sft.adapter.digest}
    assert set(sft.steering) == set(OBJECTIVES)
    assert dpo.steering == {}


def test_no_stage_costs_more_than_its_share_and_all_of_it_is_charged(finished):
    context, journal = finished
    trials = [*fold(journal, context.settings.names).calibration.trials]
    trials.append(rounds_of(finished)[1].trial)
    spent = 0
    for trial in trials:
        sft, dpo = trial.stages
        assert sft.usage.cost <= 6_000
        assert dpo.tokens == 6_000
        report = dpo.pairs
        assert dpo.usage.sampled == report.sampled > 0
        assert dpo.usage.trained == report.trained == dpo.adapter.tokens > 0
        assert dpo.usage.cost <= dpo.tokens
        assert trial.usage == sft.usage + dpo.usage
        spent += trial.usage.cost
    assert journal.ledger()[1:] == (0, spent)


def test_pairs_are_filed_as_they_are_reported(finished):
    context, journal = finished
    for step in journal.steps(FormPairs):
        report = step.result.report
        table = pq.read_table(context.steps.store.path(step.result.pairs))
        assert table.num_rows == report.pairs == sum(report.slices.values()) > 0
        assert report.opposed == [("over_refusal", "safety")]
        assert report.answers == 4 * report.prompts
        for row in table.to_pylist():
            assert row["chosen"] != row["rejected"]
            assert row["prompt"][-1]["role"] == "user"
            assert [m["role"] for m in row["chosen"]][::2] == ["assistant"] * (
                (len(row["chosen"]) + 1) // 2
            )
            assert row["gap"] > 0


def test_the_report_and_the_trace_say_what_each_stage_took(finished):
    _, journal = finished
    report = report_data(journal.folder)
    text = report_text(report)
    dpo = rounds_of(finished)[1].trial.stages[1]
    assert f"round 1, dpo: {dpo.usage.sampled:,} sampled, {dpo.usage.trained:,} tokens" in text
    assert report.rounds[1].tokens.sampled == dpo.usage.sampled
    assert "paired" in {event.record.kind for event in journal.events()}


def test_the_pairs_are_exported_as_a_data_set_that_trl_takes(finished, tmp_path):
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    context, _ = finished
    trial = rounds_of(finished)[1].trial
    report = trial.stages[1].pairs
    round_ = rounds_of(finished)[1]
    folder = tmp_path / "dpo_pairs"
    folder.mkdir()
    card = pairs_card("run", round_, trial.stages[1])
    (folder / "README.md").write_text(card)
    shutil.copyfile(context.steps.store.path(trial.stages[1].pairs_file), folder / "train.parquet")
    data = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert data.num_rows == report.pairs
    assert is_conversational(data[0])
    assert {"prompt", "chosen", "rejected"} <= set(data.column_names)
    assert f"{report.pairs} pairs from {report.answers:,} answers" in card


def test_without_another_method_nothing_that_is_written_changes(finished, tmp_path):
    alone = StandIn.make(*SHORT, per_slice=1)
    journal = started(alone, tmp_path / "run")
    context = alone.context(tmp_path / "run", journal, Witness(tmp_path / "witness"))
    try:
        assert context.practice is None
        for value in (
            context.settings,
            alone.config,
            TrialSpec(base="0"),
            ActionPlan(rationale="", ratios={"a": 1}),
        ):
            written = str(value.json_data())
            for name in ("method_shares", "practice", "stages", "max_method_step"):
                assert name not in written
    finally:
        journal.close()
    context, _ = finished
    assert "method_shares" in str(context.settings.json_data())


def seen_by(finished):
    context, journal = finished
    state = fold(journal, context.settings.names)
    return context, observation(
        state, context.settings, context.pool, 10**6, [], None, context.practice.slices
    )


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"method_shares": {"rl": 1.0}}, "method_not_enabled"),
        ({"method_shares": {"sft": 0.0, "dpo": 1.0}}, None),
        ({"practice_weights": {"nobody/none": 1.0}}, "unknown_practice"),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_refused(finished, fields, rule):
    context, seen = seen_by(finished)
    plan = seen.last_plan.model_copy(update=fields)
    rules = {violation.rule for violation in check_plan(plan, seen, context.pool)}
    assert rules <= {rule, "near_repeat"}
    assert rule is None or rule in rules


def test_methods_move_by_limited_steps(finished):
    context, seen = seen_by(finished)
    limits = seen.limits.model_copy(update={"max_method_step": 0.2})
    seen = seen.model_copy(update={"limits": limits})
    moved = seen.last_plan.model_copy(update={"method_shares": {"sft": 0.8, "dpo": 0.2}})
    found = [v for v in check_plan(moved, seen, context.pool) if v.path == "method_shares"]
    assert [(v.rule, v.value, v.limit) for v in found] == [("step", 0.6, 0.2)]
    with pytest.raises(ValueError, match="method_shares"):
        ActionPlan(rationale="", ratios={"a": 1.0}, method_shares={"sft": 0.5})


def test_a_small_share_asks_less_of_the_stock(finished):
    context, seen = seen_by(finished)
    most = max(seen.stock, key=lambda name: -sum(s.tokens for s in seen.stock[name].values()))
    ratios = {name: float(name == most) for name in seen.stock}
    seen = seen.model_copy(
        update={
            "budget_per_round": 10**7,
            "limits": seen.limits.model_copy(
                update={"max_ratio_step": None, "max_method_step": None}
            ),
        }
    )
    plan = ActionPlan(rationale="", ratios=ratios, bucket_weights=seen.bucket_proportions)
    little = plan.model_copy(update={"method_shares": {"sft": 0.001, "dpo": 0.999}})
    assert "stock" in {v.rule for v in check_plan(plan, seen, context.pool)}
    assert "stock" not in {v.rule for v in check_plan(little, seen, context.pool)}


def test_a_model_is_offered_shares_and_weights_by_their_names(finished):
    _, seen = seen_by(finished)
    model = plan_model(seen, "draft")
    shape = model.model_json_schema()
    assert {"method_shares", "practice_weights"} <= set(shape["required"])
    weights = dict.fromkeys(seen.practice, 1 / len(seen.practice))
    reply = model.model_validate(
        {
            "ratios": seen.proportions,
            "bucket_weights": seen.bucket_proportions,
            "focus": [],
            "method_shares": {"sft": 0.7, "dpo": 0.3},
            "practice_weights": weights,
        }
    )
    plan, violations = action_plan(reply)
    assert violations == []
    assert plan.method_shares == {"sft": 0.7, "dpo": 0.3}
    assert plan.practice_weights == pytest.approx(weights)


def run_of(tmp_path, *overrides, objectives=OBJECTIVES):
    standin = StandIn.make(*SHORT, *PREFERENCES, *overrides, per_slice=1, objectives=objectives)
    journal = started(standin, tmp_path / "run")
    context = standin.context(tmp_path / "run", journal, Witness(tmp_path / "witness"))
    said = []
    context.notify = said.append
    return context, journal, said


def test_all_tokens_to_preferences_begin_at_the_base(tmp_path):
    context, journal, _ = run_of(tmp_path, "method_shares.sft=0", "method_shares.dpo=1")
    run_graph(context, tmp_path / "run")
    trial = fold(journal, context.settings.names).rounds[1].trial
    (dpo,) = trial.stages
    (job,) = {s.inputs.job.content_digest: s.inputs.job for s in journal.steps(Train, 1)}.values()
    assert job.start_from is None
    assert (trial.adapter, trial.curation) == (dpo.adapter, None)
    assert "round 1, dpo" in report_text(report_data(tmp_path / "run"))
    journal.close()


def test_a_stage_without_pairs_says_so_and_leaves_the_adapter_as_it_is(tmp_path):
    context, journal, said = run_of(tmp_path, "method_shares.sft=0.999", "method_shares.dpo=0.001")
    run_graph(context, tmp_path / "run")
    trial = fold(journal, context.settings.names).rounds[1].trial
    sft, dpo = trial.stages
    assert trial.adapter == sft.adapter
    assert (dpo.adapter, dpo.usage.trained) == (None, 0)
    assert "gave a pair" in dpo.note
    assert any("do not pay for the answers to a single practice prompt" in s for s in said)
    assert journal.ledger()[1] == 0
    journal.close()


def test_nothing_trained_at_all_is_a_failed_training(tmp_path):
    context, journal, _ = run_of(
        tmp_path,
        "budget.tokens_per_round=50",
        "method_shares.sft=0",
        "method_shares.dpo=1",
    )
    with pytest.raises(TrainingError, match="no stage trained anything"):
        run_graph(context, tmp_path / "run")
    journal.close()


def test_weights_of_practice_choose_what_is_drawn(tmp_path):
    context, journal, _ = run_of(tmp_path)
    steps = context.begin(0)
    recipe = context.settings.stages["dpo"]
    name = min(context.practice.slices)
    filed = PairTool(context.practice).gather(steps, None, recipe, 6_000, {name: 1.0}, seed=1)
    assert set(filed.report.slices) <= {name}
    assert 0 < filed.report.prompts <= context.practice.slices[name]
    journal.close()


def test_methods_without_practice_prompts_are_refused():
    with pytest.raises(UsageError, match=r"methods\.dpo: draws answers to practice prompts"):
        StandIn.make(*PREFERENCES, objectives=("retention", "instruction_following"))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("method_shares.rl=1",), "not enabled"),
        (("method_shares.sft=0.5",), "method_shares"),
        (("methods.dpo.lora_r=3",), r"dpo\.lora_r differs from sft\.lora_r"),
        (("methods.dpo.rule=objective", "methods.dpo.objective=nobody"), "is none of"),
        (("evaluate_stages=true",), "one method"),
    ],
)
def test_configs_that_make_no_sense_are_refused(overrides, text):
    with pytest.raises(UsageError, match=text):
        StandIn.make(*(() if "evaluate" in overrides[0] else ("methods.dpo.n=4",)), *overrides)


def test_an_approver_sees_shares_and_no_rule_of_steps_passes_other_ones(finished):
    _, seen = seen_by(finished)
    moved = seen.last_plan.model_copy(update={"method_shares": {"sft": 0.8, "dpo": 0.2}})
    shown = {}
    for name, plan in (("same", seen.last_plan), ("moved", moved)):
        asked = request_of(
            [plan], seen, observation_digest="0", run="r", attempt=0, experiment="e", planner="p"
        )
        shown[name] = asked.plans[0]
    changes = {change.path: change for change in shown["moved"].changes}
    assert changes["method_shares.sft"].before == 0.5
    assert changes["method_shares.sft"].after == 0.8
    asked = {(d.dataset, d.bucket): d.asked for d in shown["same"].stock}
    more = {(d.dataset, d.bucket): d.asked for d in shown["moved"].stock}
    assert sum(asked.values()) < sum(more.values()) < seen.budget_per_round
    rule = Rule(max_ratio_step=0.1, then="auto")
    assert matches(rule, shown["same"], seen)
    assert not matches(rule, shown["moved"], seen)


def cut_every_answer(context):
    """Make the generator run into its length limit in every drawn answer."""
    generator = context.evaluator.generator
    drawn = generator._drawn

    def cut(prompt, name):
        response = drawn(prompt, name)
        return response.model_copy(update={"finish_reasons": ["length"] * len(response.answers)})

    generator._drawn = cut


def test_answers_that_are_all_cut_give_no_pairs_and_no_crash(tmp_path):
    context, journal, said = run_of(tmp_path)
    cut_every_answer(context)
    run_graph(context, tmp_path / "run")
    _, dpo = fold(journal, context.settings.names).rounds[1].trial.stages
    assert (dpo.pairs.pairs, dpo.adapter) == (0, None)
    assert dpo.pairs.cut == dpo.pairs.answers > 0
    assert any("reached max_new_tokens" in line for line in said)
    journal.close()


def test_an_adapter_that_a_later_plan_goes_on_from_is_kept(tmp_path):
    """Round 3 has the mixture of round 1, which is out of the archive, and other practice weights."""
    context, journal, _ = run_of(tmp_path, "rounds=3", "objectives.safety.floor=4.6")
    first, second = sorted(context.practice.slices)[:2]
    static = static_plan(context.pool, context.settings)
    talk = static.bucket_weights["talk"]
    other = {**static.bucket_weights, "talk": dict.fromkeys(talk, 1 / len(talk))}
    plans = iter(
        [
            static.model_copy(update={"practice_weights": {first: 1.0}}),
            static.model_copy(update={"bucket_weights": other}),
            static.model_copy(update={"practice_weights": {second: 1.0}}),
        ]
    )
    context.planner.propose = lambda seen, toolbox, n=1: [next(plans)]
    run_graph(context, tmp_path / "run")
    state = fold(journal, context.settings.names)
    assert len(state.rounds) == 4
    assert state.rounds[1].trial.stages[0].adapter == state.rounds[3].trial.stages[0].adapter
    journal.close()


def test_prompts_that_are_all_left_out_are_as_good_as_none():
    with pytest.raises(UsageError, match=r"methods\.dpo: draws answers to practice prompts"):
        StandIn.make(*PREFERENCES, objectives=("over_refusal", "safety"))


def test_planners_that_know_no_methods_keep_what_was_moved(finished):
    _, seen = seen_by(finished)
    moved = seen.last_plan.model_copy(update={"method_shares": {"sft": 0.0, "dpo": 1.0}})
    limits = seen.limits.model_copy(update={"max_method_step": 0.1})
    seen = seen.model_copy(update={"last_plan": moved, "limits": limits})
    context, journal = finished
    files = fold(journal, context.settings.names).latest.files
    for kind in ("static", "random", "need", "profile"):
        planner = build_planner(kind, StaticPlannerConfig())
        toolbox = open_toolbox(seen, context.pool, context.steps.store, files)
        (plan,) = planner.propose(seen, toolbox)
        assert plan.method_shares == moved.method_shares
        assert "step" not in {v.rule for v in check_plan(plan, seen, context.pool)}


def test_a_floor_is_not_passed_by_taking_the_tokens_from_the_mixture(finished):
    context, seen = seen_by(finished)
    seen = seen.model_copy(update={"below_floor": ["safety"]})
    moved = seen.last_plan.model_copy(update={"method_shares": {"sft": 0.1, "dpo": 0.9}})
    assert "floor" in {v.rule for v in check_plan(moved, seen, context.pool)}
    assert predicted_changes(seen.last_plan, seen)
    assert predicted_changes(moved, seen) == []
