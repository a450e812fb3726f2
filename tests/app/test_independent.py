"""Independent suites (`audit_also`): opened at the end alone, reported apart, read by no decision."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jsonschema
import pytest

from agent.approval import AutoApprover
from benchmarks.standins import StandIn, Witness
from eval.suite import Suite, prompts_digest
from mosaic.app.config_file import BUNDLED, load_config, parse_config
from mosaic.app.estimate import AUDITED, SuiteSize, _times
from mosaic.app.inspect_logs import evaluations
from mosaic.app.python_api import score_rows
from mosaic.app.schemas import schema_of
from mosaic.app.validation import contaminated, refuse_contaminated, validate
from mosaic.app.views.cards import model_card
from mosaic.app.views.compare import compare
from mosaic.app.views.compare_text import compare_text
from mosaic.app.views.html import write_comparison, write_html
from mosaic.app.views.notebook import run_html
from mosaic.app.views.report_data import load, report_data
from mosaic.app.views.result import worse_sentences
from mosaic.app.views.story_text import story_text
from mosaic.app.views.telling import story_of
from mosaic.app.views.text import report_text
from mosaic.app.wiring import open_inputs, run_digests
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.records import Audit, Generate
from mosaic.core.types.runs import GREEDY
from training.data.contamination import pool_requests

SUMS = {"turns": ["how much is {} and {} ?"], "slice": "all", "weight": 1}


def tricky(folder: Path, suffix: str = " thank you") -> Path:
    """Prompts of over-refusal that no other suite asks, in a suite that says what judges it."""
    folder.mkdir()
    lines = (BUNDLED / "suites/over_refusal/audit.jsonl").read_text().splitlines()
    # Short enough that two words more leave no run of 13 words in common.
    prompts = [p for p in map(json.loads, lines) if len(" ".join(p["turns"]).split()) < 13][:22]
    with (folder / "audit.jsonl").open("w") as file:
        for prompt in prompts:
            turns = [turn + suffix for turn in prompt["turns"]]
            file.write(json.dumps({**prompt, "id": f"x-{prompt['id']}", "turns": turns}) + "\n")
    (folder / "suite.yaml").write_text("objective: over_refusal\n")
    return folder


def sums(folder: Path) -> Path:
    """A capability that the run has no objective for: the suite brings its own."""
    folder.mkdir()
    with (folder / "audit.jsonl").open("w") as file:
        for n in range(20):
            turns = [SUMS["turns"][0].format(n, n + 1)]
            answer = str(2 * n + 1)
            known = {"good": [answer], "bad": ["no idea"]}
            file.write(
                json.dumps({**SUMS, "id": f"s{n}", "turns": turns, "answer": answer, **known})
            )
            file.write("\n")
    (folder / "suite.yaml").write_text("objective: {kind: reference, match: exact}\n")
    return folder


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    root = tmp_path_factory.mktemp("suites")
    return {"tricky": tricky(root / "tricky"), "sums": sums(root / "sums")}


def named(suites):
    return [f"audit_also.{name}={folder}" for name, folder in suites.items()]


@pytest.fixture(scope="module")
def standin(suites):
    made = StandIn.make("rounds=1", "keep=all", *named(suites), per_slice=4)
    made.approver = AutoApprover()
    return made


@pytest.fixture(scope="module")
def finished(standin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    standin.create(folder)
    standin.run(folder, Witness(folder.parent / "witness"))
    return folder


def steps(folder, kind):
    journal = Journal.open(folder)
    try:
        return journal.steps(kind)
    finally:
        journal.close()


def test_base_static_and_chosen_are_tested_after_everything_else(standin, finished):
    report = report_data(finished)
    assert report.chosen == 1
    tests = report.audit.independent
    assert {name: test.objective for name, test in tests.items()} == {
        "tricky": "over_refusal",
        "sums": "sums",
    }
    for test in tests.values():
        assert None not in (test.base.mean, test.static.mean, test.chosen.mean)
        assert test.against_base.change.mean == pytest.approx(test.chosen.mean - test.base.mean)
        gain = test.chosen.mean - test.static.mean
        assert test.against_static.change.mean == pytest.approx(gain)
    digests = {test.suite.digest for test in standin.inputs.independent.values()}
    opened = [step.seq for step in steps(finished, Generate) if step.inputs.suite in digests]
    others = {
        suite.digest
        for r in standin.inputs.suites.values()
        for n, suite in r.items()
        if n != "audit"
    }
    before = [step.seq for step in steps(finished, Generate) if step.inputs.suite in others]
    assert len(opened) == 6  # two suites, three models
    assert min(opened) > max(before)


def test_runs_are_compared_on_independent_suites_too(suites, finished, tmp_path):
    planned = "planner.kind=need"
    other = StandIn.make("rounds=1", "keep=all", planned, *named(suites), per_slice=4)
    other.approver = AutoApprover()
    folder = tmp_path / "other"
    other.create(folder)
    other.run(folder, Witness(tmp_path / "witness"))
    found = compare([finished, folder])
    assert found.independent == ["sums", "tricky"]
    (pair,) = found.pairs
    one, two = found.runs
    assert any(pair.changes[name].mean for name in found.independent)
    for name in found.independent:
        change = pair.changes[name].mean
        assert change == pytest.approx(two.independent[name].mean - one.independent[name].mean)
    text = compare_text(found)
    assert "the same on independent suites" in text
    write_comparison(found, tmp_path / "compare.html")
    assert "Independent suites" in (tmp_path / "compare.html").read_text()


def test_no_decision_differs_from_that_of_a_run_without_them(standin, finished, tmp_path):
    plain = StandIn.make("rounds=1", "keep=all", per_slice=4)
    plain.approver = AutoApprover()
    folder = tmp_path / "run"
    plain.create(folder)
    plain.run(folder, Witness(tmp_path / "witness"))
    ours, theirs = report_data(finished), report_data(folder)
    assert ours.chosen == theirs.chosen
    assert ours.rounds[1].plan == theirs.rounds[1].plan
    same = {"independent"}
    assert ours.audit.model_dump(exclude=same) == theirs.audit.model_dump(exclude=same)
    assert theirs.audit.independent == {}
    assert "audit_also" not in plain.config.json_data()
    assert "independent" not in run_digests(plain.config, plain.inputs).json_data()
    (audit,) = steps(folder, Audit)
    assert "independent" not in audit.inputs.json_data()


def test_every_view_tells_them_apart(finished, tmp_path):
    report = report_data(finished)
    jsonschema.validate(report.json_data(), schema_of("report"))
    text = report_text(report, 80)
    assert "independent suites, opened at the end; no decision read them" in text
    assert "judged: sums by an objective of its own, tricky as over_refusal" in text
    assert max(map(len, text.splitlines())) <= 80
    write_html(finished, report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h3>Independent suites</h3>" in page
    assert "Independent suites" in run_html(report)
    told = story_text(story_of(finished), 100)
    assert "mean on independent suites, which no decision read" in told
    assert "sums (sums), static" in told
    rows = [row for row in score_rows(report) if row["role"] in ("tricky", "sums")]
    assert [(row["round"], row["objective"], row["role"]) for row in rows] == [
        (0, "over_refusal", "tricky"),
        (0, "sums", "sums"),
        (1, "over_refusal", "tricky"),
        (1, "sums", "sums"),
    ]
    tested = {one.model for one in evaluations(finished) if one.role == "sums"}
    assert tested == {"base", "calibration-1", "round-01"}
    journal, state = load(finished)
    journal.close()
    card = model_card("run", "org/base", state.rounds[1], report, [])
    assert "## Independent suites" in card
    assert "| tricky | over_refusal |" in card


def test_a_fall_on_an_independent_suite_stands_in_the_first_line(finished):
    report = report_data(finished)
    test = report.audit.independent["sums"]
    change = test.against_base.change.model_copy(update={"mean": -1.0, "low": -1.4, "high": -0.6})
    fallen = test.against_base.model_copy(update={"change": change, "verdict": "worse"})
    tests = {"sums": test.model_copy(update={"against_base": fallen})}
    audit = report.audit.model_copy(update={"independent": tests})
    told = worse_sentences(report.model_copy(update={"audit": audit}))
    assert told[-1] == "worse than the base on independent suites: sums -1.00 (-1.40 to -0.60)"
    assert told[-1] in report_text(report.model_copy(update={"audit": audit})).splitlines()[0]


def test_a_suite_that_is_named_after_the_end_is_opened_by_resume(standin, suites, tmp_path):
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    first = replace(
        standin,
        config=standin.config.model_copy(update={"audit_also": {"tricky": str(suites["tricky"])}}),
        inputs=replace(
            standin.inputs, independent={"tricky": standin.inputs.independent["tricky"]}
        ),
    )
    first.create(folder)
    first.run(folder, witness)
    before = report_data(folder)
    asked = len(witness.lines())
    standin.run(folder, witness)
    after = report_data(folder)
    assert set(before.audit.independent) == {"tricky"}
    assert set(after.audit.independent) == {"tricky", "sums"}
    assert after.audit.independent["tricky"] == before.audit.independent["tricky"]
    assert len(witness.lines()) == asked + 3  # only the new suite, by three models
    assert [opening.decided_after for opening in after.audits] == [[]]
    standin.run(folder, witness)
    assert len(witness.lines()) == asked + 3


def test_a_suite_that_changed_under_its_name_is_opened_again_and_others_stand(
    standin, finished, tmp_path
):
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    shutil.copytree(finished, folder)
    before = report_data(folder).audit.independent
    test = standin.inputs.independent["sums"]
    kept = test.suite.prompts[:-1]
    shorter = replace(test, suite=replace(test.suite, prompts=kept, digest=prompts_digest(kept)))
    changed = replace(standin, inputs=replace(standin.inputs, independent={"sums": shorter}))
    changed.run(folder, witness)
    after = report_data(folder).audit.independent
    assert after["tricky"] == before["tricky"]
    assert after["sums"].base.n_scored == before["sums"].base.n_scored - 1


class Killed(BaseException):
    """What ends a controller in the middle."""


@dataclass
class Interrupted(StandIn):
    """Ends the run when the prompts of a suite are asked for the second time."""

    suite: Suite | None = None

    def context(self, folder, journal, witness):
        context = super().context(folder, journal, witness)
        generator, asked = context.evaluator.generator, []

        class Ending(type(generator)):
            def generate(inner, prompts, adapter, sampling=GREEDY):
                if list(prompts) == self.suite.prompts:
                    asked.append(adapter)
                    if len(asked) == 2:
                        raise Killed
                return super().generate(prompts, adapter, sampling)

        context.evaluator.generator = Ending(witness)
        return context


def test_a_run_that_is_killed_while_testing_goes_on_and_pays_nothing_twice(standin, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    standin.create(whole)
    standin.run(whole, Witness(tmp_path / "whole.witness"))
    suite = standin.inputs.independent["sums"].suite
    cut = Interrupted(standin.config, standin.inputs, standin.approver, suite)
    witness = Witness(tmp_path / "witness")
    cut.create(folder)
    with pytest.raises(Killed):
        cut.run(folder, witness)
    assert report_data(folder).audit is None
    standin.run(folder, witness)
    assert sorted(witness.lines()) == sorted(Witness(tmp_path / "whole.witness").lines())
    assert report_data(folder).audit == report_data(whole).audit


def test_they_are_validated_like_any_suite(suites):
    found = validate(load_config("lab", named(suites)), False, lambda text: None)
    by_check = {one.check: one.result for one in found}
    assert "tricky 0.0% (at most 1.0%), sums 0.0% (at most 1.0%)" in by_check["contamination"]
    assert "tricky 22; " in by_check["suites over_refusal"]
    assert by_check["suites sums"] == "sums 20; 40 reference answers checked by code"
    assert "3 answer audit and independent suites" in by_check["cost of generation"]
    size = SuiteSize("tricky", 22, 22, 100, True)
    config = load_config("lab", named(suites))
    assert _times(config, size) == AUDITED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "suite.yaml").unlink(), "says nothing of what judges this suite; write"),
        (lambda f: (f / "suite.yaml").write_text("objective: humour\n"), "'humour' is none of"),
        (
            lambda f: (f / "suite.yaml").write_text("objective: {kind: python, class: 'a:B'}\n"),
            "suite.yaml: objective",
        ),
        (lambda f: (f / "audit.jsonl").unlink(), "No such file"),
        (lambda f: (f / "audit.jsonl").write_text("{}\n"), r"audit\.jsonl:1: "),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
)
def test_a_broken_one_is_named_with_what_to_do(tmp_path, change, message):
    folder = tricky(tmp_path / "tricky")
    change(folder)
    with pytest.raises(UsageError, match=message):
        open_inputs(load_config("lab", [f"audit_also.tricky={folder}"]))


def test_one_that_asks_what_the_run_decides_by_is_refused(tmp_path):
    folder = tricky(tmp_path / "tricky", suffix="")
    with pytest.raises(UsageError, match="22 of 22 prompts stand in suites of this run"):
        open_inputs(load_config("lab", [f"audit_also.tricky={folder}"]))


def test_one_that_stands_in_the_pool_is_refused(tmp_path):
    folder = tricky(tmp_path / "leaking")
    config = load_config("lab")
    lines = (folder / "audit.jsonl").read_text().splitlines()
    (_, turns), *_ = pool_requests(Path(config.pool))
    leaked = {**json.loads(lines[0]), "turns": turns}
    (folder / "audit.jsonl").write_text("\n".join([json.dumps(leaked), *lines[1:]]) + "\n")
    config = load_config("lab", [f"audit_also.leaking={folder}"])
    with pytest.raises(UsageError, match="over_refusal leaking: 1 of 22 prompts"):
        refuse_contaminated(config, contaminated(config, open_inputs(config)))


@pytest.mark.parametrize("name", ["safety", "audit", "a b"])
def test_a_name_that_could_be_taken_for_another_is_refused(name, suites):
    config = {**load_config("lab").json_data(), "audit_also": {name: str(suites["sums"])}}
    with pytest.raises(UsageError, match="audit_also"):
        parse_config(config, "test")
