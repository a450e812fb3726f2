"""Trainings on a real Ray: stand-ins that sleep, on clusters of this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import standin_training as standin
from mosaic.core.errors import PausedError
from tools.executors.base import RayExecutorConfig
from tools.executors.ray import RayEngine
from tools.executors.remote import RemoteExecutor
from training.methods.base import never
from training.models.adapter import WEIGHTS

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install -e '.[ray]'")

ROOT = Path(__file__).resolve().parents[2]
RUNS = "benchmarks.standin_training:run"


def test_killed_workers_nodes_and_controllers_cost_no_job_and_none_twice():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "ray", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    missed = [what for what, row in rows.items() if row["met"] is False]
    assert missed == []
    for what in ("workers", "nodes", "controllers"):
        assert any(name.startswith(f"{what} ") for name in rows)
    # They were killed while they worked: others had to take their place.
    for what, jobs in (("worker killed", 6), ("node lost", 4)):
        assert rows[f"{what}: attempts that began, for {jobs} jobs"]["figure"] > jobs


def open_executor(folder, notify=lambda text: None, **settings):
    config = RayExecutorConfig(**settings)
    engine = RayEngine(config, folder, RUNS, notify)
    return RemoteExecutor(engine, config, folder / "logs")


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of one node, in processes of its own, behind a token; its address and its process."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 64)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    # How long Ray waits for a head that is gone before it ends whoever is connected; 60 s.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    port = 20000 + os.getpid() % 5000
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = [f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    head = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield f"127.0.0.1:{port}", head
    os.killpg(head.pid, signal.SIGTERM)
    head.wait(60)


def wait_until(holds, seconds):
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.2)
    return holds()


CONTROLLER = """
import os, sys
from pathlib import Path
from benchmarks import standin_training as standin
from tests.tools.test_ray import open_executor
folder, address, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
executor = open_executor(folder, address=address, lease_seconds=4)
order = standin.order(folder, name, steps=20, seconds=0.1)
handle = executor.submit(order.job, order.place, lambda event: print(event.get("process", ""), flush=True))
if name == "finished":
    executor.wait([handle], lambda: False)
    os.kill(os.getpid(), 9)
executor.wait([handle], lambda: False)
"""


def test_workers_leave_when_no_controller_asks_for_them(cluster, tmp_path):
    address, _ = cluster
    command = [sys.executable, "-c", CONTROLLER, str(tmp_path), address, "finished"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (process,) = done.stdout.split()
    worker = Path(f"/proc/{process}")
    assert worker.exists()
    assert wait_until(lambda: not worker.exists(), 60)


def test_a_controller_that_ends_as_it_should_takes_its_workers_with_it(cluster, tmp_path):
    address, _ = cluster
    code = CONTROLLER.replace("lease_seconds=4", "lease_seconds=4000")
    command = [sys.executable, "-c", code, str(tmp_path), address, "left"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (process,) = done.stdout.split()
    assert wait_until(lambda: not Path(f"/proc/{process}").exists(), 20)


def test_a_cluster_that_goes_away_pauses_the_run_and_the_next_one_goes_on(cluster, tmp_path):
    address, head = cluster
    executor = open_executor(tmp_path, address=address)
    made = standin.order(tmp_path, "job", steps=40, seconds=0.1, save_every=1)

    def progress(event):
        if event.get("step") == 10:
            os.killpg(head.pid, signal.SIGKILL)

    handle = executor.submit(made.job, made.place, progress)
    with pytest.raises(PausedError, match=f"Ray at {address} does not answer"):
        executor.wait([handle], never)
    later = open_executor(tmp_path)  # on a Ray of its own
    told = []
    (result,) = later.wait([later.submit(made.job, made.place, told.append)], never)
    assert (Path(result.adapter) / WEIGHTS).read_text() == standin.expected(made.job)
    steps = [event["step"] for event in told if "step" in event]
    assert not steps or steps[0] >= 10


def test_no_cluster_pauses_the_run(tmp_path):
    made = standin.order(tmp_path, "job")
    executor = open_executor(tmp_path, address="127.0.0.1:1")
    with pytest.raises(PausedError, match=r"Ray at 127\.0\.0\.1:1 does not answer"):
        executor.submit(made.job, made.place)


def test_resources_that_no_node_has_are_named_before_a_job_waits_for_them(cluster, tmp_path):
    address, _ = cluster
    told = []
    made = standin.order(tmp_path, "job")
    modest = open_executor(tmp_path, told.append, address=address)
    modest.wait([modest.submit(made.job, made.place)], never)
    assert told == []
    waits = standin.order(tmp_path, "waits")
    greedy = open_executor(tmp_path, told.append, address=address, resources={"CPU": 1, "TPU": 2})
    greedy.submit(waits.job, waits.place)
    (warning,) = told
    assert "no node of Ray has CPU 1 and TPU 2 for a worker" in warning
    assert "CPU 1 and TPU 0" in warning
