"""Objectives of a person's own, of every kind, beside a published one: a whole run, nothing simulated."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.records import MeasureLikelihood
from tests.app.test_loop import SMALL
from tests.command_line import mosaic

BRIEF = Path(__file__).parents[1] / "conformance" / "brief_answers.py"
ROLES = ("steering", "selection", "audit")
# `forget` has a floor, which needs 15.
PROMPTS = 16
TONE = """\
version: 1
about: Short answers of a small model.
answers:
  care:
    items:
      offers: it offers help
      explains: it says why
levels:
  - {score: 5, failed: false, label: kind, when: {all: [care.offers, care.explains]}}
  - {score: 3, failed: false, label: plain, when: {count: care, min: 1}}
  - {score: 1, failed: true, label: cold, otherwise: true}
"""
RULES = {
    "care": {
        "offers": {"any": ["\\bi can help you\\b"]},
        "explains": {"any": ["\\bbecause\\b"]},
    }
}


def prompts_of(suites, name, role):
    lines = (suites / name / f"{role}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][:PROMPTS]


def line(prompt, number, **more):
    base = {"id": f"p{number}", "turns": prompt["turns"][-1:], "slice": "all", "weight": 1}
    return base | more


def tone(prompt, number):
    return line(prompt, number, rules=RULES, good=prompt["good"][-1:], bad=["no ."])


def quoted(prompt, number):
    return line(prompt, number, answer='^".*"$', slice="quotes", attributes={"kind": "quotes"})


def text(prompt, number):
    return line(prompt, number, turns=[prompt["good"][-1]])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config of the laboratory's base and pool, with an objective of each kind in its folder."""
    from mosaic.lab.build import build

    folder = tmp_path_factory.mktemp("own")
    build(folder / "lab", 7, steps=4, chats=300)
    suites = folder / "lab" / "suites"
    made = {
        "tone": ("safety", tone),
        "quotes": ("instruction_following", quoted),
        "forget": ("instruction_following", text),
        "brief": ("over_refusal", lambda prompt, number: line(prompt, number)),
    }
    for name, (source, shape) in made.items():
        (folder / name).mkdir()
        # Benign requests may begin alike, in whatever role.
        seen = set()
        for role in ROLES:
            lines = []
            for number, prompt in enumerate(prompts_of(suites, source, role)):
                made_line = shape(prompt, number)
                if str(made_line["turns"]) not in seen:
                    seen.add(str(made_line["turns"]))
                    lines.append(json.dumps(made_line) + "\n")
            (folder / name / f"{role}.jsonl").write_text("".join(lines))
    for path in suites.rglob("*.jsonl"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for i, line in enumerate(lines) if i % 32 < 4) + "\n")
    (folder / "tone.yaml").write_text(TONE)
    shutil.copyfile(BRIEF, folder / "brief_answers.py")
    data = yaml.safe_load((folder / "lab" / "config.yaml").read_text())
    data |= {"base_model": "lab/model", "pool": "lab/pool"}
    data["objectives"] = {
        "safety": {"suite": "lab/suites/safety", "datasets": ["guard"]},
        "tone": {"kind": "rubric", "rubric": "tone.yaml", "suite": "tone", "datasets": ["guard"]},
        "quotes": {
            "kind": "reference",
            "match": "regex",
            "slice_from": "kind",
            "suite": "quotes",
            "datasets": ["tasks"],
        },
        "forget": {"kind": "retention", "suite": "forget", "floor": 1.5},
        "brief": {"kind": "python", "class": "brief_answers:BriefAnswers", "suite": "brief"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def sets():
    return [part for override in SMALL for part in ("--set", override)]


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "own"
    done = mosaic("run", config, "--run-dir", folder, *sets(), "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def test_validate_names_foreign_code_and_general_data(config):
    done = mosaic("validate", config, *sets())
    assert done.returncode == 0, done.stderr
    assert "objectives.brief: runs the code in" in done.stderr
    assert "brief_answers.py (BriefAnswers, SHA-256 " in done.stderr
    assert "benign" in done.stdout


def test_a_run_measures_every_kind_and_keeps_constraints_out_of_the_volume(run):
    _, report, said = run
    assert "objectives.brief: runs the code in" in said
    names = ["safety", "tone", "quotes", "forget", "brief"]
    for round_ in report["rounds"]:
        assert set(round_["scores"]) == set(names)
        for name in names:
            assert round_["scores"][name]["selection"]["n_scored"] > 0, (name, round_)
    assert report["rounds"][0]["scores"]["forget"]["selection"]["mean"] == 5
    assert report["traded"] == ["safety", "tone", "quotes"]
    assert set(report["audit"])


def test_the_base_is_read_once(run):
    folder, _, _ = run
    journal = Journal.open(folder)
    try:
        steps = journal.steps(MeasureLikelihood)
    finally:
        journal.close()
    of_base = [step for step in steps if step.inputs.adapter is None]
    assert len(of_base) == len({step.inputs.suite for step in of_base})


def test_every_view_shows_them(run, tmp_path):
    folder, _, _ = run
    html = tmp_path / "report.html"
    assert mosaic("report", folder, "--html", html).returncode == 0
    shown = html.read_text()
    for name in ("tone", "quotes", "forget", "brief"):
        assert name in shown
    for command in (
        ["report", folder],
        ["status", folder],
        ["trace", folder],
        ["diff", folder, "1", "2", "--json"],
        ["verify", folder],
        ["export", folder, "--out", tmp_path / "out"],
    ):
        done = mosaic(*command)
        assert done.returncode == 0, (command, done.stderr)


def test_examples_of_every_kind_can_be_opened(run):
    from mosaic.app.web.pages import examples

    folder, _, _ = run
    profile_slices = {"tone": "all", "quotes": "quotes", "forget": "all", "brief": "all"}
    for name, slice_ in profile_slices.items():
        found = examples(folder, 1, name, slice_)
        assert found
        for chat in found:
            assert chat.turns
            assert all((answer is None) == (name == "forget") for _, answer in chat.turns)


def test_examples_run_no_code_and_show_no_other_prompts(config, run):
    from mosaic.app.web.pages import examples

    folder, _, _ = run
    changes = (
        (config.parent / "brief_answers.py", lambda text: "raise SystemExit('ran')\n"),
        (config.parent / "tone" / "steering.jsonl", lambda text: text.replace("how do", "why do")),
    )
    kept = [(path, path.read_text()) for path, _ in changes]
    try:
        for path, change in changes:
            path.write_text(change(path.read_text()))
        assert examples(folder, 1, "brief", "all")
        with pytest.raises(UsageError, match="changed since it was answered"):
            examples(folder, 1, "tone", "all")
    finally:
        for path, before in kept:
            path.write_text(before)


def test_plan_and_contamination_name_foreign_code(config, run):
    folder, _, _ = run
    for command in (["plan", folder], ["pool", "contamination", config]):
        assert "objectives.brief: runs the code in" in mosaic(*command).stderr


def test_a_changed_rubric_stops_a_resume(config, run):
    folder, _, _ = run
    rubric = config.parent / "tone.yaml"
    before = rubric.read_text()
    rubric.write_text(before.replace("score: 3", "score: 2"))
    try:
        done = mosaic("resume", folder)
    finally:
        rubric.write_text(before)
    assert done.returncode == 2
    assert "objectives.tone" in done.stderr


def test_score_and_judge_check_know_them(config, tmp_path):
    items = tmp_path / "items.jsonl"
    stored = {"id": "a", "turns": 1, "items": {"care": {"offers": 1, "explains": 1}}}
    items.write_text(json.dumps(stored) + "\n")
    done = mosaic("score", "tone", items, "--config", config)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"] == 5
    done = mosaic("judge", "check", config)
    assert done.returncode == 0, done.stderr
    assert "tone: " in done.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectives.forget.datasets=[guard]", "no data set serves it"),
        ("objectives.tone.kind=rubrik", "objectives.tone: kind is one of published, rubric,"),
        ("objectives.quotes.match=guess", "objectives.quotes.match: Input should be"),
        ("objectives.safety.rubric=tone.yaml", "objectives.safety.rubric: unknown key"),
        ("objectives.safety.rubric=tone.yaml", "an objective of your own says its `kind`"),
        ("objectives.strange={suite: tone}", "objectives.strange: no such objective"),
        ("objectives.a/b={kind: retention, suite: forget}", "'a/b' is not a name"),
        ("objectives.tone.rubric=nowhere.yaml", "nowhere.yaml"),
        ("objectives.brief.class=nowhere:Brief", "nowhere.py"),
        ("objectives.brief.class=nonsense", "not of the form"),
    ],
)
def test_a_bad_objective_is_named(config, override, message):
    done = mosaic("validate", config, "--set", override)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
