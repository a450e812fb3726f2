"""The whole loop on a small laboratory: run, interrupt, resume, report, export. Nothing is simulated."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mosaic.app.shapes import Report
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.data import Stock
from mosaic.core.types.records import EstimateInfluence, Observe
from tests.command_line import mosaic, start

SMALL = [
    "rounds=2",
    "calibration.repeats=2",
    "budget.tokens_per_round=1500",
    "generator.max_new_tokens=8",
    "methods.sft.batch_size=4",
    "methods.sft.epochs=1",
    "keep=all",
]


def sets(*more):
    return [part for override in (*SMALL, *more) for part in ("--set", override)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A laboratory with a base that has learned nothing and suites of a few prompts per slice."""
    from mosaic.lab.build import build

    folder = tmp_path_factory.mktemp("lab") / "lab"
    build(folder, 7, steps=4, chats=300)
    for path in (folder / "suites").rglob("*.jsonl"):
        kept = 10 if path.parent.name == "retention" else 6  # a floor needs more than a few
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for i, line in enumerate(lines) if i % 32 < kept) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    done = mosaic("run", lab / "config.yaml", "--run-dir", folder, *sets(), "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_report_has_its_documented_shape(finished):
    _, report = finished
    Report.model_validate_json(json.dumps(report), strict=True)
    assert {
        "config_digest",
        "rounds",
        "calibration",
        "archive",
        "chosen",
        "audit",
        "hypervolume",
        "budget",
    } <= set(report)
    assert [r["round"] for r in report["rounds"]] == [0, 1, 2]
    for round_ in report["rounds"][1:]:
        assert {
            "plan",
            "scores",
            "tokens",
            "seconds",
            "accepted",
            "reason",
            "adapter",
            "forecast",
        } <= set(round_)
        assert round_["tokens"]["selected"] <= round_["tokens"]["budget"] == 1500
        assert {"plan", "curate", "train", "generate", "judge", "other"} <= set(round_["seconds"])
        score = round_["scores"]["safety"]["selection"]
        assert {"mean", "low", "high", "n_scored", "n_unscored"} <= set(score)
    audit = report["audit"]
    assert {"base", "static", "chosen", "gain", "against_base", "fell"} < set(audit)
    assert report["static"]["trainings"] == 2
    assert set(report["static"]["selection"]) == set(audit["base"])
    assert report["headline"]
    assert report["unknown"]
    if report["chosen"] is not None:
        ahead = audit["chosen"]["safety"]["mean"] - audit["static"]["safety"]["mean"]
        assert audit["gain"]["safety"]["mean"] == pytest.approx(ahead)
    assert report["budget"]["spent"] <= report["budget"]["total"] == 4 * 1500
    assert len(report["calibration"]["scores"]) == 2
    assert len(report["hypervolume"]) == 3


def test_a_finished_run_is_not_run_again(finished, lab):
    folder, report = finished
    before = Journal.open(folder).rows()
    done = mosaic("run", lab / "config.yaml", "--run-dir", folder, *sets(), "--json")
    assert json.loads(done.stdout)["rounds"] == report["rounds"]
    assert Journal.open(folder).rows() == before


def test_another_config_is_refused_with_the_difference(finished, lab):
    folder, _ = finished
    done = mosaic("run", lab / "config.yaml", "--run-dir", folder, *sets("seed=9"))
    assert done.returncode == 2
    assert "seed: 1 -> 9" in done.stderr


def test_every_view_reads_the_run(finished, tmp_path):
    folder, _ = finished
    for command in ("status", "report", "profile", "trace"):
        plain, as_json = mosaic(command, folder), mosaic(command, folder, "--json")
        assert (plain.returncode, as_json.returncode) == (0, 0), plain.stderr
        assert json.loads(as_json.stdout)
        assert plain.stdout.strip()
    assert mosaic("profile", folder, "--round", 9).returncode == 2
    page = tmp_path / "report.html"
    assert mosaic("report", folder, "--html", page).returncode == 0
    text = page.read_text()
    assert "<svg" in text
    for outside in ('src="http', "<script", "<link", "@import", "url("):
        assert outside not in text.replace("url(#", "")


def test_the_trace_tells_what_was_asked_and_concluded(finished):
    folder, _ = finished
    events = json.loads(mosaic("trace", folder, "--round", 1, "--json").stdout)
    kinds = [e["kind"] for e in events]
    assert (
        kinds.index("observed")
        < kinds.index("planned")
        < kinds.index("checked")
        < kinds.index("decided")
    )
    assert kinds.index("curated") < kinds.index("trained") < kinds.index("measured")
    planned = next(e for e in events if e["kind"] == "planned")
    assert any("conclusion" in call for call in planned["calls"])
    assert planned["plan"]["rationale"]


def test_export_gives_a_peft_adapter_and_cards(finished, tmp_path, lab):
    folder, _ = finished
    out = tmp_path / "out"
    done = mosaic("export", folder, "--round", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.iterdir()} == {
        "adapter",
        "training_set.parquet",
        "plan.json",
        "README.md",
        "DATASET.md",
    }
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    AutoPeftModelForCausalLM.from_pretrained(out / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    own = AutoTokenizer.from_pretrained(lab / "model")
    assert tokenizer.chat_template == own.chat_template
    assert tokenizer.get_vocab() == own.get_vocab()
    recipe = json.loads((out / "adapter" / "recipe.json").read_text())
    assert recipe["recipe"]["kind"] == "sft"
    assert recipe["base_model"] == str(lab / "model")


def test_a_merged_export_says_what_base_and_adapter_say(finished, tmp_path):
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = finished
    out = tmp_path / "out"
    done = mosaic("export", folder, "--round", 1, "--out", out, "--merge")
    assert done.returncode == 0, done.stderr
    assert "model" in {p.name for p in out.iterdir()}
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    chat = [{"role": "user", "content": "how do i store the bread ?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    parts = AutoPeftModelForCausalLM.from_pretrained(out / "adapter", dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(out / "model")
    assert whole.dtype == torch.float32
    with torch.inference_mode():
        close = torch.allclose(parts(**ids).logits, whole(**ids).logits, atol=1e-4)
        first = parts.generate(**ids, max_new_tokens=16, do_sample=False)
        second = whole.generate(**ids, max_new_tokens=16, do_sample=False)
    assert close
    assert first.tolist() == second.tolist()


def test_an_export_whose_base_is_another_by_now_is_refused(finished, lab, tmp_path):
    folder, _ = finished
    path = lab / "model" / "config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), "rms_norm_eps": 0.5}))
        done = mosaic("export", folder, "--round", 1, "--out", tmp_path / "out")
    finally:
        path.write_text(before)
    assert done.returncode == 2
    assert "is not the model that the run was trained on" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "steps", [14, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 30, 45))]
)
def test_a_run_that_was_killed_resumes_to_the_same_end(finished, lab, tmp_path, steps):
    """Kill the controller as soon as the journal holds so many steps; the resumed run equals the uninterrupted one."""
    _, report = finished
    folder = tmp_path / "run"
    child = start("run", lab / "config.yaml", "--run-dir", folder, *sets())
    while child.running:
        time.sleep(0.02)
        if (folder / "journal.sqlite").exists() and len(Journal.open(folder).rows()) >= steps:
            child.signal(signal.SIGKILL)
            break
    assert child.wait().returncode == -signal.SIGKILL
    (folder / "graph.sqlite").unlink(missing_ok=True)
    done = mosaic("resume", folder, "--json")
    assert done.returncode == 0, done.stderr
    resumed = json.loads(done.stdout)
    for key in ("rounds", "calibration", "archive", "chosen", "audit", "hypervolume", "budget"):
        strip = (
            (lambda rounds: [{k: v for k, v in r.items() if k != "seconds"} for r in rounds])
            if key == "rounds"
            else (lambda v: v)
        )
        assert strip(resumed[key]) == strip(report[key]), key


def test_a_stop_signal_ends_at_a_safe_point_while_a_second_controller_is_turned_away(lab, tmp_path):
    folder = tmp_path / "run"
    short = sets("rounds=1", "calibration.repeats=1")
    child = start("run", lab / "config.yaml", "--run-dir", folder, *short)
    while not (folder / "journal.sqlite").exists() or len(Journal.open(folder).rows()) < 4:
        time.sleep(0.02)
        assert child.running
    child.signal(signal.SIGSTOP)
    second = mosaic("resume", folder)
    assert second.returncode == 5
    assert f"process {child.pid}" in second.stderr
    child.signal(signal.SIGTERM)
    child.signal(signal.SIGCONT)
    stopped = child.wait(60)
    assert stopped.returncode == 130
    assert "safe point" in stopped.stderr
    assert all(row.state == "done" for row in Journal.open(folder).rows())
    changed = mosaic("resume", folder, "--set", "stop.patience=3")
    assert changed.returncode == 2
    assert "run.stop.patience: null -> 3" in changed.stderr
    done = mosaic("resume", folder, "--set", "stop.patience=3", "--accept-changes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"
    assert [e.record.changes for e in Journal.open(folder).events(kind="changed")] == [
        ["run.stop.patience: null -> 3"]
    ]
    assert mosaic("verify", folder).returncode == 0


def test_a_budget_that_cannot_pay_the_first_round_exits_4(lab, tmp_path):
    done = mosaic(
        "run", lab / "config.yaml", "--run-dir", tmp_path / "r", *sets("budget.tokens_total=4000")
    )
    assert done.returncode == 4
    assert "cannot pay calibration and the first planned round" in done.stderr
    assert not (tmp_path / "r").exists()


def test_validate_checks_everything_and_names_what_is_wrong(lab):
    done = mosaic("validate", lab / "config.yaml", "--full", *sets(), "--json")
    assert done.returncode == 0, done.stderr
    assert {"pool", "suites safety", "adapter recipe", "dry mixture", "cost", "smoke"} <= {
        f["check"] for f in json.loads(done.stdout)
    }
    for override in (
        "base_model=nowhere",
        "pool=nowhere",
        "objectives.safety.suite=nowhere",
        "objectives.safety.datasets=[nobody]",
    ):
        done = mosaic("validate", lab / "config.yaml", *sets(override))
        assert done.returncode == 2, override
        assert "Traceback" not in done.stderr


def test_a_pool_that_cannot_serve_every_data_set_is_refused(lab):
    from mosaic.app.config_file import load_config
    from mosaic.app.validation import check_pool as _pool
    from mosaic.app.wiring import open_inputs
    from mosaic.core.errors import UsageError

    config = load_config(str(lab / "config.yaml"), SMALL)
    inputs = open_inputs(config)
    stock = inputs.pool.stock(4)
    most = sum(s.tokens for per in stock.values() for s in per.values())

    def check(stock=stock, **limits):
        pool = inputs.pool
        parts = {"column": pool.column, "manifest": pool.manifest, "longest": pool.longest}
        pool = SimpleNamespace(stock=lambda quality: stock, datasets=list(stock), **parts)
        changes = {"limits": config.limits.model_copy(update=limits)}
        budget = config.budget.model_copy(update={"tokens_per_round": 2 * most})
        return _pool(
            config.model_copy(update={**changes, "budget": budget}), replace(inputs, pool=pool)
        )

    assert check(max_repeat=2).check == "pool"
    with pytest.raises(UsageError, match=r"limits\.max_repeat = 1, cannot fill"):
        check()
    poor = {**stock, "benign": {b: Stock(rows=0, tokens=0) for b in stock["benign"]}}
    with pytest.raises(UsageError, match=r"no row of \['benign'\] has quality 4 or better"):
        check(poor, max_repeat=4)


def test_a_pool_that_was_counted_otherwise_is_refused(lab, tiny_model):
    from mosaic.app.config import MethodsConfig
    from mosaic.app.config_file import load_config
    from mosaic.app.validation import _counted, _mixture
    from mosaic.app.wiring import open_inputs
    from mosaic.core.errors import UsageError

    config = load_config(str(lab / "config.yaml"), SMALL)
    inputs = open_inputs(config)
    short = config.model_copy(
        update={
            "methods": MethodsConfig(sft=config.methods.sft.model_copy(update={"max_length": 64}))
        }
    )
    with pytest.raises(UsageError, match=r"a row has \d+ tokens, methods\.sft\.max_length is 64"):
        _counted(short, inputs)
    with pytest.raises(UsageError, match="counted with another tokenizer or chat template"):
        _counted(config.model_copy(update={"base_model": str(tiny_model)}), inputs)
    tiny = config.model_copy(
        update={"budget": config.budget.model_copy(update={"tokens_per_round": 1})}
    )
    with pytest.raises(UsageError, match="not one row of the pools' own mixture fits"):
        _mixture(tiny, inputs)


def test_a_run_without_a_measured_round_has_a_report(lab, tmp_path):
    from mosaic.app import runs
    from mosaic.app.config_file import load_config
    from mosaic.app.wiring import open_inputs, run_digests

    config = load_config(str(lab / "config.yaml"), SMALL)
    folder = tmp_path / "begun"
    runs.create(folder, config, run_digests(config, open_inputs(config)))
    done = mosaic("report", folder, "--html", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    assert "still closed" in (tmp_path / "report.html").read_text()


def test_a_planner_that_fails_is_replaced_visibly(lab, tmp_path, monkeypatch):
    from agent.planners.surrogate import SurrogatePlanner
    from mosaic.app import runs
    from mosaic.app.config_file import load_config
    from mosaic.app.loop import execute
    from mosaic.app.views.report_data import report_data
    from mosaic.core.errors import BoundaryError

    def fails(self, observation, toolbox, n=1):
        raise BoundaryError("no answer")

    monkeypatch.setattr(SurrogatePlanner, "propose", fails)
    config = load_config(str(lab / "config.yaml"), [*SMALL, "rounds=1", "calibration.repeats=1"])
    folder = tmp_path / "run"
    execute(folder, config, True, lambda text: None)
    round_ = report_data(folder).rounds[1]
    assert round_.planner == "need"
    assert "no answer" in round_.replaced.reason
    assert runs.run_config(folder) == config


def test_the_plain_loop_of_the_examples_runs_the_same_nodes(lab, tmp_path):
    from examples.plain_loop import main
    from mosaic.app.views.report_data import report_data

    folder = tmp_path / "plain"
    main(folder, str(lab / "config.yaml"), (*SMALL, "rounds=1", "calibration.repeats=1"))
    report = report_data(folder)
    assert report.state == "finished"
    assert [r.round for r in report.rounds] == [0, 1]


def test_the_example_configs_parse():
    from pathlib import Path

    from mosaic.app.config_file import load_config

    for path in Path("examples").glob("*.yaml"):
        assert load_config(str(path)).objectives


def test_planner_ideal_moves_by_what_was_estimated_and_the_report_draws_it(lab, tmp_path):
    asked = ("planner={kind: ideal, step: 0.3}", "influence.tokens_per_bucket=150", "rounds=1")
    folder = tmp_path / "ideal"
    command = ("run", lab / "config.yaml", "--run-dir", folder, *sets(*asked), "--json")
    done = mosaic(*command)
    assert done.returncode == 0, done.stderr
    (round_,) = json.loads(done.stdout)["rounds"][1:]
    assert round_["planner"] == "ideal"
    assert round_["seconds"]["influence"] > 0
    journal = Journal.open(folder)
    try:
        estimated = journal.steps(EstimateInfluence)
        assert len({step.inputs.adapter for step in estimated}) == 2
        told = Store(folder).get_json(journal.steps(Observe)[0].result.observation)
    finally:
        journal.close()
    assert len(told["influence"]["adapters"]) == 2
    estimated = {bucket["dataset"] for bucket in told["influence"]["buckets"]}
    assert estimated == {"guard", "benign", "tasks", "talk", "lessons"}
    page = folder / "report.html"
    mosaic("report", folder, "--html", page)
    assert "Influence of buckets" in page.read_text()
    assert "influence s</th>" in page.read_text()
    # What is filed is damaged nowhere, and nothing is estimated again.
    assert mosaic("verify", folder).returncode == 0
    again = mosaic("resume", folder, "--json")
    assert json.loads(again.stdout) == json.loads(done.stdout)


@pytest.mark.parametrize("asked", ["planner={kind: ideal}", "stop.at_equilibrium=true"])
def test_what_reads_influence_needs_the_config_to_ask_for_it(lab, asked):
    done = mosaic("validate", lab / "config.yaml", *sets(asked))
    assert done.returncode == 2
    assert "influence: {}" in done.stderr


def test_references_that_a_suite_lacks_come_from_answers_that_were_judged(lab, tmp_path):
    copy = tmp_path / "lab"
    shutil.copytree(lab, copy)
    for path in (copy / "suites").glob("*/steering.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if path.parent.name == "safety":
            del lines[1:]  # too few for an influence, whatever is answered
        bare = [json.dumps({**line, "good": None, "bad": None}) for line in lines]
        path.write_text("\n".join(bare) + "\n")
    asked = sets(
        "influence.tokens_per_bucket=150",
        "rounds=1",
        "generator.max_new_tokens=16",
        # Enough training that some answers change and so score differently.
        "methods.sft.learning_rate=1e-2",
        "methods.sft.epochs=6",
    )
    done = mosaic("validate", copy / "config.yaml", *asked)
    assert done.returncode == 0, done.stderr
    assert "the best and the worst answer of the base and the calibration" in " ".join(
        done.stdout.split()
    )
    folder = tmp_path / "run"
    done = mosaic("run", copy / "config.yaml", "--run-dir", folder, *asked)
    assert done.returncode == 0, done.stderr
    assert re.search(r"no influence on .*safety.*: too few steering prompts", done.stderr)
    journal = Journal.open(folder)
    try:
        told = Store(folder).get_json(journal.steps(Observe)[0].result.observation)["influence"]
    finally:
        journal.close()
    enough = {name for name, count in told["prompts"].items() if count["used"] >= 2}
    assert enough
    assert "safety" not in enough
    assert set(told["buckets"][0]["effects"]) == enough
    page = tmp_path / "report.html"
    mosaic("report", folder, "--html", page)
    assert re.search(r"None on .*safety: too few references that differ", page.read_text())
