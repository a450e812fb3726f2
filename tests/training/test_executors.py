"""What every executor does with jobs, and how a child process that fails is reported."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mosaic.core.errors import StopRequested, TrainingError, UsageError
from mosaic.core.types.runs import TRAINING_SET
from tools.executors.base import SubprocessExecutorConfig
from tools.executors.inline import InlineExecutor
from tools.executors.subprocess import SubprocessExecutor
from training import worker
from training.methods.base import never


def executors(folder):
    return {
        "inline": InlineExecutor(),
        "subprocess": SubprocessExecutor(SubprocessExecutorConfig(slots=2), folder / "logs"),
    }


@pytest.fixture(params=["inline", "subprocess"])
def executor(request, tmp_path):
    return executors(tmp_path)[request.param]


def run(executor, order):
    (result,) = executor.wait([executor.submit(order.job, order.place)], never)
    return result


def failure_of(work):
    with pytest.raises(TrainingError) as caught:
        work()
    return caught.value


def wrong(order):
    """The same order with a training set that does not hold what it should."""
    return order(out="wrong", n_tokens=[99] * 12)


def test_results_come_in_the_order_of_the_handles(executor, order):
    longer, shorter = order("longer", epochs=3), order("shorter", max_steps=1)
    handles = [executor.submit(o.job, o.place) for o in (longer, shorter)]
    assert [h.job for h in handles] == [longer.job.content_digest, shorter.job.content_digest]
    results = executor.wait(handles, never)
    assert [r.adapter for r in results] == [longer.place.out, shorter.place.out]
    assert [r.steps for r in results] == [9, 1]


def test_progress_is_told_step_by_step(executor, order):
    told = []
    made = order()
    executor.wait([executor.submit(made.job, made.place, told.append)], never)
    assert [event["step"] for event in told if "step" in event and "loss" not in event] == [1, 2, 3]


def test_the_failure_of_one_job_ends_the_others(executor, order):
    bad, good = wrong(order), order("good", epochs=500)
    handles = [executor.submit(o.job, o.place) for o in (bad, good)]
    with pytest.raises(UsageError, match="the pool counted 99 tokens"):
        executor.wait(handles, never)
    assert not Path(good.place.out).exists()
    for handle in handles:
        if getattr(handle, "child", None) is not None:
            assert handle.child.poll() is not None


def test_the_first_failure_in_the_order_of_the_handles_is_raised(executor, order):
    burnt = order("burnt", learning_rate=1e30, epochs=2)
    handles = [executor.submit(o.job, o.place) for o in (burnt, wrong(order))]
    error = failure_of(lambda: executor.wait(handles, never))
    assert error.failure == "nan_loss"
    assert error.repeats


def test_a_training_that_is_asked_to_stop_stops_with_a_checkpoint(executor, order):
    steps = []
    made = order(epochs=200)
    handle = executor.submit(made.job, made.place, lambda e: steps.append(e.get("step")))
    with pytest.raises(StopRequested, match="a checkpoint is kept"):
        executor.wait([handle], lambda: any(steps))
    assert list(Path(made.place.work).glob("checkpoint-*/MANIFEST.json"))


def test_the_same_job_gives_the_same_bytes_in_every_executor(order, tmp_path):
    losses, weights = [], []
    for name, executor in executors(tmp_path).items():
        result = run(executor, order(name))
        losses.append(result.loss)
        weights.append((Path(result.adapter) / "adapter_model.safetensors").read_bytes())
    assert losses[0] == losses[1]
    assert weights[0] == weights[1]


def test_a_child_finds_its_inputs_by_relative_paths_too(order, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = order()
    relative = Path(made.place.paths[TRAINING_SET]).name
    paths = {**made.place.paths, TRAINING_SET: relative}
    place = made.place.model_copy(update={"paths": paths, "out": "adapter", "work": "work"})
    run(SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs"), worker.Order(
        job=made.job, place=place
    ))  # fmt: skip
    assert (tmp_path / "adapter").is_dir()


def in_place_of_training(code):
    """A `Popen` that starts this code instead of the worker; the code sees the same arguments."""
    real = subprocess.Popen

    def start(command, **options):
        return real([sys.executable, "-c", code, *command[-2:]], **options)

    return start


@pytest.mark.parametrize(
    ("code", "limits", "failure", "repeats", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            {},
            "killed",
            False,
            "signal 9",
        ),
        ("import time; time.sleep(60)", {"max_seconds": 0.3}, "hang", False, "max_seconds"),
        (
            "import time; time.sleep(60)",
            {"heartbeat_seconds": 0.3},
            "hang",
            False,
            "heartbeat_seconds",
        ),
        ("raise MemoryError('out of memory')", {}, "out_of_memory", True, "out of memory"),
        ("raise ValueError('no such thing')", {}, "error", False, "no such thing"),
        ("print('{\"error\": 1}')", {}, "no_adapter", False, "no result"),
        ("pass", {}, "no_adapter", False, "no result"),
    ],
)
def test_a_child_that_fails_is_reported_as_what_it_was(
    order, tmp_path, monkeypatch, code, limits, failure, repeats, message
):
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(code))
    executor = SubprocessExecutor(SubprocessExecutorConfig(**limits), tmp_path / "logs")
    error = failure_of(lambda: run(executor, order("x")))
    assert error.failure == failure
    assert error.repeats == repeats
    assert message in str(error)


def test_a_full_disk_under_a_child_is_an_oserror_as_it_is_here(order, tmp_path, monkeypatch):
    code = """
import sys, training.methods.sft
def full(*rest): raise OSError(28, "No space left on device")
training.methods.sft._train = full
from training.worker import main
sys.exit(main(*sys.argv[1:]))
"""
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(code))
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    with pytest.raises(OSError, match="No space left") as caught:
        run(executor, order("x"))
    assert caught.value.errno == 28


def test_nothing_of_the_childs_group_survives_it(order, tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(pid)!r}, 'w').write(str(p.pid))"
    )
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(code))
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    assert failure_of(lambda: run(executor, order("x"))).failure == "no_adapter"
    state = Path(f"/proc/{pid.read_text()}/stat")
    ended = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < ended:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_child_that_dies_leaves_no_scratch_folder(order, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training("pass"))
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    made = order("x")
    handle = executor.submit(made.job, made.place)
    failure_of(lambda: executor.wait([handle], never))
    assert not os.path.exists(handle.scratch.name)


# Says which devices it sees, and ends well once `begun` children of this folder have begun.
TOGETHER = """
import json, os, sys, time
from pathlib import Path
order, result = sys.argv[1:]
out = Path(json.load(open(order))["place"]["out"])
out.with_suffix(".devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
until = time.monotonic() + 60
while len(list(out.parent.glob("*.devices"))) < BEGUN and time.monotonic() < until:
    time.sleep(0.02)
numbers = dict.fromkeys(["tokens", "supervised", "steps", "loss", "seconds", "train_seconds"], 1)
text = json.dumps({"adapter": str(out), "real_token_share": 1.0, **numbers})
if time.monotonic() < until:
    Path(result).write_text(text)
"""


def devices_of(orders):
    return [Path(made.place.out).with_suffix(".devices").read_text() for made in orders]


def test_as_many_children_as_there_are_slots_train_at_once_on_devices_of_their_own(
    order, tmp_path, monkeypatch
):
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(TOGETHER.replace("BEGUN", "2")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    executor = SubprocessExecutor(SubprocessExecutorConfig(slots=2), tmp_path / "logs")
    orders = [order(name) for name in ("a", "b", "c")]
    executor.wait([executor.submit(made.job, made.place) for made in orders], never)
    first, second, third = devices_of(orders)
    assert {first, second} == {"4,5", "6,7"}
    assert third in {first, second}


def test_with_one_slot_children_train_one_after_the_other_on_what_there_is(
    order, tmp_path, monkeypatch
):
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(TOGETHER.replace("BEGUN", "1")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    orders = [order(name) for name in ("a", "b")]
    handles = [executor.submit(made.job, made.place) for made in orders]
    # Whoever is waited for first does not have to be the one who holds the slot.
    executor.wait(handles[::-1], never)
    assert devices_of(orders) == ["4,5", "4,5"]


def test_a_job_that_waits_for_a_slot_stops_at_once(order, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", in_place_of_training(TOGETHER.replace("BEGUN", "2")))
    executor = SubprocessExecutor(SubprocessExecutorConfig(), tmp_path / "logs")
    holding, waiting = order("a"), order("b")
    held = executor.submit(holding.job, holding.place)
    queued = executor.submit(waiting.job, waiting.place)
    with pytest.raises(StopRequested, match="before it began"):
        executor.wait([queued], lambda: True)
    assert queued.child is None
    Path(waiting.place.out).with_suffix(".devices").touch()
    executor.wait([held], never)
