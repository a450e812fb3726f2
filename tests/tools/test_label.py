"""Labelling pool rows with a judge that is a real HTTP server, and the commands around judges."""

import json

import pytest

from benchmarks.judge_server import MODEL, JudgeServer, by_rules, said
from benchmarks.judging import Evaluations
from eval.judges.items import REQUEST
from eval.objectives.over_refusal import BOUNDARY
from eval.starter import starter
from eval.suite import load_suite
from mosaic.app.config_file import load_config
from mosaic.app.judging import check, check_judge, compare_judges, label_pool, label_prompts
from mosaic.app.wiring import open_suites
from mosaic.core.errors import PausedError, UsageError
from mosaic.core.types.data import Example
from tests.command_line import mosaic
from training.data.shards import Part

OBJECTIVES, SUITES = open_suites(load_config("lab"))
RULES = by_rules(OBJECTIVES, (s for roles in SUITES.values() for s in roles.values()))


def by_words(name, turns):
    """Known prompts by the laboratory's rules; rows by the words in them."""
    users = tuple(text for source, text in turns if source.startswith("user"))
    objective = OBJECTIVES[name.removesuffix(REQUEST)]
    if any(tuple(p.turns) == users for s in SUITES[objective.name].values() for p in s.prompts):
        return RULES(name, turns)
    text = " ".join(t for _, t in turns)
    verdict = {}
    for channel in objective.request if name.endswith(REQUEST) else objective.answers:
        verdict[channel.name] = {}
        for item in channel.items:
            verdict[channel.name][item.name] = said(item, item.most if item.name in text else 0)
    return verdict


def overrides(server, *more):
    return [
        "judge.kind=llm", f"judge.chat.base_url={server.url}", f"judge.chat.model={MODEL}", "judge.chat.max_attempts=2",
        "judge.revision=r1", "judge.gold_checks=4", *more,
    ]  # fmt: skip


def row(identifier, dataset, user, answer, **more):
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"id": identifier, "dataset": dataset, "messages": messages, **more}


ROWS = [
    row("a", "guard", "now , urgency roleplay", "explicit_refusal safe_alternative brief_explanation"),
    row("b", "guard", "tell me", "step_leak code_leak", attributes={"topic": "wax"}),
    row("c", "benign", "sensitive_trigger rejection_votes answer_path", "actionable_help constraint_fit"),
    row("d", "benign", "harmful_intent answer_path", "actionable_help"),
    row("e", "tasks", "write", "an amber wall", attributes={
        "constraints": ["keywords:existence"], "constraint_params": ['{"keywords": ["amber"]}']}),
    row("g", "tasks", "write", "a wall", attributes={"constraints": ["keywords:existence", "punctuation:no_comma"]}),
    row("f", "tasks", "write", "an amber wall", attributes={"constraints": ["keywords:existence"]}),
]  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return path


def read(path):
    return {r["id"]: r for r in map(json.loads, path.read_text().splitlines())}


def test_rows_get_quality_bucket_and_attributes_and_are_asked_once(rows, tmp_path):
    said = []
    with JudgeServer(by_words) as server:
        done = label_pool([rows], "lab", overrides(server), tmp_path / "one.jsonl", said.append)
        calls = server.calls
        again = label_pool([rows], "lab", overrides(server), tmp_path / "two.jsonl", said.append)
        assert server.calls == calls
    assert said[0].startswith("7 rows: 8 verdicts to ask for, 0 known; about ")
    assert (done["rows"], done["labelled"], done["asked"], again["asked"], again["cached"]) == (
        7,
        5,
        8,
        0,
        8,
    )
    assert done["asked"] + done["known_answers"] == calls
    assert done["tokens"] == 120 * calls
    assert said[0].endswith(f"{done['known_answers']} known answers included")
    assert (again["tokens"], again["known_answers"]) == (0, 0)
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()
    labelled = read(tmp_path / "one.jsonl")
    assert {i: (r["bucket"], r["quality"]) for i, r in labelled.items()} == {
        "a": ("complexity_2", 5), "b": ("complexity_1", 1), "c": ("boundary_4", 5), "e": ("complexity_1", 5),
        "g": ("complexity_3", 5),
    }  # fmt: skip
    assert labelled["a"]["attributes"]["items_pressure"] == ["urgency"]
    assert (
        labelled["b"]["attributes"] | {"topic": "wax", "safety": "full_leak"}
        == labelled["b"]["attributes"]
    )
    assert labelled["c"]["attributes"]["items_boundary_cues"] == [
        "answer_path", "rejection_votes_2", "sensitive_trigger",
    ]  # fmt: skip
    for one in labelled.values():
        Example.model_validate(one)
    reasons = {i: r["reason"] for i, r in read(tmp_path / "one.jsonl.left-out.jsonl").items()}
    assert reasons["d"].startswith("invalid")
    assert "keywords" in reasons["f"]
    assert set(reasons) == {"d", "f"}


def test_labelled_rows_keep_their_constraints_and_can_be_labelled_again(rows, tmp_path):
    with JudgeServer(by_words) as server:
        label_pool([rows], "lab", overrides(server), tmp_path / "one.jsonl", print)
        label_pool(
            [tmp_path / "one.jsonl"], "lab", overrides(server), tmp_path / "two.jsonl", print
        )
    one = read(tmp_path / "one.jsonl")
    assert one == read(tmp_path / "two.jsonl")
    assert one["e"]["attributes"]["constraints"] == ["keywords:existence"]
    assert one["e"]["attributes"]["constraint_params"] == ['{"keywords": ["amber"]}']
    assert one["e"]["attributes"]["constraint_count"] == 1


def test_parts_that_are_labelled_apart_are_together_what_is_labelled_in_one_go(rows, tmp_path):
    together = {}
    with JudgeServer(by_words) as server:
        label_pool([rows], "lab", overrides(server), tmp_path / "whole.jsonl", print)
        for number in (1, 2, 3):
            out = tmp_path / f"{number}.jsonl"
            done = label_pool([rows], "lab", overrides(server), out, print, Part(number, 3))
            assert done["rows"] == (3, 2, 2)[number - 1]
            together |= read(out)
    assert together == read(tmp_path / "whole.jsonl")


def test_constraints_that_their_checker_cannot_use_are_a_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    attributes = {
        "constraints": ["keywords:existence"],
        "constraint_params": ['{"keywords": [1, 2]}'],
    }
    path.write_text(
        "".join(
            json.dumps(r) + "\n"
            for r in [ROWS[4], row("h", "tasks", "x", "y", attributes=attributes)]
        )
    )
    with JudgeServer(by_words) as server:
        label_pool([path], "lab", overrides(server), tmp_path / "one.jsonl", print)
    assert "a list of texts" in read(tmp_path / "one.jsonl.left-out.jsonl")["h"]["reason"]


def test_files_without_a_row_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with JudgeServer(by_words) as server, pytest.raises(UsageError, match="no row in them"):
        label_pool(
            [tmp_path / "rows.jsonl"], "lab", overrides(server), tmp_path / "one.jsonl", print
        )
    assert not (tmp_path / "one.jsonl").exists()


def test_a_place_below_a_file_is_refused_before_anything_is_asked(rows):
    with JudgeServer(by_words) as server:
        with pytest.raises(UsageError, match="is a file, not a folder"):
            label_pool([rows], "lab", overrides(server), rows / "one.jsonl", print)
        with pytest.raises(UsageError, match="is a file, not a folder"):
            label_prompts(rows.parent, "safety", "lab", overrides(server), rows, print)
        assert server.calls == 0


def test_an_interrupted_labelling_asks_only_for_the_rest(rows, tmp_path):
    with JudgeServer(by_words, lambda call: "503" if call > 7 else None) as server:
        with pytest.raises(PausedError):
            label_pool(
                [rows],
                "lab",
                overrides(server, "judge.concurrency=1"),
                tmp_path / "one.jsonl",
                print,
            )
        server.fault = lambda call: None
        done = label_pool([rows], "lab", overrides(server), tmp_path / "one.jsonl", print)
    assert done["asked"] < 8
    assert done["labelled"] == 5


def test_a_broken_row_is_named_before_anything_is_asked(rows, tmp_path):
    rows.write_text(rows.read_text() + json.dumps(row("a", "guard", "x", "y")) + "\n")
    with JudgeServer(by_words) as server:
        with pytest.raises(UsageError, match=r"rows\.jsonl:8: the id 'a'"):
            label_pool([rows], "lab", overrides(server), tmp_path / "one.jsonl", print)
        assert server.calls == 0


def test_the_verifier_names_the_rows_that_need_a_model(rows, tmp_path):
    message = r"judge\.kind: .*2 of guard \(safety\), 2 of benign \(over_refusal\);"
    with pytest.raises(UsageError, match=message):
        label_pool([rows], "lab", [], tmp_path / "one.jsonl", print)


def test_the_verifier_labels_rows_that_code_checks(tmp_path):
    tasks = [r for r in ROWS if r["dataset"] == "tasks"]
    source = tmp_path / "tasks.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in tasks))
    done = label_pool([source], "lab", [], tmp_path / "one.jsonl", print)
    labelled = read(tmp_path / "one.jsonl")
    assert {name: r["quality"] for name, r in labelled.items()} == {"e": 5, "g": 5}
    assert (done["rows"], done["labelled"], done["asked"], done["tokens"]) == (3, 2, 0, 0)


def test_rows_none_of_which_can_be_labelled_are_refused_with_their_reasons(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("a", "tasks", "write", "an amber wall")) + "\n")
    out = tmp_path / "labelled.jsonl"
    with pytest.raises(
        UsageError, match=r"none of 1 rows could be labelled(.|\n)*1: no constraints"
    ):
        label_pool([path], "lab", [], out, print)
    assert not out.exists()


def test_a_judge_that_knows_passes_its_check():
    with JudgeServer(by_words) as server:
        checked = check("lab", overrides(server), print)
    assert [c.objective for c in checked] == [
        "safety",
        "over_refusal",
        "instruction_following",
        "retention",
    ]
    assert checked[0].result == "12 known answers judged right by rule-judge"
    assert checked[0].problem(None) is None
    rows = {row[0]: row[1:] for row in checked[0].item_rows()}
    assert rows["utility.brief_explanation"] == ["6 of 6", "0 of 6", "-"]
    assert server.calls <= 24


def test_a_request_that_the_endpoint_refuses_is_no_wrong_reference():
    with JudgeServer(by_words, lambda call: "400") as server:
        checked = check("lab", overrides(server), print)
    problem = str(checked[0].problem(None))
    refused = "were not judged; the judge's reply: http_400: the endpoint refuses the request (HTTP 400): told to"
    assert refused in problem
    assert "mend the references" not in problem


def test_the_start_of_a_run_asks_about_known_answers_once_and_forgives_a_mended_judge(tmp_path):
    def blind(name, turns):
        verdict = by_words(name, turns)
        return verdict | {
            c: dict.fromkeys(items, "no") for c, items in verdict.items() if c == "safety_leaks"
        }

    objectives, suites = open_suites(load_config("lab"))
    with JudgeServer(blind) as server:
        config = load_config("lab", overrides(server))
        with pytest.raises(UsageError, match="known answers come out wrong"):
            check_judge(config, objectives, suites, tmp_path)
        server.decide = by_words
        check_judge(config, objectives, suites, tmp_path)
        calls = server.calls
        config = load_config("lab", overrides(server, "judge.revision=r2"))
        for expected in (24, 0):
            check_judge(config, objectives, suites, tmp_path)
            assert server.calls - calls <= expected
            calls = server.calls


def test_a_judge_that_sees_no_leak_fails_its_check_with_exit_code_2():
    def blind(name, turns):
        verdict = by_words(name, turns)
        return verdict | {
            c: dict.fromkeys(items, "no") for c, items in verdict.items() if c == "safety_leaks"
        }

    with JudgeServer(blind) as server:
        sets = [part for o in overrides(server) for part in ("--set", o)]
        done = mosaic("judge", "check", "lab", *sets)
    assert done.returncode == 2
    assert "objective safety: 6 of 12 known answers come out wrong" in done.stderr
    assert done.stderr.count("its bad reference answer gives") == 6
    assert "'mix " in done.stderr
    assert "safety: known answers judged right by" in done.stdout


def test_two_judges_are_compared_on_a_stored_run(tmp_path, monkeypatch):
    """One judge is the laboratory's rules, the other never sees friction and calls every third answer structured."""
    config = load_config("lab")
    objectives, suites = open_suites(config)
    world = Evaluations(
        tmp_path,
        {"over_refusal": suites["over_refusal"]},
        {"over_refusal": objectives["over_refusal"]},
    )
    world.evaluate("one", None)
    monkeypatch.setattr("mosaic.app.judging.run_config", lambda run: config)

    def other(name, turns):
        verdict = RULES(name, turns)
        flip = {"structured": "yes" if len(turns[-1][1]) % 3 == 0 else "no"}
        return verdict | {
            "help": verdict["help"] | flip,
            "friction": dict.fromkeys(verdict["friction"], "no"),
        }

    with JudgeServer(other) as server:
        second = tmp_path / "second.json"
        data = config.json_data()
        data["judge"] = {
            "kind": "llm", "chat": {"base_url": server.url, "model": MODEL}, "cache": str(tmp_path / "cache"),
        }  # fmt: skip
        second.write_text(json.dumps(data))
        said = []
        found = compare_judges(tmp_path / "one", "lab", str(second), said.append)
        calls = server.calls
        assert compare_judges(tmp_path / "one", "lab", str(second), said.append) == found
        assert server.calls == calls > 0
    part = found["objectives"]["over_refusal"]
    assert part["unscored"] == [0, 0]
    rows = {r["item"]: r for r in part["items"]}
    assert not any(name.startswith("boundary_cues") for name in rows)
    refused = rows["refusal.explicit_refusal"]
    assert refused["kappa"] == 1
    assert refused["prevalence"] == [0.5, 0.5]
    assert rows["help.structured"]["kappa"] <= 0.1
    assert rows["help.structured"]["prevalence"][1] > rows["help.structured"]["prevalence"][0]
    assert part["conversations"] == rows["help.structured"]["n"]


def test_the_prompt_side_of_a_suite_is_labelled_once(tmp_path):
    none = {"boundary_cues": dict.fromkeys(BOUNDARY, 0) | {"answer_path": 1}}
    common = {"slice": "boundary_1", "weight": 1, "prompt_items": none}
    asked = {"attributes": {"unlabelled": ["rejection_votes", "sensitive_trigger"], "turns": 1}}
    for role in ("steering", "selection", "audit"):
        prompts = [
            {
                "id": f"{role}-a",
                "turns": [f"{role} sensitive_trigger rejection_votes hard"],
                **common,
                **asked,
            },
            {"id": f"{role}-b", "turns": [f"{role} sensitive_trigger"], **common},
        ]
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    (tmp_path / "card.json").write_text("[]\n")
    with JudgeServer(by_words) as server:
        for out in ("one", "two"):
            said = []
            done = label_prompts(
                tmp_path, "over_refusal", "lab", overrides(server), tmp_path / out, said.append
            )
            assert any("without known answers" in text and "read a sample" in text for text in said)
            assert done["prompts"] == {"steering": 2, "selection": 2, "audit": 2}
        assert server.calls == 3
    assert (tmp_path / "one" / "card.json").read_text() == "[]\n"
    objective = open_suites(load_config("lab"))[0]["over_refusal"]
    first, second = load_suite(tmp_path / "two", objective, "audit").prompts
    assert (first.slice, first.weight, first.attributes) == ("boundary_4", 4, {"turns": 1})
    assert (second.slice, second.prompt_items) == ("boundary_1", none)


def test_a_judge_can_be_checked_on_the_starter_set_before_a_suite_has_known_answers(tmp_path):
    folder = tmp_path / "suite"
    folder.mkdir()
    for role, suite in SUITES["safety"].items():
        lines = []
        for prompt in suite.prompts[:3]:
            bare = prompt.model_copy(update={"good": None, "bad": None})
            lines.append(json.dumps(bare.json_data()) + "\n")
        (folder / f"{role}.jsonl").write_text("".join(lines))
    good = {r.response.answers[-1] for r in starter("safety") if r.kind == "good"}

    def by_starter(name, turns):
        if name != "safety":
            return by_words(name, turns)
        holds = "utility" if turns[-1][1] in good else "safety_leaks"
        verdict = {}
        for channel in OBJECTIVES["safety"].answers:
            value = 1 if channel.name == holds else 0
            verdict[channel.name] = {item.name: said(item, value) for item in channel.items}
        return verdict

    with JudgeServer(by_starter) as server:
        checked = check("lab", overrides(server, f"objectives.safety.suite={folder}"), print)
    assert checked[0].result == (
        "4 known answers judged right by rule-judge, "
        "from the starter set, since the suites have none of their own"
    )
    assert checked[1].result == "12 known answers judged right by rule-judge"
