"""What becomes of a job whose workers are elsewhere: death, silence, damage, another controller.

The engine here is a stand-in for Ray and Slurm alone. It runs each attempt at once, in the real
worker's code, and ends it where its script says that the worker dies.
"""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import standin_training as standin
from mosaic.app.config_file import load_config
from mosaic.app.wiring import build_executor
from mosaic.core.errors import (
    DamageError,
    PausedError,
    StopRequested,
    TrainingError,
    UsageError,
)
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.runs import TRAINING_SET, SftRecipe, Workplace
from mosaic.core.types.spending import Usage
from tools.effects.train import TrainTool
from tools.executors.base import (
    RayExecutorConfig,
    SlurmExecutorConfig,
    SubprocessExecutorConfig,
)
from tools.executors.inline import InlineExecutor
from tools.executors.remote import RemoteExecutor, State
from tools.executors.slurm import SlurmEngine
from tools.executors.subprocess import SubprocessExecutor
from training import attempt as files
from training import worker
from training.methods.base import never
from training.methods.checkpoints import carry_over
from training.models.adapter import WEIGHTS

RUNS = "benchmarks.standin_training:run"


class Killed(BaseException):
    """A worker's death: nothing of the worker's own code handles it."""


class ScriptedEngine:
    """Runs an attempt when it is started; each start takes the next word of the script.

    A number is the step after which the worker dies, `works` one that lives, `queued` one that
    never gets a worker, `mute` one that begins and goes on only when it is asked to stop, `lost` an
    engine that is gone.
    """

    def __init__(self, *script):
        self.script = list(script)
        self.started, self.ended, self.states = [], [], {}
        self.gone = False

    def start(self, attempt):
        if self.gone:
            raise PausedError("the engine is gone")
        word = self.script.pop(0)
        self.started.append(attempt)
        self.states[attempt] = State.RUNNING
        if word == "lost":
            self.gone = True
        elif word == "queued":
            self.states[attempt] = State.WAITING
        elif word == "mute":
            (attempt / files.EVENTS).write_text('{"stage": "loading"}\n')
        else:
            self.work(attempt, word)

    def work(self, attempt, word):
        def train(job, place, progress, stopping):
            def told(event):
                progress(event)
                if event.get("step") == word:
                    raise Killed

            return standin.train(job, place, told, stopping)

        with suppress(Killed):
            files.run(attempt, train)
        self.states[attempt] = State.ENDED

    def attach(self, attempt):
        return self.states.get(attempt, State.ENDED) is not State.ENDED

    def state(self, attempt):
        if self.gone:
            raise PausedError("the engine is gone")
        return self.states[attempt], "killed" if self.states[attempt] is State.ENDED else ""

    def end(self, attempt):
        self.ended.append(attempt)
        self.states[attempt] = State.ENDED

    def wait(self, seconds):
        time.sleep(0.01)
        for attempt in self.started:
            if self.states[attempt] is State.RUNNING and (attempt / files.STOP).exists():
                self.work(attempt, "works")


def executor_of(engine, folder, **limits):
    return RemoteExecutor(engine, RayExecutorConfig(**limits), folder / "logs")


def run(executor, order, progress=None, stopping=never):
    (result,) = executor.wait([executor.submit(order.job, order.place, progress)], stopping)
    return result


def weights(result):
    return (Path(result.adapter) / WEIGHTS).read_text()


@pytest.fixture
def order(tmp_path):
    def make(name="job", **options):
        return standin.order(tmp_path / "jobs", name, **options)

    return make


def test_a_job_that_is_put_back_in_the_queue_is_not_a_silent_one(order, tmp_path):
    class Queue(ScriptedEngine):
        asked = 0

        def state(self, attempt):
            self.asked += 1
            if self.asked == 200:  # two seconds, four times what a job may be silent
                self.work(attempt, "works")
            elif self.asked < 200:
                return State.WAITING, "in the queue again"
            return super().state(attempt)

    engine, made = Queue("mute"), order(steps=2)
    result = run(executor_of(engine, tmp_path, heartbeat_seconds=0.5), made)
    assert weights(result) == standin.expected(made.job)
    assert engine.ended == []


def test_a_job_whose_worker_dies_goes_on_from_its_last_checkpoint(order, tmp_path):
    engine, made, told = ScriptedEngine(5, "works"), order(steps=8, save_every=2), []
    result = run(executor_of(engine, tmp_path), made, told.append)
    assert weights(result) == standin.expected(made.job)
    assert result.adapter == made.place.out
    assert [event["step"] for event in told if "step" in event] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    lost = {"stage": "worker lost", "lost": "killed", "from_step": 4}
    assert lost in told
    assert "killed; its newest checkpoint is of step 4" in (tmp_path / "logs/train.log").read_text()


def test_a_job_that_keeps_losing_workers_where_it_stands_is_given_up(order, tmp_path):
    engine = ScriptedEngine(3, 3, 3, "works")
    with pytest.raises(TrainingError, match="lost 3 workers in a row at step 2") as caught:
        run(executor_of(engine, tmp_path), order(steps=8, save_every=2))
    assert caught.value.failure == "killed"
    assert not caught.value.repeats
    assert engine.script == ["works"]


def test_deaths_between_which_a_checkpoint_was_written_do_not_add_up(order, tmp_path):
    engine, made = ScriptedEngine(1, 2, 3, 4, 5, "works"), order(steps=6, save_every=1)
    result = run(executor_of(engine, tmp_path), made)
    assert weights(result) == standin.expected(made.job)
    assert len(engine.started) == 6


def test_what_ended_while_no_controller_lived_is_adopted_without_the_engine(order, tmp_path):
    made = order(steps=3)
    first = executor_of(ScriptedEngine("works"), tmp_path)
    first.submit(made.job, made.place)  # and this controller is killed
    again = executor_of(ScriptedEngine("lost"), tmp_path)
    again.engine.gone = True
    for _ in range(2):  # whoever is killed before the adapter is filed asks again
        assert weights(run(again, made)) == standin.expected(made.job)


def test_what_a_worker_brought_to_its_end_is_not_trained_again_by_another_executor(
    order, tmp_path, new_journal
):
    class NoExecutor:
        def submit(self, job, place, progress=None):
            raise AssertionError("trained again")

    journal = new_journal(tmp_path / "run", cap=100)
    steps = Steps(journal, Store(journal.folder))
    training_set = steps.store.put_bytes(b'{"seconds": 0}')
    tool = TrainTool(NoExecutor(), tmp_path / "base", "base", SftRecipe(epochs=3))
    job = tool.job(training_set, seed=1)
    work = journal.folder / "work" / job.content_digest[:16]
    place = Workplace(
        paths={TRAINING_SET: str(steps.store.path(training_set))},
        out=str(work / "adapter"),
        work=str(work),
    )
    executor_of(ScriptedEngine("works"), tmp_path).submit(job, place)  # and this run is stopped
    adapter = tool.train(steps, job, Usage(trained=10))
    filed = steps.store.path(adapter.digest) / WEIGHTS
    assert filed.read_text() == standin.expected(job)
    assert adapter.tokens == 3
    assert not work.exists()


def test_an_attempt_of_an_earlier_controller_is_followed_not_started_again(order, tmp_path):
    made, engine = order(steps=3), ScriptedEngine("mute")
    executor_of(engine, tmp_path).submit(made.job, made.place)
    handle = executor_of(engine, tmp_path).submit(made.job, made.place)
    assert handle.attempt == engine.started[0]
    assert len(engine.started) == 1
    engine.work(handle.attempt, "works")
    (result,) = executor_of(engine, tmp_path).wait([handle], never)
    assert weights(result) == standin.expected(made.job)


def test_a_worker_that_was_cut_off_and_the_one_in_its_place_make_one_result(order, tmp_path):
    made = order(steps=4, save_every=1)
    engine = ScriptedEngine(2, "works")
    result = run(executor_of(engine, tmp_path), made)
    stood = (Path(made.place.work) / files.DONE).read_bytes()
    cut_off, replacement = engine.started
    # It writes on in its own folder, comes to the same bytes, and is too late.
    engine.work(cut_off, "works")
    assert (Path(made.place.work) / files.DONE).read_bytes() == stood
    assert (
        files.read_done(Path(made.place.work), made.job.content_digest).attempt == replacement.name
    )
    assert weights(result) == standin.expected(made.job)


def test_of_two_that_publish_at_once_one_is_first_and_both_end_well(order, tmp_path):
    made = order(steps=1)
    engine = ScriptedEngine("mute", "mute")
    executor = executor_of(engine, tmp_path)
    handle = executor.submit(made.job, made.place)
    executor._begin(handle)
    meeting = threading.Barrier(2)

    def train(job, place, progress, stopping):
        result = standin.train(job, place, progress, stopping)
        meeting.wait()
        return result

    ended = []
    threads = [
        threading.Thread(target=lambda a=a: ended.append(files.run(a, train)))
        for a in engine.started
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [True, True]
    (result,) = executor.wait([handle], never)
    assert weights(result) == standin.expected(made.job)


def test_a_job_that_waits_for_a_worker_is_not_silent(order, tmp_path):
    engine, made = ScriptedEngine("queued"), order()
    executor = executor_of(engine, tmp_path, heartbeat_seconds=0.05, max_seconds=0.05)
    handle = executor.submit(made.job, made.place)
    since = time.monotonic()

    def stopping():
        if time.monotonic() - since > 0.3:
            engine.work(handle.attempt, "works")
        return False

    (result,) = executor.wait([handle], stopping)
    assert weights(result) == standin.expected(made.job)


@pytest.mark.parametrize("limit", ["heartbeat_seconds", "max_seconds"])
def test_a_job_that_began_and_is_silent_is_ended(order, tmp_path, limit):
    engine = ScriptedEngine("mute")
    with pytest.raises(TrainingError, match=f"executor.{limit} = 0.1") as caught:
        run(executor_of(engine, tmp_path, **{limit: 0.1}), order())
    assert caught.value.failure == "hang"
    assert engine.ended == engine.started


def test_a_silent_job_that_stops_when_it_is_ended_is_not_begun_again(order, tmp_path):
    class Obedient(ScriptedEngine):
        def end(self, attempt):
            failure = worker.Failure(error="StopRequested", message="asked to stop")
            (attempt / files.FAILURE).write_text(failure.model_dump_json())
            super().end(attempt)

    engine = Obedient("mute")
    with pytest.raises(TrainingError, match="heartbeat_seconds") as caught:
        run(executor_of(engine, tmp_path, heartbeat_seconds=0.1), order())
    assert caught.value.failure == "hang"
    assert len(engine.started) == 1


def test_an_engine_that_is_gone_pauses_the_run_and_ends_nothing(order, tmp_path):
    engine = ScriptedEngine("lost")
    with pytest.raises(PausedError, match="gone"):
        run(executor_of(engine, tmp_path), order())
    assert engine.ended == []


def test_a_result_whose_bytes_are_not_its_own_is_damage(order, tmp_path):
    made = order()
    executor = executor_of(ScriptedEngine("works"), tmp_path)
    handle = executor.submit(made.job, made.place)
    (handle.attempt / "adapter" / WEIGHTS).write_text("other")
    with pytest.raises(DamageError, match=r"DONE.json says; remove .*job.work to begin anew"):
        executor.wait([handle], never)


def test_a_done_file_that_is_not_whole_is_damage(order, tmp_path):
    made = order()
    executor = executor_of(ScriptedEngine("works"), tmp_path)
    executor.submit(made.job, made.place)
    done = Path(made.place.work) / files.DONE
    done.write_text(done.read_text()[:40])
    with pytest.raises(DamageError, match="does not hold a result; remove"):
        executor.submit(made.job, made.place)


def test_a_folder_that_holds_another_jobs_result_is_refused(order, tmp_path):
    made, other = order("job"), order("other")
    run(executor_of(ScriptedEngine("works"), tmp_path), made)
    place = other.place.model_copy(update={"work": made.place.work})
    with pytest.raises(UsageError, match="holds the result of job"):
        executor_of(ScriptedEngine("works"), tmp_path).submit(other.job, place)


def test_a_job_that_failed_says_how_and_runs_again_when_it_is_asked_for_again(order, tmp_path):
    made = order()
    data = Path(next(iter(made.place.paths.values())))
    good = data.read_text()
    data.write_text('{"wrong": "no such row"}')
    engine = ScriptedEngine("works", "works")
    with pytest.raises(UsageError, match="no such row"):
        run(executor_of(engine, tmp_path), made)
    assert "Traceback" in (tmp_path / "logs/train.log").read_text()
    data.write_text(good)
    assert weights(run(executor_of(engine, tmp_path), made)) == standin.expected(made.job)


def test_a_stop_leaves_a_checkpoint_from_which_any_executor_continues(order, tmp_path):
    made = order(steps=6)
    engine = ScriptedEngine("mute")
    with pytest.raises(StopRequested, match="stopped at step 1"):
        run(executor_of(engine, tmp_path), made, stopping=lambda: True)
    assert carry_over(made.job, Path(made.place.work), tmp_path / "elsewhere") == 1
    # The stop was for that controller alone.
    told = []
    result = run(executor_of(ScriptedEngine("works"), tmp_path), made, told.append)
    assert [event["step"] for event in told if "step" in event] == [2, 3, 4, 5, 6]
    assert weights(result) == standin.expected(made.job)


def test_a_stop_that_an_earlier_controller_asked_for_does_not_stop_this_one(order, tmp_path):
    made, engine = order(steps=6), ScriptedEngine("mute", "works")
    handle = executor_of(engine, tmp_path).submit(made.job, made.place)
    (handle.attempt / files.STOP).touch()  # and this controller is killed
    later = executor_of(engine, tmp_path)
    attached = later.submit(made.job, made.place)
    assert attached.attempt == handle.attempt
    engine.work(handle.attempt, "works")
    (result,) = later.wait([attached], never)
    assert weights(result) == standin.expected(made.job)


def test_a_job_that_waits_for_a_worker_stops_at_once(order, tmp_path):
    engine = ScriptedEngine("queued")
    with pytest.raises(StopRequested, match="before it began"):
        run(executor_of(engine, tmp_path), order(), stopping=lambda: True)
    assert engine.ended == engine.started


def test_an_incomplete_checkpoint_is_not_carried_over_and_not_removed(order, tmp_path):
    made = order(steps=4, save_every=1)
    run(executor_of(ScriptedEngine("works"), tmp_path), made)
    source = Path(made.place.work) / files.ATTEMPTS / "1"
    newest = source / "checkpoint-4"
    (newest / "MANIFEST.json").unlink()
    assert carry_over(made.job, source, tmp_path / "target") == 3
    assert newest.is_dir()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["checkpoint-3"]


# -- Slurm's jobs, as processes of this machine ---------------------------------------------------


@pytest.fixture
def slurm(tmp_path):
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    config = SlurmExecutorConfig(cluster="local")

    def make(runs=RUNS, **parameters):
        changed = config.model_copy(update={"parameters": parameters})
        return RemoteExecutor(SlurmEngine(changed, runs), changed, tmp_path / "logs")

    return make


def test_jobs_of_slurm_run_side_by_side_and_end_as_they_should(order, slurm):
    orders = [order(name, steps=3, seconds=0.2) for name in ("a", "b")]
    executor = slurm()
    handles = [executor.submit(made.job, made.place) for made in orders]
    for result, made in zip(executor.wait(handles, never), orders, strict=True):
        assert weights(result) == standin.expected(made.job)


def test_a_job_of_slurm_whose_process_is_killed_is_submitted_again(order, slurm):
    made, told = order(steps=12, seconds=0.2, save_every=1), []

    def progress(event):
        told.append(event)
        if event.get("step") == 2:
            os.kill(told[0]["process"], signal.SIGKILL)

    result = run(slurm(), made, progress)
    assert weights(result) == standin.expected(made.job)
    (lost,) = [event for event in told if "from_step" in event]
    assert 2 <= lost["from_step"] < 12


def test_a_job_of_slurm_that_is_preempted_goes_on_in_its_own_attempt(order, slurm):
    made, told = order(steps=12, seconds=0.2, save_every=1), []

    def progress(event):
        told.append(event)
        if event.get("step") == 2:
            os.kill(told[0]["process"], signal.SIGUSR2)

    result = run(slurm(), made, progress)
    assert weights(result) == standin.expected(made.job)
    assert len(list((Path(made.place.work) / files.ATTEMPTS).iterdir())) == 1
    assert len([event for event in told if "process" in event]) == 2


def test_a_later_controller_finds_the_job_that_an_earlier_one_submitted(order, slurm):
    made = order(steps=10, seconds=0.1)
    slurm().submit(made.job, made.place)
    executor = slurm()
    handle = executor.submit(made.job, made.place)
    assert handle.attempt.name == "1"
    (result,) = executor.wait([handle], never)
    assert weights(result) == standin.expected(made.job)


def has_ended(process):
    """Whether a process that was killed ends at once; one that nobody waits for stays as a zombie."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_job_of_slurm_is_ended_with_all_its_processes(order, slurm):
    made, told = order(steps=1000, seconds=0.1), []
    executor = slurm()
    wrong = order("wrong")
    Path(next(iter(wrong.place.paths.values()))).write_text('{"wrong": "no such row"}')
    handles = [executor.submit(o.job, o.place, told.append) for o in (wrong, made)]
    with pytest.raises(UsageError, match="no such row"):
        executor.wait(handles, never)
    for event in told:
        if "process" in event:
            assert has_ended(event["process"])


def test_a_parameter_that_submitit_does_not_know_is_refused_by_its_name(order, slurm):
    made = order()
    with pytest.raises(UsageError, match=r"executor.parameters.*slurm_partitoin"):
        slurm(slurm_partitoin="gpu").submit(made.job, made.place)


# -- configs --------------------------------------------------------------------------------------


def test_a_config_of_an_earlier_release_keeps_its_digest():
    assert "slots" not in SubprocessExecutorConfig().json_data()
    assert SubprocessExecutorConfig(slots=2).json_data()["slots"] == 2


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:port", "", "head:6379/x"])
def test_an_address_that_is_none_is_refused_by_its_name(address):
    with pytest.raises(ValidationError, match="is neither host:port nor auto"):
        RayExecutorConfig(address=address)


@pytest.mark.parametrize("resources", [{"CPU": -1}, {"tpu": 0}, {"GPU": float("nan")}])
def test_resources_that_are_no_amount_are_refused(resources):
    with pytest.raises(ValidationError, match=r"resources"):
        RayExecutorConfig(resources=resources)


def test_each_kind_of_a_config_is_built(tmp_path):
    kinds = {
        "inline": InlineExecutor,
        "subprocess": SubprocessExecutor,
        "slurm": RemoteExecutor,
    }
    for kind, made in kinds.items():
        config = load_config("lab", [f"executor={{kind: {kind}}}"])
        assert isinstance(build_executor(config, tmp_path), made)
