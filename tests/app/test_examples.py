"""The example configs are what this release reads, and say what the published setting takes."""

from pathlib import Path

import pytest

from mosaic.app.config_file import load_config
from mosaic.app.estimate import KnownSpeeds, SuiteSize, estimate, speeds
from mosaic.app.practice_check import method_findings
from mosaic.app.wiring import open_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
EIGHT_BILLION = 8_030_261_248


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_parses(path):
    load_config(str(path))


@pytest.mark.parametrize("name", ["one-gpu", "api-judge"])
def test_the_published_setting_and_what_it_takes(name):
    config = load_config(str(EXAMPLES / f"{name}.yaml"))
    assert (config.rounds, config.tokens_per_round) == (5, 1_000_000)
    assert (config.generator.kind, config.planner.kind, config.judge.kind) == ("vllm", "llm", "llm")
    roles = ("steering", "selection", "audit")
    turns = {"safety": 4, "over_refusal": 1, "instruction_following": 1}
    suites = [
        SuiteSize(r, 100, 100 * n, 100 * n * 60, o != "instruction_following")
        for o, n in turns.items()
        for r in roles
    ]
    found = estimate(config, suites, speeds(config, EIGHT_BILLION, True, KnownSpeeds())).parts
    assert set(found) == {"training", "generation", "judge", "planner", "run"}
    assert found["training"].tokens == 8_000_000
    # Two judged objectives: 100 prompts, twice for 9 models and once for three; 20 gold checks before each of 40 batches.
    assert found["judge"].calls == 2 * 100 * (2 * 9 + 3) + 20 * 2 * (2 * 9 + 3)
    assert found["planner"].calls == 30
    assert 1 < found["run"].hours < 24


@pytest.mark.parametrize("name", ["reward_consistency", "levels"])
def test_what_the_examples_practise_on_can_be_scored(name):
    config = load_config(str(EXAMPLES / f"{name}.yaml"))
    found = method_findings(config, open_inputs(config))
    assert "120 practice prompts" in found[0].result
