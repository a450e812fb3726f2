"""Answers drawn by workers: equal to those of this process, drawn once, side by side.

The engine here stands in for Ray alone. It runs each attempt at once, in the real worker's code, by
the real generator, and lets a worker die where its script says so.
"""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.standins import StandIn, StandInGenerator, Witness, outcome
from eval.generators.base import SharedGenerator, TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from mosaic.core.errors import BoundaryError, StopRequested, TrainingError
from mosaic.core.journal import Journal
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.records import Generate
from mosaic.core.types.runs import GREEDY, Sampling
from tools.effects.evaluate import Evaluator
from tools.executors.answering import WorkersGenerator
from tools.executors.base import RayExecutorConfig
from tools.executors.ray import RayEngine
from tools.executors.remote import RemoteExecutor, State
from training import answering
from training import attempt as files
from training.methods.base import never

CONFIG = TransformersGeneratorConfig(batch_size=2, max_new_tokens=8)
CHATS = [("how do i store the bread ?",), ("hello", "the old bridge"), ("a", "b", "please add one")]
TEXTS = ["the bridge is old and green .", "the river"]
FEW = Sampling(temperature=1.0, n=2, seed=5)


class HereEngine:
    """Runs an attempt when it is started. The first `deaths` workers die once they have begun."""

    def __init__(self, deaths=0):
        self.deaths = deaths
        self.started = []
        self.turn = threading.Lock()

    def start(self, attempt):
        with self.turn:
            self.started.append(attempt)
            if len(self.started) <= self.deaths:
                (attempt / files.EVENTS).write_text('{"stage": "loading"}\n')
            else:
                files.run(attempt)

    def attach(self, attempt):
        return False

    def state(self, attempt):
        return State.ENDED, "killed"

    def end(self, attempt):
        pass

    def wait(self, seconds):
        pass


@pytest.fixture(autouse=True)
def let_go():
    yield
    answering.release()


@pytest.fixture
def prompts():
    found = []
    for number, turns in enumerate(CHATS):
        found.append(Prompt(id=f"p{number}", turns=list(turns), slice="s", weight=1))
    return found


@pytest.fixture
def workers(tiny_model, tmp_path):
    def make(engine, stopping=never, **limits):
        executor = RemoteExecutor(engine, RayExecutorConfig(**limits), tmp_path / "logs")
        return WorkersGenerator(
            executor, tmp_path, tiny_model, "base", CONFIG.json_data(), stopping
        )

    return make


@pytest.fixture(scope="module")
def here(tiny_model):
    return TransformersGenerator(tiny_model, CONFIG)


@pytest.mark.parametrize("sampling", [GREEDY, FEW])
def test_workers_answer_as_this_process_does(workers, here, prompts, sampling):
    assert workers(HereEngine()).generate(prompts, None, sampling) == here.generate(
        prompts, None, sampling
    )


def test_workers_read_texts_as_this_process_does(workers, here):
    assert workers(HereEngine()).log_likelihood(TEXTS, None) == here.log_likelihood(TEXTS, None)


def test_a_worker_keeps_the_base_between_shards_and_lets_go_of_it_before_it_trains(
    workers, prompts, order, tmp_path, monkeypatch
):
    loaded = []

    class Counted(TransformersGenerator):
        def __init__(self, *given, **named):
            loaded.append(self)
            super().__init__(*given, **named)

    monkeypatch.setattr(answering, "TransformersGenerator", Counted)
    generator = workers(HereEngine())
    for prompt in prompts:
        generator.generate([prompt], None)
    assert len(loaded) == 1
    made = order()
    generator.executor.submit(made.job, made.place)
    generator.log_likelihood(TEXTS, None)
    assert len(loaded) == 2


class MuteEngine(HereEngine):
    """The first `deaths` workers begin, and are not heard of until they are ended.

    `last` is what a worker still writes while it is ended.
    """

    def __init__(self, deaths, last=lambda attempt: None):
        super().__init__(deaths)
        self.last = last
        self.ended = []

    def state(self, attempt):
        return State.RUNNING, ""

    def end(self, attempt):
        self.ended.append(attempt)
        self.last(attempt)

    def wait(self, seconds):
        threading.Event().wait(0.01)


def test_answers_that_hang_with_one_worker_are_drawn_by_another(workers, here, prompts):
    engine = MuteEngine(deaths=2)
    generator = workers(engine, heartbeat_seconds=0.1)
    assert generator.generate(prompts, None) == here.generate(prompts, None)
    assert len(engine.started) == 3
    assert engine.ended == engine.started[:2]


def test_answers_that_come_while_their_worker_is_ended_are_taken(workers, here, prompts):
    engine = MuteEngine(deaths=1, last=files.run)
    generator = workers(engine, heartbeat_seconds=0.1)
    assert generator.generate(prompts, None) == here.generate(prompts, None)
    assert len(engine.started) == 1


def test_a_worker_is_ended_when_one_that_was_given_up_answers_after_all(workers, here, prompts):
    late = []

    class Late(MuteEngine):
        def wait(self, seconds):
            super().wait(seconds)
            if len(self.started) == 2 and not late:
                late.append(files.run(self.started[0]))

    engine = Late(deaths=2)
    generator = workers(engine, heartbeat_seconds=0.3)
    assert generator.generate(prompts, None) == here.generate(prompts, None)
    assert engine.ended == engine.started[:2]


def test_answers_that_take_longer_than_they_may_are_not_begun_again(workers, prompts):
    engine = MuteEngine(deaths=9)
    with pytest.raises(BoundaryError, match=r"max_seconds = 0\.1"):
        workers(engine, heartbeat_seconds=None, max_seconds=0.1).generate(prompts, None)
    assert len(engine.started) == 1


def test_answers_that_hang_with_every_worker_end_the_call(workers, prompts):
    engine = MuteEngine(deaths=9)
    with pytest.raises(BoundaryError, match=r"heartbeat_seconds = 0\.1"):
        workers(engine, heartbeat_seconds=0.1).generate(prompts, None)
    assert len(engine.started) == 3


def test_what_was_answered_while_no_controller_lived_is_not_drawn_again(workers, here, prompts):
    workers(HereEngine()).generate(prompts, None)  # and this controller is killed
    again = HereEngine()
    assert workers(again).generate(prompts, None) == here.generate(prompts, None)
    assert again.started == []


def test_answers_that_are_filed_are_kept_no_longer(workers, prompts, tmp_path):
    generator = workers(HereEngine())
    generator.generate(prompts, None)
    folder = tmp_path / "work/answers"
    assert len(list(folder.iterdir())) == 1
    (tmp_path / "work/answers.filed/torn").mkdir(parents=True)  # an earlier controller was killed
    generator.filed()
    assert list((tmp_path / "work").iterdir()) == []
    generator.filed()


def test_the_time_of_a_shard_is_what_its_worker_took_and_waiting_left_out(workers, prompts):
    generator = workers(HereEngine())
    assert generator.seconds is None
    generator.generate(prompts, None)
    first = generator.seconds
    assert 0 < first < 60
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lambda: generator.seconds).result() is None


def test_a_shard_whose_worker_dies_is_drawn_by_another(workers, here, prompts):
    engine = HereEngine(deaths=2)
    assert workers(engine).generate(prompts, None) == here.generate(prompts, None)
    assert len(engine.started) == 3


def test_a_shard_that_no_worker_survives_fails_and_is_no_failure_of_a_training(workers, prompts):
    with pytest.raises(BoundaryError, match="answering lost 3 workers in a row") as caught:
        workers(HereEngine(deaths=9)).generate(prompts, None)
    assert not isinstance(caught.value, TrainingError)


def test_a_stop_ends_a_shard_between_two_batches(tiny_model, prompts, tmp_path):
    said = []
    job = answering.AnswerJob(
        base="base", settings=CONFIG.json_data(), adapter=None, sampling=GREEDY, prompts=prompts
    )
    place = files.Workplace(paths={"base": str(tiny_model)}, out=str(tmp_path / "out"), work="")
    with pytest.raises(StopRequested):
        answering.answer(job, place, said.append, lambda: bool(said))
    assert [event["answered"] for event in said] == [0, 2]
    assert not (tmp_path / "out").exists()


def test_two_suites_that_ask_the_same_are_drawn_once(workers, prompts):
    engine = HereEngine()
    generator = workers(engine)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(generator.generate(prompts, None)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(engine.started) == 1


@pytest.mark.slow
def test_workers_of_a_real_ray_train_and_then_answer_to_the_byte(
    tiny_model, here, prompts, order, tmp_path
):
    pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install -e '.[ray]'")
    config = RayExecutorConfig(workers=2)
    executor = RemoteExecutor(RayEngine(config, tmp_path), config, tmp_path / "logs")
    generator = WorkersGenerator(executor, tmp_path, tiny_model, "base", CONFIG.json_data(), never)
    made = order()
    (trained,) = executor.wait([executor.submit(made.job, made.place)], never)
    adapter = Path(trained.adapter)
    asked = [(prompts, None, GREEDY), (prompts, adapter, GREEDY), (prompts, adapter, FEW)]
    with ThreadPoolExecutor(len(asked)) as threads:
        drawn = [threads.submit(generator.generate, *one) for one in asked]
        read = threads.submit(generator.log_likelihood, TEXTS, adapter)
    assert [one.result() for one in drawn] == [here.generate(*one) for one in asked]
    assert read.result() == here.log_likelihood(TEXTS, adapter)


# -- whole runs ------------------------------------------------------------------------------------


class MeetingGenerator(StandInGenerator):
    """The stand-in as a generator of workers: calls at once are counted."""

    def __init__(self, witness, fails=""):
        super().__init__(witness)
        self.fails = fails
        self.turn = threading.Lock()
        self.inside = self.most = self.filings = 0

    def generate(self, prompts, adapter, sampling=GREEDY):
        with self.turn:
            self.inside += 1
            self.most = max(self.most, self.inside)
            fails = self.fails and self.fails in prompts[0].id
        threading.Event().wait(0.02)
        try:
            if fails:
                raise BoundaryError("the worker fell over")
            return super().generate(prompts, adapter, sampling)
        finally:
            with self.turn:
                self.inside -= 1

    def filed(self):
        self.filings += 1

    @property
    def seconds(self):
        return 0.25


class OnWorkers(StandIn):
    fails = ""

    def context(self, folder, journal, witness):
        context = super().context(folder, journal, witness)
        old = context.evaluator
        self.generator = MeetingGenerator(witness, self.fails)
        assert isinstance(self.generator, SharedGenerator)
        context.evaluator = Evaluator(
            self.generator, old.judge, old.objectives, old.suites, old.identity
        )
        return context


def both(tmp_path, *settings):
    """The same run with a generator of this process, and with one of workers; their outcomes."""
    here = StandIn.make("rounds=1", *settings, per_slice=4)
    there = OnWorkers(here.config, here.inputs)
    found = []
    here.create(tmp_path / "start")
    for number, standin in enumerate((here, there)):
        folder = tmp_path / str(number) / "run"
        folder.parent.mkdir()
        shutil.copytree(tmp_path / "start", folder)
        standin.run(folder, Witness(folder.parent / "witness"))
        found.append(outcome(folder))
    return found, there.generator


def test_a_run_on_workers_has_the_same_journal_and_its_shards_meet(tmp_path):
    (here, there), generator = both(tmp_path)
    assert there == here
    assert generator.most > 1
    assert generator.filings > 0


def test_candidates_answer_side_by_side_and_come_to_the_same(tmp_path):
    (here, there), generator = both(tmp_path, "candidates=3", "planner.kind=profile")
    suites = 4  # two objectives in two roles
    assert generator.most > suites
    # The answers of all candidates come before the first of them is judged.
    for run in (here, there):
        run["steps"] = sorted(json.dumps(step) for step in run["steps"])
    assert there == here


def test_a_shard_that_fails_fails_the_run_and_the_others_are_not_drawn_again(tmp_path):
    standin = OnWorkers.make("rounds=1", per_slice=4)
    folder = tmp_path / "run"
    standin.create(folder)
    suite = next(iter(standin.inputs.suites.values()))["selection"]
    standin.fails = suite.prompts[0].id
    witness = Witness(tmp_path / "witness")
    with pytest.raises(BoundaryError, match="the worker fell over"):
        standin.run(folder, witness)
    journal = Journal.open(folder)
    assert len(journal.steps(Generate, 0)) == 3
    journal.close()
    drawn = witness.lines()
    standin.fails = ""
    standin.run(folder, witness)
    assert len(set(witness.lines())) == len(witness.lines())
    assert set(drawn) < set(witness.lines())
