"""Levels in a trial: what a reward model and a policy learn from, what they may spend, what is measured."""

import json

import pyarrow.parquet as pq
import pytest

from agent.graph import run as run_graph
from agent.nodes.closing import control_of
from agent.state import fold
from agent.trial import run_trial
from benchmarks.standins import ALL_METHODS, StandIn, StandInGenerator, Witness
from mosaic.app.config_file import load_config
from mosaic.app.practice_check import method_findings
from mosaic.app.views.cards import model_card
from mosaic.app.views.compare import _answers, _Suite
from mosaic.app.views.html import write_html
from mosaic.app.views.levels import control_lines, levels_line
from mosaic.app.views.report_data import report_data
from mosaic.app.views.story_text import story_text
from mosaic.app.views.telling import story_of
from mosaic.app.views.text import report_text
from mosaic.app.views.trace import trace_data
from mosaic.app.wiring import open_inputs
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.data import JudgedAnswer, WishedChat
from mosaic.core.types.practice_records import FormJudged, FormWishes, SamplePractice
from mosaic.core.types.records import Generate, Train
from prompts.levels import read_stated
from training.data.judged_rows import graded_doubts, graded_levels

OBJECTIVES = ("over_refusal", "instruction_following", "safety")
SETTINGS = ("rounds=1", "budget.tokens_per_round=40000", *ALL_METHODS)


def run_of(folder, *overrides):
    standin = StandIn.make(*SETTINGS, *overrides, per_slice=1, objectives=OBJECTIVES)
    standin.create(folder / "run")
    journal = Journal.open(folder / "run")
    journal.acquire()
    context = standin.context(folder / "run", journal, Witness(folder / "witness"))
    run_graph(context, folder / "run")
    return context, journal


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    context, journal = run_of(tmp_path_factory.mktemp("levels"))
    yield context, journal
    journal.close()


def trial_of(finished):
    context, journal = finished
    return fold(journal, context.settings.names).rounds[1].trial


def test_the_policy_goes_on_from_the_adapter_before_and_the_reward_model_from_the_base(finished):
    _, journal = finished
    _, dpo, rl = trial_of(finished).stages
    jobs = {step.result.digest: step.inputs.job for step in journal.steps(Train, 1)}
    policy, model = jobs[rl.adapter.digest], jobs[rl.reward_model]
    assert model.recipe.kind == "reward_model"
    assert model.start_from is None
    assert policy.inputs["reward_model"] == rl.reward_model
    warm = jobs[policy.start_from]
    assert warm.recipe.kind == "sft"
    assert warm.start_from == dpo.adapter.digest
    drawn = [step for step in journal.steps(SamplePractice, 1) if step.inputs.sampling.n == 4]
    assert dpo.adapter.digest in {step.inputs.adapter for step in drawn}


def test_everything_that_is_drawn_or_trained_is_charged_and_no_stage_takes_more_than_it_has(
    finished,
):
    context, journal = finished
    trial = trial_of(finished)
    rl = trial.stages[2]
    report = rl.levels
    assert rl.usage.trained == report.reward_model + report.warm + report.policy
    assert rl.usage.sampled == report.judged.sampled + report.policy_sampled
    assert min(report.reward_model, report.warm, report.policy, report.policy_sampled) > 0
    assert rl.usage.cost <= rl.tokens
    spent = sum(t.usage.cost for t in fold(journal, context.settings.names).trials.values())
    assert journal.ledger()[1:] == (0, spent)


def test_judged_answers_are_drawn_ones_and_the_rows_of_graded_data_sets(finished):
    context, journal = finished
    for step in journal.steps(FormJudged):
        report = step.result.report
        lines = context.steps.store.path(step.result.answers).read_text().splitlines()
        answers = [JudgedAnswer.model_validate_json(line) for line in lines]
        rows = [one for one in answers if "practice" not in one.id]
        assert len(rows) == report.pool_rows > 0
        assert {name for one in rows for name in one.levels} == {"over_refusal"}
        assert 0 < len(answers) - len(rows) <= report.answers
        counted = {}
        for one in answers:
            for name, level in one.levels.items():
                counted.setdefault(name, {}).setdefault(level, 0)
                counted[name][level] += 1
        assert report.levels == counted


def test_wishes_state_what_the_reward_model_tells_apart_and_reward_what_applies(finished):
    context, journal = finished
    for step in journal.steps(FormWishes):
        names = list(step.inputs.classes)
        text = context.steps.store.path(step.result.chats).read_text()
        seen = set()
        for line in text.splitlines():
            chat = WishedChat.model_validate_json(line)
            levels, _ = read_stated(chat.messages[0].content, names)
            assert list(levels) == names
            assert all(level in step.inputs.classes[name] for name, level in levels.items())
            assert set(chat.objectives) <= set(names)
            seen.add(json.dumps([m.content for m in chat.messages]))
        assert len(seen) == len(step.result.prompts) > 0
        rows = pq.read_table(context.steps.store.path(step.result.warm))
        assert rows.num_rows == step.result.rows > 0
        assert sum(rows["n_tokens"].to_pylist()) == step.result.tokens
        for messages in rows["messages"].to_pylist():
            read_stated(messages[0]["content"], names)


def test_the_adapter_is_measured_by_prompts_that_state_its_wish_and_the_base_is_not(finished):
    _, journal = finished
    trial = trial_of(finished)
    assert set(trial.wish.values()) == {5}
    wishes = {}
    for step in journal.steps(Generate):
        wishes.setdefault(step.inputs.adapter, set()).add(json.dumps(step.inputs.wish))
    assert wishes[None] == {"{}"}
    sft, dpo, _ = trial.stages
    assert wishes[sft.adapter.digest] == wishes[dpo.adapter.digest] == {"{}"}
    assert json.dumps(trial.wish) in wishes[trial.adapter.digest]


def test_an_adapter_is_asked_for_every_level_on_audit(finished, tmp_path):
    context, journal = finished
    trial = trial_of(finished)
    found = control_of(context, 1, trial)
    heads = {head.objective: head.classes for head in trial.stages[-1].levels.heads}
    assert {name: list(levels) for name, levels in found.items()} == heads
    steps = context.steps.at(1, trial.id)
    whole = context.evaluator.evaluate(steps, trial.adapter.digest, ["audit"], trial.wish)
    for name, levels in found.items():
        assert levels[trial.wish[name]] == whole.scores()[name]["audit"]
    assert all("requested -> measured (audit)" in line for line in control_lines(found))
    report = report_data(journal.folder)
    told = {"control": found, "chosen": report.audit.base}
    audited = report.model_copy(update={"chosen": 1, "audit": report.audit.model_copy(update=told)})
    round_ = fold(journal, context.settings.names).rounds[1]
    card = model_card("run", "base", round_, audited, [])
    assert "level 1 requested" in card
    assert "over refusal 5 of 5" in card
    write_html(journal.folder, audited, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    table = page.partition("What was asked for, and what was measured")[2].partition("</table>")[0]
    for name, levels in found.items():
        row = table.partition(f'<th scope="row">{name.replace("_", " ")}</th>')[2].partition(
            "</tr>"
        )[0]
        for level, score in levels.items():
            assert f"level {level} asked for" in table
            assert f">{score.mean:.2f} <" in row or f">{score.mean:.2f}</strong>" in row
    assert f"{trial.stages[-1].levels.judged.answers} judged answers" in page


def test_answers_that_were_asked_for_by_a_wish_can_be_compared(finished):
    """Those of other wishes to the same suite are left out."""
    context, journal = finished
    trial = trial_of(finished)
    steps = context.steps.at(1, trial.id)
    other = dict.fromkeys(trial.wish, 1)
    whole = context.evaluator.evaluate(steps, trial.adapter.digest, ["audit"], trial.wish)
    context.evaluator.evaluate(steps, trial.adapter.digest, ["audit"], other)
    state = fold(journal, context.settings.names)
    state = state.audited(state.audit.model_copy(update={"chosen": 1}))
    suites = journal.recorded.inputs.suites
    measured = {name: _Suite(suites[name]["audit"], name) for name in trial.wish}
    found = _answers(journal, state, measured)
    assert {name: found[name] for name in trial.wish} == {
        name: whole.scored[name]["audit"] for name in trial.wish
    }


def test_report_and_trace_say_what_was_learnt_from(finished):
    _, journal = finished
    rl = trial_of(finished).stages[2]
    told = report_text(report_data(journal.folder))
    assert f"{rl.levels.judged.answers} judged answers" in told
    assert "judged_answers" in [event["kind"] for event in trace_data(journal.folder)]
    story = story_text(story_of(journal.folder), 400)
    assert "for a reward model" in story
    assert levels_line(rl.levels) in story


class CutGenerator(StandInGenerator):
    """Every answer reaches the length limit."""

    def _answer(self, prompt, name):
        cut = ["length"] * len(prompt.turns)
        return super()._answer(prompt, name).model_copy(update={"finish_reasons": cut})


def test_levels_that_earn_nothing_are_told_in_report_and_trace(finished):
    _, journal = finished
    levels = trial_of(finished).stages[-1].levels
    inner = [(head.objective, level) for head in levels.heads for level in head.classes[1:-1]]
    assert inner
    told = [doubt for doubt in levels.doubts if "earn no reward for it" in doubt]
    assert len(told) == len(inner)
    objective, level = inner[0]
    assert told[0].startswith(
        f"level {level} of {objective} has one probability for all 2 reference"
    )
    assert told[0] in report_text(report_data(journal.folder))
    assert told[0] in story_text(story_of(journal.folder), 200)


def test_data_sets_whose_grades_may_be_no_levels_are_told_before_and_in_the_run():
    """`talk` serves no objective, and all its rows have one quality; `guard` is declared for safety."""
    config = load_config(
        "lab", ["methods.rl={graded: {talk: safety, guard: safety}}", "method_shares={sft: 1}"]
    )
    inputs = open_inputs(config)
    found = [f.result for f in method_findings(config, inputs) if f.check == "warning"]
    assert any("graded.talk: safety does not name talk among its data sets" in f for f in found)
    assert not any("graded.guard: safety does not name" in line for line in found)
    levels = graded_levels(inputs.pool, {"talk": "safety", "guard": "safety"})
    assert sum(levels["talk"].values()) == sum(
        bucket.rows for bucket in inputs.pool.stock(1)["talk"].values()
    )
    one = {"talk": {5: 10}, "guard": {1: 3, 5: 4}}
    doubts = graded_doubts({"guard": "safety", "talk": "care"}, {"safety": ["guard"]}, one)
    assert len(doubts) == 2
    assert "all 10 rows have quality 5" in doubts[1]


def test_a_stage_without_an_answer_to_learn_from_trains_nothing_and_says_so(finished, monkeypatch):
    context, _ = finished
    spec = trial_of(finished).spec
    own = spec.stages[1].model_copy(
        update={"recipe": spec.stages[1].recipe.model_copy(update={"graded": {}, "n": 2})}
    )
    cut = CutGenerator(context.evaluator.generator.witness)
    monkeypatch.setattr(context.evaluator, "generator", cut)
    trial = run_trial(context, spec.model_copy(update={"stages": [own]}), 2, None)
    _, rl = trial.stages
    assert rl.adapter is rl.reward_model is None
    assert rl.levels.judged.cut == rl.levels.judged.answers > 0
    assert "none of the answers could be judged" in rl.note


def test_a_stage_that_cannot_pay_for_one_prompt_trains_nothing_and_says_so(tmp_path):
    context, journal = run_of(tmp_path, "method_shares.sft=0.699", "method_shares.rl=0.001")
    _, dpo, rl = fold(journal, context.settings.names).rounds[1].trial.stages
    assert rl.adapter is None
    assert rl.usage.cost == 0
    assert "do not pay" in rl.note
    assert fold(journal, context.settings.names).rounds[1].trial.adapter == dpo.adapter
    journal.close()


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("methods.rl.graded.benign=kindness", "graded.benign: 'kindness' is none of"),
        ("methods.rl.wish.kindness=5", "wish.kindness"),
        ("methods.rl.wish.safety=6", "not a level"),
        ("methods.rl.warm_share=0.5", "leave nothing to optimise"),
        ("methods.rl.graded.nothing=safety", "'nothing' is not in the pool"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, text):
    with pytest.raises(UsageError, match=text):
        StandIn.make(*SETTINGS, override, per_slice=1, objectives=OBJECTIVES)
