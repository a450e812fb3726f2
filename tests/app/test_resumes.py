"""A changed run passes the checks of a new one; what another release wrote is named."""

import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from benchmarks.resumes import resumes
from mosaic.app.cli.main import app
from mosaic.app.config_file import BUNDLED, load_config
from mosaic.core.errors import UsageError
from mosaic.core.tables import FILE


def mosaic(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_no_bent_input_goes_on_and_a_sound_change_does():
    rows = resumes(quick=True)
    assert [row for row in rows if row["met"] is not True] == []


@pytest.mark.parametrize("command", ["resume", "report", "status", "pending"])
def test_a_run_of_another_release_is_named_with_what_to_do(asked, command):
    folder, _ = asked
    with closing(sqlite3.connect(folder / FILE)) as db, db:
        db.execute("update meta set value = '3' where name = 'version'")
    done = mosaic(command, folder)
    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2
    message = str(done.exception)
    assert "written by another release of MOSAIC (journal version 3, this one reads 4)" in message
    assert "paying for it again" in message
    assert f"python -m mosaic run {folder / 'config.json'} --run-dir NEW" in message


def test_a_config_of_an_earlier_release_is_told_the_new_lines(tmp_path):
    path = tmp_path / "old.yaml"
    text = (BUNDLED / "config.yaml").read_text()
    path.write_text(text.replace("methods:\n  sft: {", "training:\n  {"))
    done = mosaic("validate", path)
    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2
    for words in ("training is now methods.sft", "methods:", "sft:", "learning_rate: 0.0015"):
        assert words in str(done.exception)


def test_a_setting_of_an_earlier_release_is_told_the_new_lines():
    done = mosaic("validate", "lab", "--set", "training.epochs=1")
    assert done.exception.exit_code == 2
    for words in ("training is now methods.sft", "methods:", "sft:", "epochs: 1"):
        assert words in str(done.exception)
    with pytest.raises(UsageError, match=r"judge\.canaries is now judge\.gold_checks"):
        load_config("lab", ["judge.kind=llm", "judge.chat.model=m", "judge.canaries=8"])
