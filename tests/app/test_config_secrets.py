"""A key that somebody puts into a config by mistake is refused and never shown."""

import pytest

from mosaic.app.config_file import load_config
from mosaic.core.errors import UsageError

KEY = "sk-SECRET0123456789"


@pytest.mark.parametrize(
    "override",
    [
        f"judge.chat.api_key={KEY}",
        f"judge.chat.api_key_env={KEY}",
        f"judge.chat={KEY}",
        f"judge.chat.base_url=http://u:{KEY}@h/v1",
        f"judge.chat.base_url=http://h/v1?key={KEY}",
        f"judge.chat.base_url=http://h/v1#{KEY}",
        f"judge.chat.base_url=http://h:{KEY}/v1",
        f"judge.chat.api_key='{KEY}",
        f"judge.chat.model.key={KEY}",
        f"judge.api_key={KEY}",
        f"judge.token={KEY}",
        f"judge={{chat: {{api_key: {KEY}: x}}}}",
    ],
)
def test_no_message_about_a_chat_section_shows_the_value(override):
    with pytest.raises(UsageError) as caught:
        load_config("lab", ["judge.kind=llm", "judge.chat.model=m", override])
    assert KEY not in str(caught.value)
    assert "judge" in str(caught.value)


@pytest.mark.parametrize(
    "setting", [f"base_url=http://u:{KEY}@h/v1", f"api_key_env={KEY}", f"api_key={KEY}"]
)
def test_nor_does_one_about_the_generator(setting):
    with pytest.raises(UsageError) as caught:
        load_config("lab", ["generator.kind=vllm", f"generator.{setting}"])
    assert KEY not in str(caught.value)


def test_a_config_that_is_no_yaml_is_not_quoted(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"judge: {{chat: {{api_key: {KEY}: x}}}}\n")
    with pytest.raises(UsageError, match=r"not valid YAML: .* at line 1") as caught:
        load_config(str(path))
    assert KEY not in str(caught.value)


def test_other_values_are_shown_as_before():
    with pytest.raises(UsageError, match=r"budget\.tokens_per_round: .*value: 'many'"):
        load_config("lab", ["budget.tokens_per_round=many"])
