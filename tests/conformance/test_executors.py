"""What every executor promises: results in the order of the handles, or the first failure once all is still."""

from pathlib import Path
from typing import get_args

import pytest

from mosaic.core.errors import StopRequested, TrainingError, UsageError
from mosaic.core.types.runs import BASE
from tools.executors.base import ExecutorConfig, SubprocessExecutorConfig
from tools.executors.inline import InlineExecutor
from tools.executors.subprocess import SubprocessExecutor
from training.methods.base import never
from training.models.adapter import check_adapter, model_digest

# kind -> makes one; the folder is for its logs
EXECUTORS = {
    "inline": lambda folder: InlineExecutor(),
    "subprocess": lambda folder: SubprocessExecutor(SubprocessExecutorConfig(), folder),
}


@pytest.fixture(params=EXECUTORS)
def executor(request, tmp_path):
    return EXECUTORS[request.param](tmp_path / "logs")


@pytest.fixture(scope="module")
def digests():
    """What the adapter of one job was in each executor so far."""
    return {}


def submit(executor, *orders):
    return [executor.submit(order.job, order.place) for order in orders]


def wrong(order, out="wrong"):
    """An order for a training set that does not hold what it should."""
    return order(out, n_tokens=[99] * 12)


def burnt(order, out="burnt"):
    """An order whose loss becomes infinite."""
    return order(out, learning_rate=1e30, epochs=2)


# Results


def test_results_come_in_the_order_of_the_handles(executor, order, tiny_model):
    longer, shorter = order("longer", epochs=3), order("shorter", max_steps=1)
    handles = submit(executor, longer, shorter)
    assert [h.job for h in handles] == [longer.job.content_digest, shorter.job.content_digest]
    # Waited for in another order than they were submitted in.
    results = executor.wait(handles[::-1], never)
    assert [r.adapter for r in results] == [shorter.place.out, longer.place.out]
    assert [r.steps for r in results] == [1, 9]
    for result in results:
        check_adapter(Path(result.adapter), tiny_model)


def test_nothing_to_wait_for_is_no_result(executor):
    assert executor.wait([], never) == []


def test_each_step_of_a_job_is_told_to_whoever_submitted_it(executor, order):
    told = {"first": [], "second": []}
    handles = [
        executor.submit(order(name, max_steps=steps).job, order(name).place, told[name].append)
        for name, steps in (("first", 3), ("second", 1))
    ]
    executor.wait(handles, never)
    steps = {name: {e["step"] for e in events if "step" in e} for name, events in told.items()}
    assert steps == {"first": {1, 2, 3}, "second": {1}}


def test_the_same_job_gives_the_same_adapter_again_and_in_every_executor(
    executor, order, digests, request
):
    made = [order(name) for name in ("once", "again")]
    assert made[0].job == made[1].job
    handles = submit(executor, *made)
    assert handles[0].job == handles[1].job
    results = executor.wait(handles, never)
    found = {file_digests(Path(result.adapter)) for result in results}
    assert len(found) == 1
    assert len({(r.tokens, r.supervised, r.steps, r.loss) for r in results}) == 1
    digests[request.node.callspec.params["executor"]] = found.pop()
    assert len(set(digests.values())) == 1


def file_digests(folder):
    return tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


# Failures


def test_the_first_failure_in_the_order_of_the_handles_is_raised_as_its_own_class(executor, order):
    with pytest.raises(UsageError, match="the pool counted 99 tokens"):
        executor.wait(submit(executor, wrong(order), burnt(order)), never)
    orders = burnt(order, "burnt2"), wrong(order, "wrong2")
    with pytest.raises(TrainingError) as caught:
        executor.wait(submit(executor, *orders), never)
    assert caught.value.failure == "nan_loss"


def test_after_a_failure_no_job_goes_on(executor, order):
    bad, good = wrong(order), order("good", epochs=200)
    told = []
    handles = submit(executor, bad)
    handles.append(executor.submit(good.job, good.place, told.append))
    with pytest.raises(UsageError):
        executor.wait(handles, never)
    until_then = len(told)
    assert not Path(good.place.out).exists()
    # It can be run again at once, and nothing of the other is in its way.
    again = order("more", max_steps=1)
    [result] = executor.wait(submit(executor, again), never)
    assert Path(result.adapter).is_dir()
    assert len(told) == until_then
    assert not Path(good.place.out).exists()


def test_an_adapter_that_does_not_fit_is_a_training_error(executor, order, tiny_model, tmp_path):
    """The base is exchanged after the order was made: the trainer finds another one there."""
    made = order()
    paths = {**made.place.paths, BASE: str(tmp_path / "nowhere")}
    place = made.place.model_copy(update={"paths": paths})
    with pytest.raises((TrainingError, UsageError)):
        executor.wait([executor.submit(made.job, place)], never)
    assert not Path(made.place.out).exists()
    assert made.job.inputs[BASE] == model_digest(tiny_model)


# Stops


def test_a_stop_ends_all_jobs_with_what_they_had_kept(executor, order):
    steps = []
    made, waiting = order("made", epochs=200), order("waiting", epochs=200)
    handles = [
        executor.submit(made.job, made.place, lambda e: steps.append(e.get("step"))),
        executor.submit(waiting.job, waiting.place),
    ]
    with pytest.raises(StopRequested):
        executor.wait(handles, lambda: any(steps))
    assert list(Path(made.place.work).glob("checkpoint-*/MANIFEST.json"))
    for order_ in (made, waiting):
        assert not Path(order_.place.out).exists()


def test_every_executor_of_a_config_is_tried_here():
    configs = get_args(get_args(ExecutorConfig)[0])
    assert {config.model_fields["kind"].default for config in configs} == set(EXECUTORS)
