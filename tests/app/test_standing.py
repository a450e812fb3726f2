"""Where a run stands is said the same everywhere, and people are told when it changes."""

import http.server
import json
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from mosaic.app import notices
from mosaic.app.cli.main import app
from mosaic.app.loop import Stops
from mosaic.app.notices import Notice, NotifyConfig, send, told
from mosaic.app.progress import Bars
from mosaic.app.shapes import StageProgress
from mosaic.app.stage import read_stage
from mosaic.app.standing import noted, standing_of
from mosaic.app.stopping import stop_order, stop_run
from mosaic.core.errors import PausedError, StopRequested, UsageError, WaitingError
from mosaic.core.journal import Journal
from mosaic.core.lock import LOCK

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.truncate(0)
lock.write("process 4711")
lock.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(new_journal, tmp_path):
    """The directory of a run that a controller has taken once and left."""
    new_journal(tmp_path).close()
    return tmp_path


@pytest.fixture
def held(folder):
    """Another process that runs it."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / LOCK)], stdout=subprocess.PIPE
    )
    other.stdout.readline()
    yield folder
    other.kill()
    other.wait()


def stands(folder, finished=False):
    journal = Journal.open(folder)
    try:
        return standing_of(journal, finished=finished)
    finally:
        journal.close()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (PausedError("the judge does not answer"), "paused"),
        (StopRequested("stopped by ann: lunch"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (ValueError("a mistake"), "failed"),
    ],
)
def test_how_a_controller_ended_is_what_the_run_is(folder, error, state):
    journal = Journal.open(folder)
    journal.acquire()
    with pytest.raises(type(error)), noted(journal):
        raise error
    journal.close()
    found = stands(folder)
    assert found.state == state
    assert str(error) in found.why or isinstance(error, KeyboardInterrupt)
    assert found.next == f"python -m mosaic resume {folder}"


def test_a_controller_that_ended_without_a_word_is_dead_and_the_next_one_makes_that_good(folder):
    assert stands(folder).state == "dead"
    assert stands(folder, finished=True).state == "finished"
    journal = Journal.open(folder)
    journal.acquire()
    with pytest.raises(PausedError), noted(journal):
        raise PausedError("full")
    journal.close()
    assert stands(folder).state == "paused"


@pytest.mark.parametrize(
    ("error", "state"), [(PausedError("no money is left"), "paused"), (None, "finished")]
)
def test_a_finished_run_that_was_extended_is_what_its_next_controller_says(folder, error, state):
    """Its audit stands until another round closes."""
    for ends in (None, error):
        journal = Journal.open(folder)
        journal.acquire()
        with suppress(PausedError), noted(journal):
            if ends is not None:
                raise ends
        journal.close()
    assert stands(folder, finished=True).state == state
    journal = Journal.open(folder)
    journal.acquire()
    journal.keep("controller", began_of(journal))
    journal.close()
    assert stands(folder, finished=True).state == "dead"


def began_of(journal):
    """What a controller notes that is then killed."""
    return json.dumps({"fence": journal.fence, "process": 1, "host": "here", "at": 0.0})


def test_a_run_that_another_process_holds_is_running(held):
    found = stands(held)
    assert (found.state, found.by) == ("running", "process 4711")


def test_a_run_is_stopped_by_whom_and_why_and_only_while_it_runs(held):
    stops = Stops(held, lambda: False, None)
    assert not stops()
    stop_run(held, "the pool is wrong", by="ann")
    assert stops()
    assert stops.words("?").startswith("stopped by ann: the pool is wrong; continue: ")
    assert stop_order(held) is None, "the next controller is not stopped by it"


def test_there_is_nothing_to_stop_where_nothing_runs(folder):
    with pytest.raises(UsageError, match="nothing to stop"):
        stop_run(folder, "")
    done = CliRunner().invoke(app, ["stop", str(folder)])
    assert isinstance(done.exception, UsageError)
    assert stop_order(folder) is None


def test_the_hours_of_the_config_stop_a_run_too(folder):
    stops = Stops(folder, lambda: False, 1e-9)
    time.sleep(0.001)
    assert stops()
    assert stops.words("?").startswith("stop.hours: 1e-09 hours are over")


def test_what_a_controller_does_is_written_with_its_rate_and_told_by_stage(folder):
    lines = []
    with Bars(lines.append) as bars:
        bars.into(folder)
        bars.training({"step": 1, "steps": 4, "loss": 0.75})
        bars.training({"step": 2, "steps": 4})
        stage = read_stage(folder)
        assert (stage.what, stage.total, stage.loss) == ("training", 4, 0.75)
        bars.training({"step": 4, "steps": 4, "loss": 0.5})
        bars.generating(3, 9)
        assert read_stage(folder).what == "generating"
        assert read_stage(folder).seconds < 1, "each stage has a clock of its own"
    assert read_stage(folder) is None
    assert len(lines) == 1
    assert lines[0].startswith("  training: 4 in ")
    assert lines[0].endswith("loss 0.500")


def test_the_time_that_is_left_follows_from_the_rate():
    stage = StageProgress(what="training", done=25, total=100, seconds=50)
    assert (stage.rate, stage.left) == (0.5, 150)
    assert StageProgress(what="training", done=0, total=100, seconds=5).left is None


# -- notices ---------------------------------------------------------------------------------------

WRITE = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"


def test_a_command_is_told_what_where_and_what_comes_next(tmp_path):
    target = tmp_path / "told.json"
    config = NotifyConfig(command=[sys.executable, "-c", WRITE, str(target)])
    with pytest.raises(WaitingError), told(tmp_path / "run", config, print):
        raise WaitingError("round 1 waits")
    notice = Notice.model_validate_json(target.read_text())
    assert (notice.run, notice.state) == ("run", "waiting")
    assert notice.next == f"python -m mosaic pending {tmp_path / 'run'}"


def test_a_webhook_gets_the_same_and_its_address_may_be_a_secret(tmp_path, monkeypatch):
    got = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(500)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/secret"
    monkeypatch.setenv("HOOK", address)
    said = []
    with told(tmp_path / "run", NotifyConfig(webhook_env="HOOK"), said.append):
        pass
    server.shutdown()
    assert [notice["state"] for notice in got] == ["finished"]
    assert said == ["notify: the webhook answered 500; the run is not affected"]
    monkeypatch.delenv("HOOK")
    with pytest.raises(UsageError, match="HOOK"):
        NotifyConfig(webhook_env="HOOK").address()


def test_an_address_that_cannot_be_asked_is_said_without_the_address(monkeypatch):
    monkeypatch.setenv("HOOK", "http://127.0.0.1/secret words")
    monkeypatch.setenv("no_proxy", "*")
    said = []
    notice = Notice(run="r", folder="r", host="h", state="paused", why="", at=1.0, next="")
    send(NotifyConfig(webhook_env="HOOK"), notice, said.append)
    assert said == ["notify: the webhook did not answer: InvalidURL; the run is not affected"]


def test_a_command_that_hangs_or_is_missing_keeps_nothing_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(notices, "SECONDS", 0.3)
    notice = notices.notice_of(tmp_path, None)
    said = []
    started = time.monotonic()
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    send(NotifyConfig(command=hangs), notice, said.append)
    send(NotifyConfig(command=["/no/such/command"]), notice, said.append)
    assert time.monotonic() - started < 10
    assert len(said) == 2
    assert all("the run is not affected" in line for line in said)


def test_a_start_that_was_refused_is_not_told(tmp_path):
    target = tmp_path / "told.json"
    config = NotifyConfig(command=[sys.executable, "-c", WRITE, str(target)])
    with pytest.raises(UsageError), told(tmp_path / "run", config, print):
        raise UsageError("no such pool")
    assert not target.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither a command nor a webhook"),
        ({"webhook": "ftp://x"}, "http"),
        ({"webhook": "https://x", "webhook_env": "X"}, "same thing"),
    ],
)
def test_a_notice_that_reaches_nobody_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NotifyConfig(**fields)
