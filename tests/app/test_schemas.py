"""Every `--json` has a schema, every field of it says what it is, and what is printed fits."""

import json
import shutil

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from mosaic.app.cli.main import app
from mosaic.app.config_file import BUNDLED
from mosaic.app.schemas import schema_names, schema_of, undescribed
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.records import Curate

# The schema of what each command prints with `--json`.
PRINTED = {
    "run": "report",
    "resume": "report",
    "status": "status",
    "report": "report",
    "profile": "profile",
    "trace": "trace",
    "diff": "diff",
    "why": "why",
    "replay": "replay",
    "verify": "verify",
    "validate": "validate",
    "doctor": "doctor",
    "pending": "request",
    "approve": "decision",
    "reject": "decision",
    "respond": "decision",
    "stop": "stop-order",
    "compare": "compare",
    "pool merge": "pool-stats",
    "pool upgrade": "pool-stats",
    "curate": "curation",
    "pool import": "import",
    "pool build": "pool-stats",
    "pool stats": "pool-stats",
    "pool show": "pool-show",
    "pool label": None,  # counts by what was labelled, whose names are the objectives'
    "pool contamination": "contamination",
    "judge check": "judge-check",
    "judge compare": "judge-compare",
}


def commands(group, before=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def with_json():
    found = {}
    for name, command in commands(typer.main.get_command(app)):
        if any("--json" in option.opts for option in command.params):
            found[name] = command
    return found


def test_every_command_that_prints_json_has_a_schema():
    missing = with_json().keys() - PRINTED.keys()
    assert not missing, f"name the schema of {missing} in PRINTED, and describe it"
    assert {name for name in PRINTED.values() if name} <= set(schema_names())


@pytest.mark.parametrize("name", schema_names())
def test_every_field_says_what_it_is(name):
    assert undescribed(schema_of(name)) == [], "describe these in mosaic/app/descriptions.yaml"


def test_an_unknown_name_is_told_the_names_there_are():
    with pytest.raises(UsageError, match="there are config, plan, pool-row"):
        schema_of("nosuch")


def a_row_of(folder):
    """The id of a row that the last round was trained on."""
    import pyarrow.parquet as pq

    journal = Journal.open(folder)
    curated = journal.steps(Curate)[-1].result.training_set
    journal.close()
    return pq.read_table(Store(folder).path(curated), columns=["id"])["id"][0].as_py()


@pytest.mark.parametrize(
    "command",
    ["status", "report", "profile", "trace", "diff", "why", "replay", "verify", "pool stats"],
)
def test_what_is_printed_fits_its_schema(command, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    more = {"diff": ["0", "1"], "replay": ["--planner", "static"]}.get(command, [])
    if command == "why":
        more = [a_row_of(folder)]
    where = str(BUNDLED / "pool") if command == "pool stats" else str(folder)
    done = CliRunner().invoke(app, [*command.split(), where, *more, "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed not in ({}, None)
    jsonschema.validate(printed, schema_of(PRINTED[command]))
