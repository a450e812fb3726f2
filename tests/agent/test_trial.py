"""A trial is one plan, one recipe, one seed: everything that is trained or measured goes this way."""

from dataclasses import replace

import pytest

from agent.graph import run as run_graph
from agent.noise import SLICE_NOISE_REPEATS, believed_noise, slice_noise
from agent.observe import static_plan
from agent.settings import FailureConfig
from agent.state import fold
from agent.trial import base_spec, plan_spec, run_trial, steering_scores
from benchmarks.standins import StandIn, StandInExecutor, Witness
from eval.profile import SEED
from eval.statistics import paired_change, paired_interval
from mosaic.core.errors import TrainingError
from mosaic.core.journal import Journal
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import Train
from mosaic.core.types.runs import DpoRecipe, SftRecipe, StageSpec, TrialSpec
from tools.effects.evaluate import BOOTSTRAP_SEED, read_scored

REPEATS = 2


class Failing(StandInExecutor):
    """Fails the first `times` trainings with `seed` (of any seed if it is None), in one way."""

    def __init__(self, witness, failure, times=10**6, seed=None):
        super().__init__(witness)
        self.failure, self.times, self.seed = failure, times, seed
        self.failed = 0

    def wait(self, handles, stopping):
        (handle,) = handles
        if self.seed in (None, handle.work.seed) and self.failed < self.times:
            self.failed += 1
            raise TrainingError("it broke", self.failure)
        return super().wait(handles, stopping)


@pytest.fixture(scope="module")
def standin():
    return StandIn.make("rounds=1", f"calibration.repeats={REPEATS}", per_slice=2)


@pytest.fixture
def journal(standin, tmp_path):
    standin.create(tmp_path / "run")
    journal = Journal.open(tmp_path / "run")
    journal.acquire()
    yield journal
    journal.close()


@pytest.fixture
def context(standin, journal, tmp_path):
    return standin.context(journal.folder, journal, Witness(tmp_path / "witness"))


def train_with(context, executor, **failures):
    """Put an executor in place, and say what happens if a training fails."""
    context.trainer = replace(context.trainer, executor=executor)
    settings = context.settings
    context.settings = settings.model_copy(update={"failures": FailureConfig(**failures)})
    return context


def test_the_base_a_repeat_and_a_candidate_are_trials(context, journal):
    run_graph(context, journal.folder)
    state, settings = fold(journal, context.settings.names), context.settings
    base, candidate = (round_.trial for round_ in state.rounds)
    repeats = state.calibration.trials

    assert base.spec == base_spec(context) == TrialSpec(base=context.trainer.base_digest)
    assert (base.plan, base.adapter, base.curation, base.usage.cost) == (None, None, None, 0)

    static = static_plan(context.pool, settings)
    assert len(repeats) == REPEATS
    for repeat in repeats:
        assert repeat.plan.content_digest == static.content_digest
        assert repeat.spec == plan_spec(context, repeat.plan, repeat.spec.seed)
    seeds = [trial.spec.seed for trial in (*repeats, candidate)]
    assert len(set(seeds)) == REPEATS + 1
    assert candidate.spec.seed == settings.seed

    for trial in (base, *repeats, candidate):
        assert trial.id == trial.spec.id
        assert trial.failure is None
        for objective in settings.names:
            assert trial.scores[objective].keys() == {"steering", "selection"}
            assert trial.files[objective].keys() == {"steering", "selection"}
    for trial in (*repeats, candidate):
        assert trial.adapter.tokens == trial.usage.cost == trial.curation.total.selected > 0
    assert set(state.trials) == {trial.id for trial in (base, *repeats, candidate)}
    # Each training is filed under the round and the trial that it belongs to.
    places = [(step.place.round, step.place.trial) for step in journal.steps(Train)]
    expected = [(0, repeat.id) for repeat in repeats]
    assert places == [*expected, (1, candidate.id)]


def test_the_changes_of_a_profile_count_the_luck_of_all_trainings_in_them(context, journal):
    run_graph(context, journal.folder)
    state, names = fold(journal, context.settings.names), context.settings.names
    base, candidate = (round_.trial for round_ in state.rounds)
    repeats = state.calibration.trials
    noise = slice_noise(repeats, names)
    assert all(estimate.freedom == SLICE_NOISE_REPEATS + REPEATS - 1 for estimate in noise.values())
    # The base was not trained; the candidate follows the first repeat, which was.
    for trial, previous, trainings in ((repeats[1], base, 1), (candidate, repeats[0], 2)):
        before = steering_scores(context.steps, previous)
        after = steering_scores(context.steps, trial)
        assert trial.profile.slices
        for found in trial.profile.slices:
            inside = [item for item in after[found.objective] if item.slice == found.slice]
            luck = noise[found.objective].of_difference(trainings)
            expected = paired_change(before[found.objective], inside, SEED, luck)
            assert (found.change, found.p_value) == expected


def test_a_trial_is_compared_with_the_base_on_equal_prompts_and_held_to_its_floor(tmp_path):
    floors = [f"objectives.{name}.floor=base" for name in ("safety", "over_refusal")]
    standin = StandIn.make("rounds=1", f"calibration.repeats={REPEATS}", *floors, per_slice=4)
    standin.create(tmp_path / "run")
    journal = Journal.open(tmp_path / "run")
    journal.acquire()
    context = standin.context(journal.folder, journal, Witness(tmp_path / "witness"))
    run_graph(context, journal.folder)
    state, names = fold(journal, context.settings.names), context.settings.names
    base, candidate = (round_.trial for round_ in state.rounds)
    assert (base.against_base, state.rounds[0].reason) == ({}, "all floors held")
    for name in names:
        before, after = (
            read_scored(context.steps, trial.files[name]["selection"])
            for trial in (base, candidate)
        )
        change = candidate.against_base[name]
        assert change == paired_interval(before, after, BOOTSTRAP_SEED)
        assert change.clusters == len(before) >= 15
    noise = believed_noise(state.calibration, names)
    holds = [candidate.against_base[name].low >= -noise[name] for name in names]
    assert state.rounds[1].accepted == all(holds)
    journal.close()


def test_a_training_that_failed_is_a_trial_with_a_failure(context, journal, tmp_path):
    seed = context.settings.seed
    failing = Failing(Witness(tmp_path / "witness"), "out_of_memory", seed=seed)
    run_graph(train_with(context, failing, failed_round="skip"), journal.folder)
    state = fold(journal, context.settings.names)
    closed = state.rounds[1]
    (lost,) = closed.trials

    assert lost.spec == plan_spec(context, closed.plan, seed)
    assert lost.failure == closed.failure == "out_of_memory: it broke"
    assert (closed.counts, closed.accepted, closed.adapter) == (None, False, None)
    assert closed.reason == "training failed: out_of_memory: it broke"
    assert lost.curation.total.selected > 0
    assert (lost.adapter, lost.usage.cost, lost.profile.slices) == (None, 0, [])
    assert closed.point(context.settings.names) is None
    assert state.audit.chosen is None
    # Two repeats were paid for, and what the failure had reserved is free again.
    paid = sum(trial.usage.cost for trial in state.calibration.trials)
    assert journal.ledger()[1:] == (0, paid)


def test_a_failed_training_stops_the_run_unless_the_config_says_otherwise(
    context, journal, tmp_path
):
    failing = Failing(Witness(tmp_path / "witness"), "nan_loss", seed=context.settings.seed)
    with pytest.raises(TrainingError, match="it broke"):
        run_graph(train_with(context, failing), journal.folder)
    assert len(fold(journal, context.settings.names).rounds) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize(
    ("failure", "repeats"),
    [
        ("out_of_memory", True),
        ("nan_loss", True),
        ("wrong_adapter", True),
        ("hang", False),
        ("killed", False),
        ("no_adapter", False),
        ("error", False),
    ],
)
def test_what_the_same_job_would_meet_again_is_tried_once(
    context, journal, tmp_path, failure, repeats, retries
):
    failing = Failing(Witness(tmp_path / "witness"), failure)
    train_with(context, failing, train_retries=retries)
    spec = plan_spec(context, static_plan(context.pool, context.settings), seed=5)
    with pytest.raises(TrainingError):
        run_trial(context, spec, 1, None)
    tries = 1 if repeats else 1 + retries
    assert failing.failed == tries
    assert [event.record.failure for event in journal.events(kind="failed")] == [failure] * tries
    assert journal.ledger()[1:] == (0, 0)


def test_a_failure_that_passes_leaves_a_whole_trial(context, journal, tmp_path):
    failing = Failing(Witness(tmp_path / "witness"), "hang", times=1)
    train_with(context, failing, train_retries=1)
    spec = plan_spec(context, static_plan(context.pool, context.settings), seed=5)
    trial = run_trial(context, spec, 1, None)
    assert failing.failed == 1
    assert trial.failure is None
    assert journal.ledger()[1:] == (0, trial.adapter.tokens)


# -- identity --------------------------------------------------------------------------------------

PLAN = ActionPlan(rationale="r", ratios={"a": 1.0})
SPEC = TrialSpec(plan=PLAN, tokens=100, recipe=SftRecipe(), seed=1, base="base", pool="pool")


@pytest.mark.parametrize(
    "change",
    [
        {"plan": PLAN.model_copy(update={"ratios": {"a": 0.5, "b": 0.5}})},
        {"tokens": 101},
        {"recipe": SftRecipe(learning_rate=1e-4)},
        {"seed": 2},
        {"start_from": "an adapter"},
        {"base": "another base"},
        {"pool": "another pool"},
        {"stages": [StageSpec(recipe=DpoRecipe(), tokens=50)]},
        {"practice": "practice prompts"},
        {"merged": {"an adapter": 1.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_id_of_a_trial_changes_with_everything_that_decides_what_it_measures(change):
    assert SPEC.model_copy(update=change).id != SPEC.id


def test_nothing_else_is_part_of_the_id():
    varied = {"plan", "tokens", "recipe", "seed", "start_from", "base", "pool"}
    varied |= {"stages", "practice", "merged"}
    assert set(TrialSpec.model_fields) == varied
    assert TrialSpec.model_validate_json(SPEC.model_dump_json()).id == SPEC.id
