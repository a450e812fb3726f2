"""What every executor promises: results in the order of the handles, or the first failure once all is still."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from mosaic.core.errors import StopRequested, UsageError
from tools.executors.base import (
    ExecutorConfig,
    RayExecutorConfig,
    SlurmExecutorConfig,
    SubprocessExecutorConfig,
)
from tools.executors.inline import InlineExecutor
from tools.executors.ray import RayEngine
from tools.executors.remote import RemoteExecutor
from tools.executors.slurm import SlurmEngine
from tools.executors.subprocess import SubprocessExecutor
from training.methods.base import never
from training.models.adapter import check_adapter


def on_ray(folder):
    """On a Ray of this machine's own."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    config = RayExecutorConfig(workers=2)
    return RemoteExecutor(RayEngine(config, folder), config, folder / "logs")


def on_slurm(folder):
    """As processes that submitit starts here: there is no Slurm to test with."""
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    config = SlurmExecutorConfig(cluster="local")
    return RemoteExecutor(SlurmEngine(config), config, folder / "logs")


# kind -> makes one; the folder is the run's
EXECUTORS = {
    "inline": lambda folder: InlineExecutor(),
    "subprocess": lambda folder: SubprocessExecutor(
        SubprocessExecutorConfig(slots=2), folder / "logs"
    ),
    "ray": on_ray,
    "slurm": on_slurm,
}
# Their workers are started, or import torch, anew: minutes. tests/tools/test_remote.py has the rest.
SLOW = ("ray", "slurm")


@pytest.fixture(
    params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in EXECUTORS]
)
def executor(request, tmp_path):
    return EXECUTORS[request.param](tmp_path / "run")


@pytest.fixture
def adapters(order):
    """What the jobs of three steps and of one come to in this process."""
    made = [order("here"), order("here-shorter", max_steps=1)]
    executor = InlineExecutor()
    handles = [executor.submit(one.job, one.place) for one in made]
    return [files(result.adapter) for result in executor.wait(handles, never)]


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_results_come_in_the_order_of_the_handles_and_are_the_same_everywhere(
    executor, order, tiny_model, adapters
):
    longer, shorter = order("longer"), order("shorter", max_steps=1)
    told = {made.place.out: [] for made in (longer, shorter)}
    handles = [
        executor.submit(made.job, made.place, told[made.place.out].append)
        for made in (longer, shorter)
    ]
    names = [handle.job for handle in handles]
    assert names == [made.job.content_digest for made in (longer, shorter)]
    assert names[0] != names[1]
    # Waited for in another order than they were submitted in.
    results = executor.wait(handles[::-1], never)
    assert [r.adapter for r in results] == [made.place.out for made in (shorter, longer)]
    assert [r.steps for r in results] == [1, 3]
    for result in results:
        check_adapter(Path(result.adapter), tiny_model)
        # Each is told of its own steps.
        steps = {event["step"] for event in told[result.adapter] if "step" in event}
        assert steps == set(range(1, result.steps + 1))
    # The same job gives the same adapter in every executor.
    assert [files(result.adapter) for result in results[::-1]] == adapters


def test_threads_that_wait_at_once_each_get_what_their_job_yields_alone(executor, order, adapters):
    """Several candidates of a round: one that fails leaves the others alone."""
    made = [order("one"), order("two", max_steps=1), order("wrong", n_tokens=[99] * 12)]
    handles = [executor.submit(one.job, one.place) for one in made]
    with ThreadPoolExecutor(len(made)) as threads:
        waits = [threads.submit(executor.wait, [handle], never) for handle in handles]
    with pytest.raises(UsageError, match="the pool counted 99 tokens"):
        waits[2].result()
    results = [result for wait in waits[:2] for result in wait.result()]
    assert [r.adapter for r in results] == [one.place.out for one in made[:2]]
    assert [files(result.adapter) for result in results] == adapters


def test_nothing_to_wait_for_is_no_result(executor):
    assert executor.wait([], never) == []


def test_a_failure_is_raised_as_its_own_class_once_nothing_runs_any_more(executor, order):
    wrong, good = order("wrong", n_tokens=[99] * 12), order("good", epochs=500)
    told = []
    handles = [
        executor.submit(wrong.job, wrong.place),
        executor.submit(good.job, good.place, told.append),
    ]
    with pytest.raises(UsageError, match="the pool counted 99 tokens"):
        executor.wait(handles, never)
    work = Path(good.place.work)
    stood = len(told), sorted(work.rglob("*"))
    time.sleep(0.5)
    assert (len(told), sorted(work.rglob("*"))) == stood
    for made in (wrong, good):
        assert not Path(made.place.out).exists()


def test_a_stop_ends_a_job_with_a_checkpoint(executor, order):
    steps = []
    made = order(epochs=500)
    handle = executor.submit(made.job, made.place, lambda event: steps.append(event.get("step")))
    with pytest.raises(StopRequested):
        executor.wait([handle], lambda: any(steps))
    assert list(Path(made.place.work).glob("checkpoint-*/MANIFEST.json"))
    assert not Path(made.place.out).exists()


def test_every_executor_of_a_config_is_tried_here():
    configs = get_args(get_args(ExecutorConfig)[0])
    assert {config.model_fields["kind"].default for config in configs} == set(EXECUTORS)
