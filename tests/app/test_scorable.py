"""Nothing is paid for what cannot be scored: known by validate, or after the base's evaluation."""

import json
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from agent.graph import run as run_graph
from benchmarks.judge_server import MODEL, JudgeServer, by_rules
from benchmarks.standins import StandIn, Witness
from eval.chat.failures import ChatUnavailable
from eval.judges.verifier import VerifierJudge
from eval.objectives.config import PythonConfig
from eval.objectives.custom import open_python
from eval.suite import Suite
from mosaic.app import runs, validation
from mosaic.app.cli.main import app
from mosaic.app.config_file import BUNDLED, load_config
from mosaic.app.scorable import check_scorable, check_valid
from mosaic.app.wiring import (
    Meters,
    build_judge,
    open_inputs,
    open_meters,
    open_suites,
    run_digests,
)
from mosaic.core.errors import BoundaryError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.evaluation import ROLES, Prompt
from mosaic.lab.server import ScriptedServer

SMALL = (
    "rounds=1",
    "calibration.repeats=1",
    "budget.tokens_per_round=1500",
    "generator.max_new_tokens=4",
    "methods.sft.batch_size=4",
)


def mosaic(*arguments):
    """What a command printed, and the error that it ended with."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.stdout, done.exception


def sets(*overrides):
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture
def lab(tmp_path):
    """The laboratory with a few prompts a suite, in a folder that a test may write into."""
    folder = tmp_path / "lab"
    shutil.copytree(BUNDLED, folder)
    for path in (folder / "suites").rglob("*.jsonl"):
        if path.parent.name == "retention":
            continue  # a floor needs more than a few
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for i, line in enumerate(lines) if i % 32 < 4) + "\n")
    return folder


def bend(path, change):
    """Change every prompt of a suite file."""
    prompts = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(change(number, p)) + "\n" for number, p in enumerate(prompts))
    )


def without_rules(number, prompt):
    return {**prompt, "rules": {}, "good": None, "bad": None}


def some_without_constraints(number, prompt):
    if number % 2:
        return prompt
    bent = {"id": "keywords:existence", "params": {"keywords": ["$5"]}}
    alone = {"constraints": [bent], "good": None, "bad": None, "slice": "complexity_1", "weight": 1}
    return {**prompt, **alone}


def test_all_faults_of_all_suites_are_listed_at_once_with_counts(lab):
    for role in ROLES:
        bend(lab / "suites" / "safety" / f"{role}.jsonl", without_rules)
    bend(lab / "suites" / "instruction_following" / "audit.jsonl", some_without_constraints)
    config = load_config(str(lab / "config.yaml"), [])
    objectives, suites = open_suites(config)
    with pytest.raises(UsageError) as caught:
        check_scorable("verifier", build_judge(config), objectives, suites)
    message = str(caught.value)
    for role in ROLES:
        count = len(suites["safety"][role].prompts)
        assert f"safety {role}: {count} of {count}: the prompt has no rules for" in message
        assert suites["safety"][role].prompts[0].id in message
    assert (
        "instruction_following audit: 10 of 20: keywords:existence: the checker does not" in message
    )
    assert "docs/judges.md" in message


OWN = """
from pathlib import Path
from eval.objectives.base import unscored
from mosaic.core.types.evaluation import Scored


class Own:
    evidence, answers, request, fields = "answers", (), (), {}

    def words(self, side): ...
    def stored(self, prompt, items): ...
    def prompt_side(self, prompt_items, turns, constraints): return "all", 1, 1
    def breakdown(self, scored): return {}

    def check(self, prompt, response):
        return {"known": Path(prompt.attributes["list"]).read_text()}

    def score(self, line):
        return Scored(id=line["id"], status="ok", slice="all", weight=1, score=5, failed=False)
"""


def test_code_of_ones_own_that_lacks_its_data_is_in_the_list_too(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = open_python("own", PythonConfig.model_validate({"class": "own:Own"}), tmp_path)
    (tmp_path / "list.txt").write_text("words")
    prompts = []
    for number, name in enumerate(("list.txt", "absent.txt", "absent.txt")):
        attributes = {"list": str(tmp_path / name)}
        labels = {"slice": "all", "weight": 1, "attributes": attributes}
        prompts.append(Prompt(id=f"p{number}", turns=["?"], **labels))
    suites = {"own": {"steering": Suite("own", "steering", prompts, "")}}
    with pytest.raises(UsageError, match=r"own steering: 2 of 3: .*FileNotFoundError.*\(p1, p2\)"):
        check_scorable("verifier", VerifierJudge(), {"own": own}, suites)


def test_a_suite_without_rules_costs_nothing_and_exits_2(lab, tmp_path):
    bend(lab / "suites" / "over_refusal" / "selection.jsonl", without_rules)
    for command in (
        ("validate", lab / "config.yaml"),
        ("run", lab / "config.yaml", "--run-dir", tmp_path / "run", *sets(*SMALL)),
    ):
        _, error = mosaic(*command)
        assert error.exit_code == 2
        assert "could never be scored by judge verifier" in str(error)
        assert "over_refusal selection: 16 of 16" in str(error)
    assert not (tmp_path / "run").exists()


def test_a_suite_of_prompts_that_do_not_count_is_refused():
    standin = StandIn.make(per_slice=2)
    suites = dict(standin.inputs.suites)
    selection = suites["safety"]["selection"]
    prompts = [p.model_copy(update={"valid": 0}) for p in selection.prompts]
    prompts[0] = selection.prompts[0]
    suites["safety"] = {**suites["safety"], "selection": replace(selection, prompts=prompts)}
    with pytest.raises(
        UsageError, match=rf"safety selection: 1 of {len(prompts)} prompts are valid"
    ):
        check_valid(["safety", "over_refusal"], suites)
    assert check_valid(["over_refusal"], suites).check == "valid"


def dead_url():
    with ScriptedServer(pick=lambda n: None) as server:
        return server.url


@pytest.mark.parametrize("who", ["judge", "planner"])
def test_what_a_run_takes_is_known_before_a_server_is_asked(lab, who):
    address = (f"{who}.kind=llm", f"{who}.chat.base_url={dead_url()}", f"{who}.chat.max_attempts=1")
    printed, error = mosaic("validate", lab / "config.yaml", *sets(*address))
    assert error.exit_code == 6
    assert "start the server" in str(error)
    for part in ("cost of training", "cost of generation", f"cost of {who}", "about "):
        assert part in printed


def test_findings_are_shown_before_the_servers_are_asked(lab, monkeypatch):
    shown = []

    def asked(*words):
        shown.append("asked")
        return []

    monkeypatch.setattr(validation, "_asked", asked)
    config = load_config(str(lab / "config.yaml"), [])
    validation.validate(config, False, print, show=lambda title, findings: shown.append(title))
    assert shown[:3] == ["checks", "cost", "asked"]


# What only the base's evaluation can tell


MARK = "answered"


@pytest.fixture(scope="module")
def decide():
    """What a model says that judges by the rules of the laboratory's suites."""
    objectives, suites = open_suites(load_config("lab"))
    return by_rules(objectives, [s for roles in suites.values() for s in roles.values()])


class JudgedRun:
    """A run whose judge, a server, loses a share of the base's answers but none of the known ones."""

    def __init__(self, root, decide, share, fault="refused"):
        self.root, self.share, self.fault = root, share, fault
        self.seen = {}
        self.server = JudgeServer(decide, self.lost)

    def lost(self, call):
        text = str(self.server.bodies[call - 1]["messages"][1]["content"])
        if MARK not in text:
            return None
        number = self.seen.setdefault(text, len(self.seen))
        return self.fault if number % 10 < 10 * self.share else None

    def start(self, *overrides):
        """One start of the controller; with other settings than before, they are accepted."""
        chat = f"{{base_url: {self.server.url}, model: {MODEL}, max_attempts: 1}}"
        judge = f"judge={{kind: llm, gold_checks: 2, chat: {chat}}}"
        standin = StandIn.make("rounds=1", judge, *overrides, per_slice=6)
        folder, witness = self.root / "run", Witness(self.root / "witness")
        if not folder.exists():
            standin.create(folder)
        journal = Journal.open(folder)
        try:
            journal.acquire()
            digests = run_digests(standin.config, standin.inputs)
            changed = runs.changes(journal, standin.config, digests)
            if changed:
                runs.accept_changes(journal, standin.config, digests, changed)
            context = standin.context(folder, journal, witness)
            generator = context.evaluator.generator
            generate = generator.generate

            def marked(prompts, adapter, *more):
                return [marked_answers(r) for r in generate(prompts, adapter, *more)]

            generator.generate = marked
            run_graph(context, folder)
        finally:
            journal.close()
            trained = sum(line.startswith("train") for line in witness.lines())
            self.trained, self.tokens = trained, journal_tokens(folder)
            self.answered = [line for line in witness.lines() if line.startswith("generate base")]


def marked_answers(response):
    answers = [f"{answer} {MARK}" for answer in response.answers]
    return response.model_copy(update={"answers": answers})


def journal_tokens(folder):
    journal = Journal.open(folder)
    _, held, spent = journal.ledger()
    journal.close()
    assert held == 0
    return spent


@pytest.mark.parametrize(
    ("fault", "reason"), [("refused", "refused"), ("garbage", "unparsable"), ("invalid", "invalid")]
)
def test_a_run_stops_after_the_base_where_most_answers_cannot_be_judged(
    tmp_path, decide, fault, reason
):
    run = JudgedRun(tmp_path, decide, share=0.8, fault=fault)
    with run.server, pytest.raises(BoundaryError, match="too few selection prompts") as caught:
        run.start()
    assert caught.value.exit_code == 1
    assert (run.trained, run.tokens) == (0, 0)
    message = str(caught.value)
    assert "safety: " in message
    assert "over_refusal: " in message
    assert reason in message
    assert "--accept-changes" in message


def test_a_run_goes_on_where_enough_answers_are_judged(tmp_path, decide):
    run = JudgedRun(tmp_path, decide, share=0.2)
    with run.server:
        run.start()
    assert run.trained == 2
    assert run.tokens > 0


def test_with_a_mended_judge_the_same_answers_are_judged_again(tmp_path, decide):
    run = JudgedRun(tmp_path, decide, share=1.0)
    with run.server:
        for _ in range(
            2
        ):  # another start with the same judge comes to the same end, and asks nothing
            with pytest.raises(BoundaryError, match="too few selection prompts"):
                run.start()
            asked = run.server.calls
        once = list(run.answered)
        run.share = 0.0
        run.start("judge.revision=mended")
    assert run.server.calls > asked
    assert run.trained == 2
    assert run.answered[: len(once)] == once
    assert len(set(run.answered)) == len(run.answered)


# The planner's endpoint at the start of a run


def planner_at(url):
    return sets(
        *SMALL, "planner.kind=llm", f"planner.chat.base_url={url}", "planner.chat.max_attempts=1"
    )


def test_a_planner_without_tools_is_known_before_a_run_is_made(lab, tmp_path):
    words = {"role": "assistant", "content": "I would look at the past rounds first."}
    with ScriptedServer(script=lambda request: words) as server:
        started = ("run", lab / "config.yaml", "--run-dir", tmp_path / "run")
        _, error = mosaic(*started, *planner_at(server.url))
    assert error.exit_code == 2
    assert "answers with words where it should call a tool" in str(error)
    assert not (tmp_path / "run").exists()


def test_a_key_that_is_not_taken_pauses_a_run_that_has_measured_nothing(lab, tmp_path):
    folder = tmp_path / "run"
    with JudgeServer(lambda name, turns: {}, lambda call: "401") as server:
        started = ("run", lab / "config.yaml", "--run-dir", folder)
        for command in ((*started, *planner_at(server.url)), ("resume", folder)):
            _, error = mosaic(*command)
            assert error.exit_code == 6
            assert "put a valid key" in str(error)
        assert server.calls == 2
    journal = Journal.open(folder)
    assert journal.last_row() is None
    journal.close()


class Counted(list):
    """A meter that keeps what each request took."""

    def reserve(self, most):
        assert most.total > 0

    def settle(self, most, taken):
        self.append(taken.total)


def test_what_a_resume_with_changes_asks_again_counts(lab, tmp_path, decide):
    planner, judge = Counted(), Counted()
    with ScriptedServer() as plans, JudgeServer(decide) as verdicts:
        judged = ("judge.kind=llm", f"judge.chat.base_url={verdicts.url}", "judge.gold_checks=2")
        planned = ("planner.kind=llm", f"planner.chat.base_url={plans.url}")
        config = load_config(str(lab / "config.yaml"), [*SMALL, *judged, *planned])
        inputs = open_inputs(config)
        meters = Meters(planner=planner, judge=judge)
        validation._asked(config, inputs, lambda text: None, tmp_path, meters)
        assert (len(planner), len(judge)) == (plans.requests, verdicts.calls)
        assert plans.requests == 1
        assert sum(judge) == 120 * verdicts.calls > 0


def test_a_change_is_refused_while_a_limit_leaves_no_room_to_check_it(lab, tmp_path):
    """The check before a changed run asks the planner's endpoint within the run's own limits."""
    with ScriptedServer() as server:
        limited = (*SMALL, "planner.kind=llm", f"planner.chat.base_url={server.url}")
        config = load_config(str(lab / "config.yaml"), [*limited, "budget.planner_tokens=9"])
        inputs = open_inputs(config)
        runs.create(tmp_path / "run", config, run_digests(config, inputs))
        journal = Journal.open(tmp_path / "run")
        journal.acquire()
        with pytest.raises(ChatUnavailable, match=r"budget\.planner_tokens"):
            validation._asked(config, inputs, lambda text: None, None, open_meters(config, journal))
        journal.close()
        assert server.requests == 0
