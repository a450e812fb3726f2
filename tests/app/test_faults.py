"""`validate` names all faults that do not follow from each other, and none that does."""

import json
import shutil
from dataclasses import replace

import pytest

from mosaic.app import validation
from mosaic.app.config_file import BUNDLED, load_config
from mosaic.app.faults import FaultList, SeveralFaults
from mosaic.app.validation import validate
from mosaic.app.wiring import open_inputs
from mosaic.core.errors import BoundaryError, BudgetError, UsageError


def test_a_single_fault_is_raised_as_it_was():
    faults, budget = FaultList(), BudgetError("too little")
    with faults.kept():
        raise budget
    with pytest.raises(BudgetError) as caught:
        faults.tell()
    assert caught.value is budget


def test_several_are_numbered_and_lists_are_told_as_one():
    inner = FaultList()
    inner.add(UsageError("a:\n  b"))
    inner.add(UsageError("c"))
    outer = FaultList()
    with outer.kept():
        inner.tell()
    outer.add(UsageError("d"))
    with pytest.raises(SeveralFaults) as caught:
        outer.tell()
    assert str(caught.value) == "3 faults:\n1. a:\n     b\n2. c\n3. d"
    assert caught.value.exit_code == 2


def test_what_is_no_fault_of_the_input_ends_the_checks():
    faults = FaultList()
    with pytest.raises(BoundaryError), faults.kept():
        raise BoundaryError("a server is down")
    FaultList().tell()


@pytest.fixture
def lab(tmp_path):
    """The laboratory's suites in a folder of their own, to break."""
    shutil.copytree(BUNDLED / "suites", tmp_path / "suites")
    return tmp_path


def faults_of(*overrides):
    with pytest.raises(UsageError) as caught:
        validate(load_config("lab", overrides), False, lambda text: None)
    return str(caught.value)


def test_base_pool_data_sets_suites_and_budget_are_told_at_once(lab, monkeypatch):
    audit = lab / "suites/safety/audit.jsonl"
    audit.write_text("{}\nno json\n" + audit.read_text())
    (lab / "suites/over_refusal/steering.jsonl").unlink()
    told = faults_of(
        f"base_model={lab / 'nothing'}",
        "budget.tokens_total=1",
        f"objectives.safety.suite={lab / 'suites/safety'}",
        f"objectives.over_refusal.suite={lab / 'suites/over_refusal'}",
        "objectives.instruction_following.datasets=[tusks]",
        "telemetry={otlp: http://127.0.0.1:9/v1/traces}",
    )
    assert told.startswith("5 faults:")
    for part in (
        "1. budget.tokens_total: 1 tokens cannot pay",
        f"base_model: {lab / 'nothing'}",
        "objectives.instruction_following.datasets: 'tusks' is not in the pool",
        "safety/audit.jsonl:1: ",
        "safety/audit.jsonl:2: ",
        "over_refusal/steering.jsonl: No such file",
    ):
        assert part in told


def test_what_follows_from_a_fault_is_not_told_as_another(tiny_model, monkeypatch):
    """Another base: its tokenizer counts otherwise. Nothing that reads rows by it is told besides."""
    told = faults_of(
        f"base_model={tiny_model}",
        "limits.min_quality=5",
        "objectives.retention.floor=4",
        "budget.tokens_per_round=900000",
    )
    assert "counted with another tokenizer" in told
    assert "cannot fill budget.tokens_per_round" in told
    assert "dry mixture" not in told
    assert told.startswith("2 faults:")


def test_suites_are_held_to_all_that_is_asked_of_them(lab):
    """A floor that could never hold, and prompts that are not valid, in one message."""
    path = lab / "suites/safety/selection.jsonl"
    prompts = [json.loads(line) for line in path.read_text().splitlines()]
    config = load_config("lab", ["objectives.safety.floor=3"])
    inputs = open_inputs(config)
    few = inputs.suites["safety"]["selection"]
    invalid = [prompt.model_copy(update={"valid": 0}) for prompt in few.prompts[5:]]
    suite = replace(few, prompts=[*few.prompts[:5], *invalid])
    safety = {**inputs.suites["safety"], "selection": suite}
    changed = replace(inputs, suites={**inputs.suites, "safety": safety})
    with pytest.raises(SeveralFaults) as caught:
        validation._suites(config, changed)
    assert "objectives.safety.floor: 5 in selection.jsonl" in str(caught.value)
    assert f"safety selection: 5 of {len(prompts)} prompts are valid" in str(caught.value)


def test_a_config_names_all_that_contradicts_itself():
    with pytest.raises(UsageError) as caught:
        load_config(
            "lab",
            [
                "objectives.safety.floor=5",
                "objectives.safety.target=4",
                "stop.at_equilibrium=true",
                "budget.judge_tokens=5",
                "evaluate_stages=true",
            ],
        )
    told = str(caught.value)
    for part in (
        "objectives.safety: floor 5.0 is above target 4.0",
        "stop.at_equilibrium: no influence is estimated",
        "budget.judge_tokens: judge.kind is verifier",
        "evaluate_stages: there is one method",
    ):
        assert told.count(part) == 1
