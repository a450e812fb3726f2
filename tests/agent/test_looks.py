"""Cheap looks: experts and what is added up of them, in a run with stand-ins for model and trainer."""

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from agent.fidelity import affine_weights, corners, groups
from agent.planners.response_model import (
    FRACTION,
    MAX_LOOKS,
    MERGED,
    MeasuredMixture,
    ResponseModel,
    looks_read,
)
from agent.planners.track_record import known_before
from benchmarks.standins import StandIn, StandInExecutor, StandInGenerator, Witness, outcome
from mosaic.app.config_file import load_config
from mosaic.app.runs import check_budget
from mosaic.app.views.report_data import report_data
from mosaic.app.views.story_text import story_text
from mosaic.app.views.telling import story_of
from mosaic.core.errors import BudgetError, TrainingError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.look_records import TakeLooks
from mosaic.core.types.plans import ObjectiveSpec
from mosaic.core.types.records import Observe, Retain, Train
from mosaic.core.types.runs import GREEDY, TRAINING_SET, Adapter
from tools.effects.evaluate import Evaluator
from training.models.adapter import CONFIG, WEIGHTS

EXPERTS = ("planner.kind=profile", "rounds=2", "fidelity.kind=experts", "fidelity.looks=2")
PARTS = ("planner.kind=profile", "rounds=2", "fidelity.kind=fraction", "fidelity.looks=2")


class LoraExecutor(StandInExecutor):
    """Writes a LoRA of one layer, whose numbers follow from what it was trained on.

    Trainings on few tokens fail if `fails` says so.
    """

    def __init__(self, witness, fails=False):
        super().__init__(witness)
        self.fails = fails

    def wait(self, handles, stopping):
        from pyarrow.parquet import read_table
        from safetensors.numpy import save_file

        for handle in handles:
            rows = read_table(handle.place.paths[TRAINING_SET], columns=["n_tokens"])
            if self.fails and sum(rows["n_tokens"].to_pylist()) < 3000:
                raise TrainingError("there is no memory left", "out_of_memory")
        results = super().wait(handles, stopping)
        for result in results:
            folder = Path(result.adapter)
            draws = np.random.default_rng(list((folder / WEIGHTS).read_bytes()))
            matrices = {
                "layer.lora_A.weight": draws.normal(size=(2, 4)).astype(np.float32),
                "layer.lora_B.weight": draws.normal(size=(3, 2)).astype(np.float32),
            }
            save_file(matrices, folder / WEIGHTS)
            (folder / CONFIG).write_text('{"r": 2, "lora_alpha": 4}')
        return results


class Interrupted(Exception):
    pass


class HashGenerator(StandInGenerator):
    """Answers by a hash of the adapter's bytes. After so many calls it is interrupted."""

    def __init__(self, witness, left):
        super().__init__(witness)
        self.left = left

    def generate(self, prompts, adapter, sampling=GREEDY):
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        name = "base"
        if adapter is not None:
            name = hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()
        self.witness.note(f"generate {name} {len(prompts)}")
        return [self._answer(prompt, name) for prompt in prompts]


@dataclass
class LoraStandIn(StandIn):
    left: int = 1000
    fails: bool = False

    def context(self, folder, journal, witness):
        context = super().context(folder, journal, witness)
        old = context.evaluator
        generator = HashGenerator(witness, self.left)
        context.evaluator = Evaluator(
            generator, old.judge, old.objectives, old.suites, old.identity
        )
        context.trainer = replace(context.trainer, executor=LoraExecutor(witness, self.fails))
        return context


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    made = LoraStandIn.make(*EXPERTS, per_slice=4)
    made.create(folder / "run")
    made.run(folder / "run", Witness(folder / "witness"))
    return folder / "run"


def steps(folder, kind, number=None):
    journal = Journal.open(folder)
    try:
        return journal.steps(kind, number)
    finally:
        journal.close()


def test_experts_are_trained_once_and_looks_are_added_up_of_them(experts):
    first, *rounds = steps(experts, TakeLooks)
    trained = first.result.trials
    low, high = (trial.plan.ratios["benign"] for trial in trained)
    assert high / low == pytest.approx(0.7 / 0.3, rel=1e-4)
    assert all(set(trial.scores["safety"]) == {"steering", "selection"} for trial in trained)
    assert [step.inputs.round for step in rounds] == [1, 2]
    digests = {trial.adapter.digest for trial in trained}
    for look in rounds[0].result.trials:
        assert set(look.spec.merged) == digests
        assert sum(look.spec.merged.values()) == pytest.approx(1)
        assert (look.usage.cost, set(look.scores["safety"])) == (0, {"steering"})
    # One repeat, two experts, two rounds.
    assert len(steps(experts, Train)) == 5


def test_the_planner_is_told_of_looks_and_none_is_taken_for_a_round(experts):
    report = report_data(experts)
    assert [taken.round for taken in report.looks] == [0, 1, 2]
    assert [round_.round for round_ in report.rounds] == [0, 1, 2]
    assert len(steps(experts, Observe)) == 2
    told = story_text(story_of(experts, 1), 200)
    assert "looked at 2 mixtures" in told
    assert "how looks differ from full trainings" in story_text(story_of(experts, 2), 200)
    assert report.budget.spent == sum(round_.tokens.trained for round_ in report.rounds) + sum(
        look.trained for taken in report.looks for look in taken.looks
    ) + sum(trial.result.tokens for trial in steps(experts, Train, 0)[:1])


def test_sums_are_deleted_when_they_were_measured_and_experts_are_kept(experts):
    dropped = {digest for step in steps(experts, Retain) for digest in step.result.dropped}
    kept = {trial.adapter.digest for trial in steps(experts, TakeLooks, 0)[0].result.trials}
    assert dropped
    assert not dropped & kept


@pytest.mark.parametrize("overrides", [EXPERTS, PARTS])
def test_an_interruption_repeats_nothing(overrides, tmp_path):
    made = LoraStandIn.make(*overrides, per_slice=4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        made.create(folder)
    made.run(whole, Witness(tmp_path / "whole.txt"))
    witness = Witness(tmp_path / "broken.txt")
    for left in (9, 5, 3, 1000):  # among experts, among looks, in a round
        made.left = left
        with contextlib.suppress(Interrupted):
            made.run(broken, witness)
    assert sorted(witness.lines()) == sorted(Witness(tmp_path / "whole.txt").lines())
    ours, theirs = outcome(broken), outcome(whole)
    assert ours["ledger"] == theirs["ledger"]
    assert [row[:2] for row in ours["steps"]] == [row[:2] for row in theirs["steps"]]


def test_looks_on_a_part_of_the_tokens_are_charged_and_a_short_budget_is_told(tmp_path):
    made = LoraStandIn.make(*PARTS, "budget.tokens_total=14500", per_slice=4)
    made.create(tmp_path / "run")
    made.run(tmp_path / "run", Witness(tmp_path / "witness"))
    first, second = report_data(tmp_path / "run").looks
    assert 0 < first.looks[0].trained <= 1000
    assert (len(first.looks), first.note) == (2, "")
    assert (len(second.looks), second.note) == (0, "the budget pays for 0 of 2 looks")


def test_looks_leave_the_budget_of_all_candidates(tmp_path):
    several = ("candidates=3", "rounds=1", "fidelity.looks=4", "budget.tokens_total=17500")
    made = LoraStandIn.make(*PARTS, *several, per_slice=4)
    made.create(tmp_path / "run")
    made.run(tmp_path / "run", Witness(tmp_path / "witness"))
    report = report_data(tmp_path / "run")
    assert report.looks[0].note == "the budget pays for 1 of 4 looks"
    assert len(report.rounds) == 2
    assert len(steps(tmp_path / "run", Train, 1)) == 4  # a look, and three candidates


@pytest.mark.parametrize("overrides", [EXPERTS, PARTS])
def test_a_look_that_cannot_be_trained_is_left_out_and_told(overrides, tmp_path):
    skip = ("failures.failed_round=skip", "failures.train_retries=0")
    made = LoraStandIn.make(*overrides, *skip, per_slice=4)
    made.fails = True
    made.create(tmp_path / "run")
    made.run(tmp_path / "run", Witness(tmp_path / "witness"))
    report = report_data(tmp_path / "run")
    assert [round_.accepted for round_ in report.rounds] == [True, True, True]
    first, *later = report.looks
    assert first.looks == []
    assert "1 failed: out_of_memory" in first.note
    if overrides == EXPERTS:
        assert {taken.note for taken in later} == {
            "an expert is missing, so that nothing can be added up"
        }


# -- what a config may ask for ---------------------------------------------------------------------


def test_the_budget_covers_looks():
    plain = load_config("lab", ["budget.tokens_per_round=1000"])
    experts = load_config("lab", ["budget.tokens_per_round=1000", "fidelity.kind=experts"])
    parts = load_config("lab", ["budget.tokens_per_round=1000", "fidelity.kind=fraction"])
    assert plain.tokens_total == 8 * 4000
    assert experts.tokens_total == 8 * 4000 + 3 * 667 * 4
    assert parts.tokens_total == 8 * 4000 + 5 * 2 * 1000
    few = load_config("lab", ["fidelity.kind=experts", "budget.tokens_total=200000"])
    with pytest.raises(BudgetError, match="experts 96,000"):
        check_budget(few)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["fidelity.kind=experts", "planner.kind=need"], "reads no looks"),
        (["fidelity.kind=fraction", "fidelity.fraction=1.0"], "less than 1"),
        (["fidelity.kind=guess"], "fidelity"),
        (["fidelity.kind=experts", "fidelity.looks=-1"], "looks"),
        (["fidelity.kind=experts", "methods.dpo.n=4"], "dpo"),
        (["fidelity.kind=fraction", "budget.tokens_per_round=1"], "less than a token"),
    ],
)
def test_looks_that_cannot_be_taken_are_refused(overrides, said):
    with pytest.raises(UsageError, match=said):
        load_config("lab", overrides)


def test_one_group_of_data_has_no_corners():
    config = load_config("lab", [])
    safety = {"safety": config.objectives["safety"]}
    data = config.json_data() | {"objectives": {"safety": safety["safety"].json_data()}}
    with pytest.raises(ValueError, match="all data sets here serve the same"):
        type(config).model_validate(data | {"fidelity": {"kind": "experts"}})


def test_a_config_without_looks_is_written_as_before():
    assert "fidelity" not in load_config("lab", []).json_data()
    assert "fidelity" not in load_config("lab", []).settings().json_data()


# -- corners and weights ---------------------------------------------------------------------------


def test_weights_give_back_the_mixture():
    specs = [ObjectiveSpec(name=n, datasets=[f"{n}1", f"{n}2"]) for n in "abc"]
    own = {"a1": 0.2, "a2": 0.1, "b1": 0.3, "b2": 0.1, "c1": 0.1, "c2": 0.1, "general": 0.1}
    grouped = groups(specs)
    points = corners(0.7, grouped, own)
    for wanted in ({"a1": 0.9, "b1": 0.05, "c2": 0.05}, {"a1": 0.3, "b1": 0.3, "c1": 0.4}):
        weights = affine_weights(wanted, points, grouped)
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        for group in grouped:
            given = sum(w * sum(p[d] for d in group) for w, p in zip(weights, points, strict=True))
            asked = sum(wanted.get(d, 0.0) for d in group)
            assert given / 0.9 == pytest.approx(asked, abs=1e-5)
        assert sum(w * p["general"] for w, p in zip(weights, points, strict=True)) == (
            pytest.approx(0.1, abs=1e-5)
        )


# -- what the surrogate makes of looks -------------------------------------------------------------

CELLS = [("a", "x"), ("b", "y")]
DATASETS = {"one": ["a"], "two": ["b"]}


def mixture(share, bias=0.0, **changes):
    """A mixture whose slices answer to the logarithm of their data's share."""
    means = {
        ("one", "x"): 4.0 + 0.6 * np.log(share + 0.01) + bias,
        ("two", "y"): 4.0 + 0.6 * np.log(1.01 - share) + bias,
    }
    return MeasuredMixture({("a", "x"): share, ("b", "y"): 1 - share}, means, **changes)


FULL = [mixture(share) for share in (0.3, 0.5, 0.6)]


@pytest.mark.parametrize("kind", [MERGED, FRACTION])
def test_the_bias_of_looks_is_found_and_moves_no_prediction(kind):
    looks = [mixture(share, bias=-0.4, look=kind) for share in (0.2, 0.4, 0.55, 0.8)]
    model = ResponseModel(CELLS, DATASETS, [*FULL, *looks])
    assert -0.5 < model.looks["one"][kind].bias < -0.2
    rows, still = np.array([[0.5, 0.5]]), np.zeros(1)
    plain = ResponseModel(CELLS, DATASETS, FULL)
    told = model.predict(rows, "one", 0.0, still) - plain.predict(rows, "one", 0.0, still)
    assert abs(told[0, 0]) < 0.05


def test_looks_that_say_nothing_count_little():
    draws = np.random.default_rng(4)
    sound = [mixture(share, look=MERGED) for share in (0.1, 0.2, 0.7, 0.8, 0.85, 0.9)]
    noise = [
        mixture(share, bias=float(draws.normal(0, 1.0)), look=MERGED)
        for share in (0.1, 0.2, 0.7, 0.8, 0.85, 0.9)
    ]
    good, bad = (ResponseModel(CELLS, DATASETS, [*FULL, *looks]) for looks in (sound, noise))
    assert good.looks["one"][MERGED].deviation < bad.looks["one"][MERGED].deviation
    rows = np.array([[0.9, 0.1]])
    alone = ResponseModel(CELLS, DATASETS, FULL)
    assert good.spread(rows, "one")[0] < bad.spread(rows, "one")[0]
    assert bad.spread(rows, "one")[0] <= alone.spread(rows, "one")[0] + 1e-9


def test_a_sum_has_the_luck_of_its_experts():
    """Sums of two experts that were both lucky say nothing more than the experts do."""
    pair = [mixture(0.2), mixture(0.8)]
    sums = [
        mixture(0.2 * w + 0.8 * (1 - w), look=MERGED, experts={0: w, 1: 1 - w}) for w in (0.4, 0.6)
    ]
    free = [replace(one, experts={}) for one in sums]
    rows = np.array([[0.5, 0.5]])
    tied = ResponseModel(CELLS, DATASETS, [*pair, *sums]).spread(rows, "one")[0]
    untied = ResponseModel(CELLS, DATASETS, [*pair, *free]).spread(rows, "one")[0]
    assert tied >= untied


def test_what_was_known_before_a_round_has_no_later_looks(observe, trial):
    seen = observe()
    looks = []
    for number in (0, 1, 2):
        profile = seen.profile.model_copy(update={"round": number})
        looks.append(trial(seen.last_plan, {}, profile))
    seen = observe(round=3, looks=looks)
    assert [look.profile.round for look in known_before(1, seen).looks] == [0, 1]


def test_the_oldest_looks_are_left_out_and_experts_stay(observe, trial):
    seen = observe()
    adapter = Adapter(
        digest="e", base="base", tokens=1, supervised=1, steps=1, loss=1.0, seconds=1.0
    )
    expert = trial(seen.last_plan, {}, seen.profile, adapter=adapter)
    looks = []
    for number in range(MAX_LOOKS + 5):
        look = trial(seen.last_plan, {}, seen.profile)
        spec = look.spec.model_copy(update={"merged": {"e": 1.0}, "seed": number})
        looks.append(look.model_copy(update={"spec": spec}))
    read = looks_read(observe(looks=[expert, *looks]))
    assert read == [expert, *looks[5:]]
