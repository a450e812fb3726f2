"""What a run came to: against the static mixture first, in words that its numbers bear out."""

import re
from dataclasses import replace

import pytest

from agent.approval import AutoApprover
from agent.planners.kinds import settings_by_kind
from agent.planners.toolbox import SurrogateTools
from benchmarks.standins import StandIn, Witness
from mosaic.app.replay import replay
from mosaic.app.views import plots
from mosaic.app.views.alternatives import alternatives, caption_of, inside
from mosaic.app.views.compare import OpenedRun, compare, why_apart
from mosaic.app.views.compare_text import compare_text
from mosaic.app.views.html import write_comparison, write_html
from mosaic.app.views.parts import signed
from mosaic.app.views.plot_theme import DARK, LIGHT
from mosaic.app.views.report_data import load, report_data
from mosaic.app.views.result import compared, headline, unknowns, why_chosen
from mosaic.app.views.text import report_text
from mosaic.core.errors import UsageError
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Difference
from mosaic.core.types.records import Observe
from mosaic.core.types.runs import Observation


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two finished runs of one seed with other planners."""
    root = tmp_path_factory.mktemp("runs")
    standin = StandIn.make(
        "rounds=2",
        "calibration.repeats=2",
        "objectives.safety.target=4.5",
        per_slice=4,
    )
    standin.approver = AutoApprover()
    folders = [root / "random", root / "static"]
    for folder in folders:
        planner = {"planner": settings_by_kind()[folder.name]()}
        other = replace(standin, config=standin.config.model_copy(update=planner))
        other.create(folder)
        other.run(folder, Witness(root / f"{folder.name}.witness"))
    return folders


@pytest.fixture(scope="module")
def report(finished):
    return report_data(finished[0])


def worse(report):
    """The same report, had the chosen round fallen behind the static mixture."""
    change = Difference(mean=-0.4, low=-0.6, high=-0.2, clusters=40)
    found = compared({"safety": change}, {"safety": 0.3})
    audit = report.audit.model_copy(update={"against_static": found})
    return report.model_copy(update={"audit": audit})


def test_what_would_have_happened_is_what_the_surrogate_says_of_both_plans(finished, tmp_path):
    folder = finished[0]
    journal, state = load(folder)
    found = alternatives(journal, state)
    observed = journal.steps(Observe)
    journal.close()
    assert [one.round for one in found] == [1, 2]
    others = {line.round: line.plan for line in replay(folder, "need")}
    for one, step in zip(found, observed, strict=True):
        seen = Observation.model_validate(Store(folder).get_json(step.result.observation))
        surrogate = SurrogateTools(seen)
        for told, plan in ((one.ran, state.rounds[one.round].plan), (one.other, others[one.round])):
            predicted = surrogate.predict(plan)["selection"]
            assert {name: told[name].mean for name in told} == {
                name: values["mean"] for name, values in predicted.items()
            }
            for foretold in told.values():
                assert 1 <= foretold.low <= foretold.mean <= foretold.high <= 5
        measured = state.rounds[one.round].scores
        assert one.measured == {name: roles["selection"] for name, roles in measured.items()}
    hits, total = inside(found)
    assert total == 4
    assert f"Of 4 forecasts of what ran, {hits} lie within their interval" in caption_of(found)
    write_html(folder, report_data(folder), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "What would have happened" in text
    assert caption_of(found) in text


def test_the_static_mixture_is_the_mean_of_its_trainings(report):
    for objective, score in report.static.selection.items():
        means = [trial[objective]["selection"].mean for trial in report.calibration.scores]
        assert score.mean == pytest.approx(sum(means) / len(means))
        assert score.low <= score.mean <= score.high
    assert 0 < report.static.hypervolume < 1


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ((0.4, 0.2, 0.6, 40), "better"),
        ((0.4, 0.2, 0.6, 5), "not told apart"),  # too few prompts
        ((0.4, -0.1, 0.9, 40), "not told apart"),
        ((-0.2, -0.4, -0.1, 40), "worse"),
        ((-0.5, -1.2, 0.2, 40), "worse"),  # beyond the noise of a training
        ((-0.2, -0.6, 0.2, 40), "not told apart"),
    ],
)
def test_a_difference_is_told_as_its_interval_allows(change, verdict):
    mean, low, high, clusters = change
    found = Difference(mean=mean, low=low, high=high, clusters=clusters)
    assert compared({"x": found}, {"x": 0.3})[0].verdict == verdict


def test_the_first_line_says_that_a_result_is_worse_than_the_static_mixture(report):
    first, *_ = report_text(worse(report)).splitlines()
    assert "; worse than the pools' own proportions: safety -0.40 (-0.60 to -0.20)" in first
    assert "worse than" not in report_text(report.model_copy(update={"audit": None}))


@pytest.mark.parametrize(("value", "told"), [(-0.001, "+0.00"), (0.2, "+0.20"), (None, "-")])
def test_a_difference_that_rounds_to_nothing_has_no_minus(value, told):
    assert signed(value) == told


def test_the_headline_holds_the_result_against_the_static_mixture_before_the_base(report):
    first, second = headline(report)
    assert first.startswith(f"Round {report.chosen} against the pools' own proportions")
    assert second.startswith(f"Round {report.chosen} against the base")
    gain = report.audit.gain["safety"]
    assert f"safety {gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})" in first


def test_why_a_round_was_chosen_is_said_with_its_numbers(report):
    sentence = why_chosen(report)
    assert sentence.startswith(f"Round {report.chosen} was chosen because")
    if len(report.ranking) > 1:
        first, second = report.ranking[:2]
        assert f"{first.shortfall:.2f} points" in sentence
        assert f"round {second.round}, by {second.shortfall:.2f}" in sentence


def test_rounds_that_came_to_the_same_are_not_told_apart(report):
    first = report.ranking[0].model_copy(update={"best": 0.3})
    second = first.model_copy(update={"round": first.round + 1, "best": 0.4})
    alike = {"ranking": [first, second], "chosen": first.round}
    told = report.model_copy(update=alike)
    assert "their volumes are equal too, and it is the earlier one" in why_chosen(told)
    assert "it is the earlier one: what the two came to is equal" in " ".join(unknowns(told))
    free = told.model_copy(update={"targets": dict.fromkeys(report.targets)})
    assert "was chosen as the earliest of equal volume" in why_chosen(free)


def test_a_target_of_a_constraint_is_none_that_a_round_is_chosen_by(report):
    targets = dict.fromkeys(report.targets) | {"retention": 4.5}
    assert "retention" not in report.traded
    told = why_chosen(report.model_copy(update={"targets": targets}))
    assert "targets" not in told


def test_what_the_run_could_not_know_is_said(report):
    text = " ".join(unknowns(report))
    assert "2 trainings of one mixture" in text
    assert "was trained once" in text


def test_a_terminal_of_80_columns_gets_no_longer_line_and_a_pipe_whole_rows(report):
    assert max(map(len, report_text(report, 80).splitlines())) <= 80
    whole = report_text(report).splitlines()
    (static,) = [line for line in whole if line.strip().startswith("static ") and "0." in line]
    for objective in report.objectives:
        assert f"{report.static.selection[objective].mean:.2f}" in static


def test_the_html_report_has_the_static_mixture_the_targets_and_no_json(finished, report, tmp_path):
    write_html(finished[0], worse(report), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Worse than the pools&#39; own proportions" in text
    assert "static mixture" in text
    assert re.search(r'class="v-(met|missed|not-shown-to-be-met)"', text)
    assert "What this run could not know" in text
    assert "&#34;ratios&#34;" not in text, "no record is shown as JSON"
    assert not re.search(r'(src|href)="(https?:)?//', text), "it opens without a network"


def test_a_picture_is_drawn_once_and_coloured_for_each_background(report):
    light, dark, page = (plots.svg("scores", report, theme) for theme in ("light", "dark", "page"))
    assert LIGHT["static"] in light
    assert DARK["static"] in dark
    assert LIGHT["static"] not in dark
    assert f"var(--plot-static, {LIGHT['static']})" in page
    assert plots.svg("scores", report) == light, "the same drawing gives the same bytes"


def test_every_picture_keeps_the_size_that_a_page_reserves_for_it(report):
    for name, kind in plots.KINDS.items():
        if not kind.shown(report):
            continue
        width, height = kind.size(report)
        found = re.search(
            r'width="([0-9.]+)pt" height="([0-9.]+)pt"|height="([0-9.]+)pt"',
            plots.svg(name, report),
        )
        drawn = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', plots.svg(name, report))
        assert found
        assert float(drawn[1]) == pytest.approx(width, abs=1)
        assert float(drawn[2]) == pytest.approx(height, abs=1)


# -- side by side ----------------------------------------------------------------------------------


def test_runs_of_one_seed_are_compared_prompt_by_prompt(finished):
    found = compare(finished)
    (pair,) = found.pairs
    assert not pair.apart
    one, other = (run.scores for run in found.runs)
    for objective, change in pair.changes.items():
        assert change.mean == pytest.approx(other[objective].mean - one[objective].mean)
    assert 'planner.kind: "random" -> "static"' in pair.config
    text = compare_text(found)
    assert "static less random, on equal prompts" in text


def test_what_cannot_be_compared_says_why(finished):
    one, other = OpenedRun(finished[0]), OpenedRun(finished[1])
    assert why_apart(one, other, "safety") == ""
    other.config = other.config.model_copy(update={"seed": 9})
    assert why_apart(one, other, "safety") == "the seeds differ: 1 and 9"
    with pytest.raises(UsageError, match="two runs"):
        compare(finished[:1])
    with pytest.raises(UsageError, match="twice"):
        compare([finished[0], finished[0]])


def test_runs_side_by_side_make_one_self_contained_page(finished, tmp_path):
    write_comparison(compare(finished), tmp_path / "compare.html")
    text = (tmp_path / "compare.html").read_text()
    assert "static mixture of random" in text
    assert "<script" not in text
