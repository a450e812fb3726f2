"""Errors of a config name the key as it stands in the file, and what is allowed."""

import pytest

from mosaic.app.config_file import load_config
from mosaic.core.errors import UsageError


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["judge.kind=llm", "judge.prices.input=-1"], "judge.prices.input: Input should be"),
        (["judge.kind=llm", "judge.chat.provider=OpenAI"], "judge.chat.provider: Input should"),
        (["judge.kind=llm", "judge.pool=1"], "judge.pool: unknown key of judge llm"),
        (["judge.kind=verifier", "judge.chat={}"], "judge.chat: unknown key of judge verifier"),
        (["generator.kind=vllm", "generator.x=1"], "generator.x: unknown key of generator vllm"),
        (["planner.kind=llm", "planner.prices=3"], "planner.prices: Input should be"),
        (["judge.kind=model"], "judge: kind is one of verifier, llm"),
        (["judge={}"], "judge: says no kind"),
        (["budget.planner_tokens=9"], "budget.planner_tokens: planner.kind is profile"),
        (["budget.judge_tokens=9"], "budget.judge_tokens: judge.kind is verifier"),
    ],
)
def test_a_key_is_named_as_the_file_has_it(overrides, said):
    with pytest.raises(UsageError) as caught:
        load_config("lab", overrides)
    assert said in str(caught.value)
    assert ".llm." not in str(caught.value)


def test_limits_on_tokens_are_for_models():
    overrides = ["judge.kind=llm", "budget.judge_tokens=9"]
    assert load_config("lab", overrides).budget.judge_tokens == 9
