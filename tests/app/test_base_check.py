"""One check of base and template: what it finds, where it is asked, and a template of one's own."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from mosaic.app.base_check import check_base
from mosaic.app.cli.main import app
from mosaic.app.config_file import BUNDLED, load_config
from mosaic.app.rendering import base_identity, rendering_identity
from mosaic.app.smoke import smoke_test
from mosaic.app.validation import validate
from mosaic.app.wiring import open_inputs
from mosaic.core.errors import UsageError
from training.data.pool import Pool
from training.models.tokenizer import TokenCounter

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
)
DATED = "<|system|>Today is {{ strftime_now('%A %d %B %Y') }}<|end|>"


def mosaic(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture
def base(tmp_path):
    """A copy of the laboratory's model."""
    shutil.copytree(BUNDLED / "model", tmp_path / "base")
    return tmp_path / "base"


def template_of(base):
    return (base / "chat_template.jinja").read_text()


def plain(template):
    """The template without generation markers, as published ones are."""
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


@pytest.fixture
def rows(tmp_path):
    """Rows of the laboratory's pool as a file: the first of each bucket, a few hundred in all."""
    opened = Pool.open(BUNDLED / "pool")
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for dataset in opened.datasets:
            for bucket, where in opened.buckets(dataset).items():
                few = range(where.start, min(where.start + 12, where.end))
                for row in opened.rows(list(few)).to_pylist():
                    row |= {"dataset": dataset, "bucket": bucket, "quality": 5}
                    file.write(json.dumps(row) + "\n")
    return path


def test_validate_names_every_prompt_that_the_template_refuses(base, tmp_path):
    (base / "chat_template.jinja").write_text(NO_SYSTEM + template_of(base))
    suite = tmp_path / "suite"
    shutil.copytree(load_config("lab").objectives["safety"].suite, suite)
    named = []
    for role, positions in (("audit", (0, 3)), ("selection", (1,))):
        lines = [json.loads(line) for line in (suite / f"{role}.jsonl").read_text().splitlines()]
        for position in positions:
            lines[position]["system"] = "be brief"
            named.append((role, lines[position]["id"]))
        (suite / f"{role}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = load_config("lab", [f"base_model={base}", f"objectives.safety.suite={suite}"])
    with pytest.raises(UsageError, match="refuses 3 prompts") as caught:
        validate(config, False, lambda text: None)
    for role, identifier in named:
        assert f"safety/{role}: {identifier}: no system here" in str(caught.value)


def test_all_faults_are_in_one_report(base):
    bent = template_of(base).replace("<|end|>{% endgeneration %}", "{% endgeneration %}")
    (base / "chat_template.jinja").write_text(bent + "{% if false %}{{ lipsum() }}{% endif %}")
    with pytest.raises(UsageError) as caught:
        check_base(base)
    assert "draws lots" in str(caught.value)
    assert "learn to stop" in str(caught.value)
    done = mosaic("pool", "build", base / "none", "--model", base, "--out", base / "pool")
    assert "learn to stop" in str(done.exception)


def test_an_end_that_the_folder_does_not_name_is_added_and_said(base):
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|pad|>"
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text('{"eos_token_id": 4}')
    (_, ends) = check_base(base)
    assert "does not name <|end|> as an end: it is added to the stop tokens" in ends.result
    own = rendering_identity(BUNDLED / "model", None)["stop_token_ids"]
    assert rendering_identity(base, None)["stop_token_ids"] == sorted({*own, 4})


def test_the_day_of_a_template_is_said_recorded_and_part_of_the_identity(base, rows, tmp_path):
    (base / "chat_template.jinja").write_text(DATED + plain(template_of(base)))
    (template, _) = check_base(base)
    assert "pinned to 2024-07-26" in template.result
    assert rendering_identity(base, None)["template_day"] == "2024-07-26"
    done = mosaic("pool", "build", rows, "--model", base, "--out", tmp_path / "pool")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "pool" / "pool.json").read_text())["template_day"] == "2024-07-26"


def test_a_template_of_ones_own_is_used_by_pool_checks_training_and_answers(base, rows, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(DATED + plain(template_of(base)))
    (base / "chat_template.jinja").unlink()
    pool = tmp_path / "pool"
    refused = mosaic("pool", "build", rows, "--model", base, "--out", pool)
    assert "no chat template" in str(refused.exception)
    built = mosaic("pool", "build", rows, "--model", base, "--out", pool, "--chat-template", file)
    assert built.exit_code == 0, built.output
    (tmp_path / "mosaic.json").write_text(
        json.dumps({**load_config("lab").json_data(), "chat_template": "own.jinja"})
    )
    few = [f"base_model={base}", f"pool={pool}", "budget.tokens_per_round=1500"]
    few += ["executor.kind=subprocess", "generator.max_new_tokens=4"]
    few += ["contamination.max_share={steering: 1, selection: 1, audit: 1}"]
    config = load_config(str(tmp_path / "mosaic.json"), few)
    assert config.template == file
    findings = validate(config, True, lambda text: None)
    assert "prompts answered" in next(f.result for f in findings if f.check == "smoke")
    inputs = open_inputs(config)
    assert inputs.base_digest == base_identity(base, file) != base_identity(base, None)
    file.write_text(plain(template_of(BUNDLED / "model")) + "\n")
    with pytest.raises(UsageError, match=f"again with --model {base} --chat-template {file}"):
        validate(config, False, lambda text: None)


def test_the_smoke_test_passes_the_template_on_to_training(base, tmp_path, rows):
    """Training counts the rows again: with another template it would find other numbers."""
    file = tmp_path / "own.jinja"
    file.write_text(plain(template_of(base)).replace("{{ m.role }}|>", "{{ m.role }}|>: "))
    assert TokenCounter(base, file).digest != TokenCounter(base).digest
    pool = tmp_path / "pool"
    assert not mosaic(
        "pool", "build", rows, "--model", base, "--out", pool, "--chat-template", file
    ).exit_code
    few = [f"base_model={base}", f"pool={pool}", "budget.tokens_per_round=1500"]
    few += ["executor.kind=inline", "generator.max_new_tokens=2"]
    wrong = load_config("lab", few)
    with pytest.raises(UsageError, match="the pool counted"):
        smoke_test(wrong, open_inputs(wrong), serve=False)
    right = load_config("lab", [*few, f"chat_template={file}"])
    smoke_test(right, open_inputs(right), serve=False)


def test_pool_show_marks_what_is_learnt(monkeypatch):
    pool, model = BUNDLED / "pool", BUNDLED / "model"
    shown = mosaic("pool", "show", pool, "--model", model)
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("tokens are learnt") == 3
    assert "<|assistant|>⟦" in shown.output
    assert "<|end|>⟧" in shown.output
    named = mosaic("pool", "show", pool, "benign-0-00122", "--model", model, "--json")
    (row,) = json.loads(named.stdout)
    assert row["id"] == "benign-0-00122"
    assert row["learnt"] == sum(len(p["ids"]) for p in row["pieces"] if p["learnt"])
    assert row["tokens"] == sum(len(p["tokens"]) for p in row["pieces"])
    assert next(p["text"] for p in row["pieces"] if p["learnt"]).endswith("<|end|>")
    missing = mosaic("pool", "show", pool, "nobody", "--model", model)
    assert "no row is called nobody" in str(missing.exception)


def test_pool_show_says_if_the_pool_was_counted_otherwise(base, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(DATED + template_of(base))
    words = ("pool", "show", BUNDLED / "pool", "--model", base)
    assert "another tokenizer" not in mosaic(*words).stderr
    assert "another tokenizer" in mosaic(*words, "--chat-template", file).stderr


def test_pool_show_colours_a_terminal_only_without_no_color(monkeypatch, capsys):
    from mosaic.app.cli import pool_show

    class Terminal:
        def __init__(self, stream):
            self.stream = stream

        def isatty(self):
            return True

        def __getattr__(self, name):
            return getattr(self.stream, name)

    pool, model = BUNDLED / "pool", BUNDLED / "model"
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", Terminal(__import__("sys").stdout))
    pool_show.show_rows(pool, model, ["benign-0-00122"])
    assert "\x1b[1;32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    pool_show.show_rows(pool, model, ["benign-0-00122"])
    assert "\x1b" not in capsys.readouterr().out


def test_faults_of_folder_and_template_are_told_at_once(base):
    (base / "generation_config.json").write_text("{")
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    done = mosaic("validate", "lab", "--set", f"base_model={base}")
    assert "generation_config.json" in str(done.exception)
    assert "leaves out answer 1" in str(done.exception)


def test_a_template_that_is_no_program_is_one_fault(base):
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }")
    done = mosaic("validate", "lab", "--set", f"base_model={base}")
    assert str(done.exception).count("unexpected '}'") == 1


def test_all_prompts_that_hold_a_control_token_are_named(tmp_path):
    shutil.copytree(BUNDLED / "suites" / "safety", tmp_path / "safety")
    path = tmp_path / "safety" / "audit.jsonl"
    prompts = [json.loads(line) for line in path.read_text().splitlines()]
    for prompt in prompts[:2]:
        prompt["turns"][0] += " <|end|>"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    config = load_config("lab", [f"objectives.safety.suite={tmp_path / 'safety'}"])
    with pytest.raises(UsageError, match="control token of base_model") as refused:
        validate(config, full=False, say=lambda text: None)
    for prompt in prompts[:2]:
        assert f"the prompt {prompt['id']!r} holds <|end|>" in str(refused.value)
