"""The command line as a person meets it: bad input gives one clear message and exit code 2."""

import json
import os
import resource
import subprocess
import sys

import pytest

from mosaic.app.config_file import BUNDLED, load_config
from mosaic.app.schemas import schema_names, schema_of
from mosaic.core.errors import UsageError

ENV = {**os.environ, "PYTHONPATH": os.getcwd(), "COLUMNS": "200"}


def mosaic(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "mosaic", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENV,
    )


@pytest.mark.parametrize("command", [(), ("run",), ("pool", "build"), ("judge", "check")])
def test_short_and_long_help_say_the_same(command):
    short, long = mosaic(*command, "-h"), mosaic(*command, "--help")
    assert short.returncode == 0
    assert short.stdout == long.stdout != ""


def test_the_version_is_that_of_the_package():
    from mosaic import __version__

    done = mosaic("--version")
    assert (done.returncode, done.stdout) == (0, f"mosaic {__version__}\n")


def test_help_answers_at_once_and_imports_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = mosaic("run", "--help")
    assert done.returncode == 0
    # Of the processor, not of the clock: tests run beside each other.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    code = (
        "import sys; from typer.testing import CliRunner; from mosaic.app.cli.main import app\n"
        "CliRunner().invoke(app, ['--help'])\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'langgraph', 'datasets', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert seen.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("roundz=3", "roundz: unknown key"),
        ("rounds=three", "rounds: Input should be a valid integer"),
        ("budget.tokens_per_round=.nan", "budget.tokens_per_round"),
        ("planner.kind=oracle", "planner"),
        ("objectives.safety.floor=5", "floor 5.0 is above target"),
        ("objectives.safety.floor=basis", "objectives.safety"),
        ("objectives.safety.floor=6", "objectives.safety"),
        ("objectives.safety.datasets=[guard, guard]", "names a data set twice"),
        ("planner.on_failure", "write it as a.b=value"),
        ("seed=2024-13-45", "--set seed: the value is not what it looks like"),
        ("seed=!!int abc", "--set seed: the value is not what it looks like"),
        ("pool=~nosuchuser/x", "pool: '~nosuchuser/x' is not a path"),
        ('objectives.safety.suite="a\\0b"', "is not a path (embedded null byte)"),
        ("limits.near_repeat=5", "limits.near_repeat: Input should be less than 2"),
        ("name=" + "a" * 300, "name: String should match pattern"),
        ("rounds=true", "rounds: Input should be a valid integer"),
        ("rounds='5'", "rounds: Input should be a valid integer"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("seed=99999999999", "seed: Input should be less than"),
    ],
)
def test_a_bad_config_value_is_named(override, message):
    with pytest.raises(UsageError) as caught:
        load_config("lab", [override])
    assert message in str(caught.value)


def test_settings_beside_a_new_kind_hold_in_any_order():
    settings = ["planner.spread=2", "planner.kind=random"]
    assert load_config("lab", settings) == load_config("lab", settings[::-1])
    assert load_config("lab", settings).planner.spread == 2
    assert (
        load_config(
            "lab", ["planner={kind: random, spread: 2}", "planner.kind=static"]
        ).planner.kind
        == "static"
    )
    assert (
        load_config("lab", ["planner.kind=random", "rounds=2", "planner.kind=static"]).planner.kind
        == "static"
    )


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "0.0002", "2.e-4"])
def test_a_learning_rate_may_be_written_as_everybody_does(tmp_path, text):
    assert (
        load_config("lab", [f"methods.sft.learning_rate={text}"]).methods.sft.learning_rate == 2e-4
    )
    path = tmp_path / "c.yaml"
    path.write_text((BUNDLED / "config.yaml").read_text().replace("1.5e-3", text))
    assert load_config(str(path)).methods.sft.learning_rate == 2e-4


def test_a_broken_config_never_shows_a_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text('judge: {kind: llm, chat: {api_key: "sk-secret"}}\nname: "\\ud800"\n')
    with pytest.raises(UsageError, match="name: half of a character") as caught:
        load_config(str(path))
    assert "sk-secret" not in str(caught.value)


def test_a_path_that_is_set_counts_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("lab", ["pool=mine"]).pool == str(tmp_path / "mine")
    assert load_config("lab").pool.endswith("data/pool")


def test_stopping_at_targets_needs_one():
    gone = [
        f"objectives.{o}.target=null" for o in ("safety", "over_refusal", "instruction_following")
    ]
    assert load_config("lab", ["stop.at_targets=true", *gone[1:]]).stop.at_targets
    with pytest.raises(UsageError, match=r"stop\.at_targets: no objective has a target"):
        load_config("lab", ["stop.at_targets=true", *gone])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nrounds: 2\nseed: 2\n", "line 3: the key 'seed' stands twice"),
        ("name: 2024-13-45\n", "a value is not what it looks like (month must be in 1..12)"),
        ("on: 1\non: 2\n", "line 2: the key True stands twice"),
        ("seed: 1\n2024-01-01: 1\n", "not a text; quote it"),
        ("name: 2024-01-01\n", "name: date is not a kind of value here"),
        ("limits: &a {x: *a}\n", "not valid YAML: found unconstructable recursive node"),
        ("[1, 2]", "a config is a mapping"),
        ("a: [", "not valid YAML"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_errors_are_one_message_and_exit_code_2(tmp_path):
    for arguments in (
        ["run", "nothing.yaml"],
        ["report", "nothing"],
        ["score", "speed", "x"],
        ["schema", "x"],
    ):
        done = mosaic(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_init_writes_a_config_that_parses(tmp_path):
    assert mosaic("init", cwd=tmp_path).returncode == 0
    config = load_config(str(tmp_path / "mosaic.yaml"))
    assert config.base_model == str(tmp_path / "models/base")
    assert {objective.floor for objective in config.objectives.values()} == {"base"}
    assert mosaic("init", cwd=tmp_path).returncode == 2


PLAN = {
    "rationale": "r",
    "ratios": {"a": 0.5, "b": 0.5},
    "bucket_weights": {},
    "focus": {},
    "expected": {},
}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({**PLAN, "ratios": {"a": 0.5, "b": 0.4}}, "weights sum to 0.9"),
        ({**PLAN, "ratios": {"a": 0.5, "c": 0.5}}, "ratios.c: unknown_dataset"),
        ({**PLAN, "ratios": {"a": "0.5", "b": 0.5}}, "ratios.a"),
        ({**PLAN, "ratios": {"a": True, "b": 0.0}}, "ratios.a"),
        ({**PLAN, "speed": 1}, "speed: unknown key"),
        ('{"ratios": {"a": NaN}}', "NaN is not a number"),
        ('{"ratios": {"a": 1, "a": 1}}', "the key 'a' occurs twice in one object"),
        ("[" * 1_000_000, "longer than"),
        ("[" * 1000, "nested deeper"),
        ("{", "not valid JSON"),
        (json.dumps({**PLAN, "rationale": "[" * 40, "ratios": {"a": 2.0}}), "ratios"),
    ],
)
def test_a_bad_plan_is_refused_with_the_field(small_pool, tmp_path, plan, message):
    from typer.testing import CliRunner

    from mosaic.app.cli.main import app

    path = tmp_path / "plan.json"
    path.write_text(plan if isinstance(plan, str) else json.dumps(plan))
    out = tmp_path / "set.parquet"
    result = CliRunner().invoke(
        app,
        ["curate", str(path), "--pool", str(small_pool.path), "--budget", "300", "--out", str(out)],
    )
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not out.exists()


def test_curate_prints_its_documented_shape(small_pool, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    out = tmp_path / "set.parquet"
    done = mosaic(
        "curate",
        path,
        "--pool",
        small_pool.path,
        "--budget",
        300,
        "--seed",
        1,
        "--min-quality",
        2,
        "--out",
        out,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert set(data) == {"datasets", "total", "digest"}
    assert set(data["total"]) == {"requested", "selected", "short", "rows", "focus_rows"}
    assert set(data["datasets"]["a"]["buckets"]["x"]) == set(data["total"])


def test_curate_replaces_neither_plan_nor_pool(small_pool, tmp_path):
    from typer.testing import CliRunner

    from mosaic.app.cli.main import app

    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    before = (small_pool.path / "rows.arrow").read_bytes()
    for out in (plan, small_pool.path / "rows.arrow", small_pool.path / "sets" / "new.parquet"):
        arguments = [
            "curate",
            str(plan),
            "--pool",
            str(small_pool.path),
            "--budget",
            "300",
            "--out",
            str(out),
        ]
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, UsageError)
        assert "would replace" in str(done.exception)
    assert json.loads(plan.read_text()) == PLAN
    assert (small_pool.path / "rows.arrow").read_bytes() == before


def test_score_reads_stored_items(tmp_path):
    path = tmp_path / "items.jsonl"
    good = {
        "id": "i1",
        "instruction_ids": ["startend:quotation"],
        "strict": [True],
        "loose": [True],
    }
    good["note"] = "a line separator \u2028 inside a text ends no line"
    path.write_text(
        json.dumps(good, ensure_ascii=False) + "\n" + json.dumps({"id": "i2", "strict": []}) + "\n"
    )
    done = mosaic("score", "instruction_following", path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(lines[0]) == {"id", "status", "valid", "slice", "weight", "label", "score", "need"}
    assert (lines[0]["score"], lines[1]["status"], lines[1]["score"]) == (5.0, "unscored", None)
    path.write_text(json.dumps({**good, "note": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert json.loads(mosaic("score", "instruction_following", path).stdout)["score"] == 5.0
    lines = [
        "\ufeff" + json.dumps(good),
        json.dumps({**good, "strict": [float("nan")]}),
        json.dumps(good),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    done = mosaic("score", "instruction_following", path)
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == [
        "ok",
        "unscored",
        "ok",
    ]
    path.write_text("{oops\n")
    done = mosaic("score", "safety", path)
    assert (done.returncode, "items.jsonl:1" in done.stderr) == (2, True)


def test_doctor_finds_the_six_packages_here():
    done = mosaic("doctor", "--json")
    rows = {row["check"]: row["verdict"] for row in json.loads(done.stdout)}
    for name in ("mosaic", "agent", "tools", "training", "eval", "prompts"):
        assert rows[f"package {name}"] == "ok"


def test_every_schema_is_json():
    names = mosaic("schema").stdout.split()
    assert names == schema_names()
    assert json.loads(mosaic("schema", names[0]).stdout) == schema_of(names[0])
    for name in names:
        assert schema_of(name)["type"] in ("object", "array")


def test_the_bundled_config_is_complete():
    config = load_config("lab")
    assert str(BUNDLED) in config.base_model
    published = ["safety", "over_refusal", "instruction_following"]
    assert list(config.objectives) == [*published, "retention"]


def test_two_runs_that_start_at_once_get_two_folders_and_a_failed_start_leaves_none(
    tmp_path, monkeypatch
):
    from mosaic.app import runs
    from mosaic.app.loop import execute
    from mosaic.core.errors import BudgetError

    monkeypatch.chdir(tmp_path)
    config = load_config("lab")
    assert [runs.new_run(config).name for _ in range(2)] == ["lab-1", "lab-2"]
    poor = load_config("lab", ["budget.tokens_total=30000"])
    folder = runs.new_run(poor)
    with pytest.raises(BudgetError, match="calibration and the first planned round"):
        execute(folder, poor, True, lambda text: None)
    assert not folder.exists()
    with pytest.raises(UsageError, match="no run under"):
        runs.find_run("last")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "lab", "--run-dir", "taken"],
        ["curate", "plan.json", "--pool", "pool", "--budget", "0", "--out", "x"],
        ["curate", "plan.json", "--pool", "pool", "--budget", "300", "--out", "."],
        ["lab", "build", "--out", "taken"],
    ],
)
def test_an_impossible_path_or_number_is_one_message(small_pool, tmp_path, arguments):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    (tmp_path / "pool").symlink_to(small_pool.path)
    done = mosaic(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
