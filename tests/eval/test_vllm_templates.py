"""A vLLM server renders as training does: the same template, the same day, the same ends."""

import shutil

import pytest

from eval.generators.adapter_probe import PROMPTS, AdapterProbe, Continuation, ProbeError
from eval.generators.base import VllmGeneratorConfig
from eval.generators.vllm import VllmGenerator
from eval.rendering.pins import CLOCK_PIN
from eval.rendering.tokenizer import load_tokenizer

DATED = "<|system|>Today is {{ strftime_now('%d %B %Y') }}<|end|>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.fixture
def base(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "base")
    return tmp_path / "base"


def bent(base, text):
    path = base / "chat_template.jinja"
    path.write_text(text + path.read_text())


def command_of(monkeypatch, base, folder, template=None):
    monkeypatch.setattr("eval.generators.vllm_server.find_vllm", lambda: "vllm")
    generator = VllmGenerator(base, VllmGeneratorConfig(), 8, folder, template=template)
    return " ".join(generator.server.command(8000))


def test_a_server_is_given_the_template_where_it_is_not_the_folders(monkeypatch, base, tmp_path):
    assert "--chat-template" not in command_of(monkeypatch, base, tmp_path / "logs")
    own = tmp_path / "own.jinja"
    own.write_text((base / "chat_template.jinja").read_text() + "{# mine #}")
    file = tmp_path / "logs" / "chat_template.jinja"
    assert f"--chat-template={file}" in command_of(monkeypatch, base, tmp_path / "logs", own)
    assert file.read_text() == own.read_text()
    bent(base, DATED)
    assert f"--chat-template={file}" in command_of(monkeypatch, base, tmp_path / "logs")
    assert file.read_text() == load_tokenizer(base).chat_template
    assert CLOCK_PIN in file.read_text()


def test_the_end_that_is_taught_is_among_the_stop_tokens_of_a_request(base, tmp_path):
    (base / "generation_config.json").write_text('{"eos_token_id": 4}')
    generator = VllmGenerator(base, VllmGeneratorConfig(), 8, tmp_path / "logs")
    taught = load_tokenizer(base).convert_tokens_to_ids("<|end|>")
    assert generator.stops == sorted({taught, 4})


def test_an_attached_server_that_renders_otherwise_is_told_how_to_start(
    monkeypatch, base, tmp_path
):
    bent(base, DATED)
    config = VllmGeneratorConfig(base_url="http://127.0.0.1:9/v1")
    generator = VllmGenerator(base, config, 8, tmp_path / "logs")
    served = [Continuation([1, 2], [3], [-1.0]) for _ in PROMPTS]
    monkeypatch.setattr(generator, "_continue_prompts", lambda names: [served])
    file = tmp_path / "logs" / "chat_template.jinja"
    with pytest.raises(ProbeError, match=f"start it with `--chat-template {file}`"):
        generator._check_base()
    assert file.is_file()


def test_a_prompt_that_the_template_refuses_is_left_out_of_the_probe(base):
    bent(base, NO_SYSTEM)
    probe = AdapterProbe(base, "float32")
    assert [chat for chat, _ in probe.prompts] == [c for c in PROMPTS if c[0]["role"] == "user"]
    served = [Continuation(ids, [5], [-1.0]) for _, ids in probe.prompts]
    probe._check_rendering(served * 2)
    with pytest.raises(ProbeError):
        probe._check_rendering(served[1:])
