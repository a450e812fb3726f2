"""What a run takes: exact training tokens, evaluations counted right, hours from speeds whose origin is told."""

import json
import struct

import pytest

from eval.objectives.safety import Safety
from eval.suite import Suite
from mosaic.app.config_file import load_config
from mosaic.app.estimate import (
    KnownSpeeds,
    PracticeSize,
    Speed,
    SuiteSize,
    estimate,
    model_size,
    practised,
    speeds,
    suite_sizes,
)
from mosaic.core.types.evaluation import Prompt

SUITES = [
    SuiteSize(r, 100, 100, 10_000, True)
    for o in ("safety", "over_refusal")
    for r in ("steering", "selection", "audit")
]


def of(*overrides, given=KnownSpeeds(), gpu=True, size=8_000_000_000, suites=SUITES, rows=0):
    config = load_config("lab", list(overrides))
    return estimate(config, suites, speeds(config, size, gpu, given), rows).parts


def test_training_is_the_budget_and_the_time_follows_the_speed():
    found = of(
        "budget.tokens_per_round=500000", "methods.sft.epochs=2", given=KnownSpeeds(training=2000)
    )["training"]
    assert found.tokens == 8_000_000
    assert found.hours == pytest.approx(8_000_000 / 2000 / 3600)
    assert "at 2,000 tokens/s (given)" in found.result


def test_an_eight_billion_model_is_assumed_to_train_at_about_two_thousand_tokens_a_second():
    assert of()["training"].speed == pytest.approx(1e14 / 6 / 8e9)
    assert "(assumed)" in of()["training"].result
    assert of(gpu=False)["training"].hours > 1000 * of()["training"].hours


def test_every_model_answers_steering_and_selection_and_three_answer_audit():
    found = of("generator.max_new_tokens=100")["generation"]
    times = (
        9 * 2 * 2 + 3 * 2
    )  # base, 3 calibrations, 5 rounds; two objectives; audit of base, static and chosen
    assert found.tokens == times * 100 * 50


def test_influence_is_counted_where_it_is_asked_for_and_takes_nothing_of_the_budget():
    assert "influence" not in of()
    found = of("influence={}", given=KnownSpeeds(training=1000), rows=28_000)
    # Around two calibrations before round 1, around a round before each of the other four.
    each = 3 * 28_000 + 2 * 2 * 10_000
    assert found["influence"].tokens == 6 * each
    assert found["influence"].hours == pytest.approx(6 * each / 1000 / 3600)
    assert found["training"] == of(given=KnownSpeeds(training=1000))["training"]
    assert found["run"].hours > of(given=KnownSpeeds(training=1000))["run"].hours
    one = of("influence={}", "calibration.repeats=1", rows=28_000)["influence"]
    assert one.tokens == 5 * each
    assert "give --training-speed" in of("influence={}", size=None)["influence"].result


def test_only_a_server_of_its_own_takes_time_to_start():
    def hours(*more):
        return of("generator.kind=vllm", *more)["generation"].hours

    attached = hours("generator.base_url=http://127.0.0.1:8000/v1")
    assert hours("generator.memory=share") - attached == pytest.approx(90 / 3600)
    assert hours() - attached == pytest.approx(12 * 90 / 3600)
    assert attached == hours(
        "generator.memory=share", "generator.base_url=http://127.0.0.1:8000/v1"
    )


def test_measured_speeds_stand_before_assumed_and_behind_given_ones():
    config = load_config("lab")
    both = speeds(
        config, 10, False, KnownSpeeds(training=1.0), KnownSpeeds(training=2.0, generation=3.0)
    )
    assert both["training"] == Speed(1.0, "given")
    assert both["generation"] == Speed(3.0, "measured")
    assert both["judge"].origin == "assumed"


def test_without_a_size_the_hours_are_unknown_and_the_flag_is_named():
    found = of(size=None)
    assert found["training"].hours is None
    assert "give --training-speed" in found["training"].result
    assert found["run"].result == "about an unknown time"


def test_the_size_of_a_model_is_read_from_its_headers(tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    assert (
        model_size(tiny_model) == AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    )
    assert model_size(tmp_path) is None
    for part in (1, 2):
        header = json.dumps(
            {
                "__metadata__": {},
                f"w{part}": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
            }
        )
        raw = header.encode()
        (tmp_path / f"model-{part}.safetensors").write_bytes(
            struct.pack("<Q", len(raw)) + raw + b"\0" * 12
        )
    assert model_size(tmp_path) == 12


def test_suites_are_measured_in_prompts_turns_and_tokens():
    prompts = [Prompt(id="a", turns=["one two", "three"], system="four", slice="s", weight=1)]
    suite = Suite("safety", "audit", prompts, "digest")
    sizes = suite_sizes({"safety": Safety()}, [suite], lambda text: len(text.split()))
    assert sizes == [SuiteSize("audit", 1, 2, 4, judged=True)]


def test_a_policy_draws_answers_of_its_own_length_and_no_more_than_its_tokens():
    config = load_config(
        "examples/levels.yaml", ["generator.max_new_tokens=1024", "methods.rl.warm_share=0"]
    )
    drawn = practised(config, [PracticeSize(1, 30, 1)] * 100).drawn
    assert 0 < drawn < config.tokens_total / 2
