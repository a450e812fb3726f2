"""Trainings on a real Ray of several nodes, whose workers, nodes and controllers are killed.

Each node is a raylet of its own on this machine (`ray.cluster_utils`), behind a token. The
trainings are stand-ins that sleep: two cores cannot show more, and a digest over all steps tells
one that was left out or counted twice.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks import standin_training as standin
from benchmarks.figures import CannotRun, Rows, figure
from benchmarks.ray_runs import killed_runs
from mosaic.core.errors import MosaicError
from tools.executors.base import RayExecutorConfig
from tools.executors.ray import RayEngine
from tools.executors.remote import RemoteExecutor
from training import attempt as files
from training.methods.base import Event, never
from training.models.adapter import WEIGHTS
from training.worker import Order

ROOT = Path(__file__).resolve().parents[1]
RUNS = "benchmarks.standin_training:run"
NODES, CPUS = 2, 2
# Starts beside those that are needed, before the machine counts as too busy.
MORE_TRIES = 5
# Every step writes a checkpoint, so that what a killed worker did is mostly kept.
STEPS, LONG, SECONDS = 10, 40, 0.1


def ray(quick: bool) -> Rows:
    """Cost of a warm job, jobs side by side, and kills of workers, nodes and controllers."""
    kills, losses, controllers = (6, 2, 4) if quick else (100, 20, 20)
    with tempfile.TemporaryDirectory(dir=_memory()) as name, cluster() as nodes:
        folder = Path(name)
        address, rows = nodes.address, []
        for part in (
            lambda: warm_jobs(folder / "warm", address, 5 if quick else 30),
            lambda: side_by_side(folder / "side", address, NODES * CPUS),
            lambda: worker_kills(folder / "workers", address, kills),
            lambda: controller_kills(folder / "controllers", address, controllers),
            lambda: killed_runs(folder / "runs", address, controllers),
            lambda: node_losses(folder / "nodes", nodes, losses),
        ):
            measured = part()
            rows += measured
            for row in measured:  # it takes long: what is known is said
                print(f"{row['what']}: {row['figure']} {row['unit']}", file=sys.stderr, flush=True)
    return rows


@contextmanager
def cluster() -> Iterator[Any]:
    """A head without CPUs, and nodes to train on."""
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0",
        # Ray's default of 15 starves its workers on a machine that others use, too.
        RAY_worker_niceness="0",
        # Workers import the stand-ins.
        PYTHONPATH=str(ROOT),
    )
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        raise CannotRun("ray is not installed; pip install -e '.[ray]'") from None
    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        add_nodes(nodes)
        yield nodes
    finally:
        nodes.shutdown()


def add_nodes(nodes: Any) -> None:
    """Start nodes in place of those that are missing. Raises CannotRun if too many do not start."""
    for _ in range(NODES + MORE_TRIES):
        if len(nodes.worker_nodes) >= NODES:
            return
        try:
            nodes.add_node(num_cpus=CPUS)
        except Exception as error:  # Ray raises a bare one if a node takes over 30 s to start
            print(f"a node did not start: {error}", file=sys.stderr)
    if len(nodes.worker_nodes) < NODES:
        raise CannotRun(f"{len(nodes.worker_nodes)} of {NODES} nodes of Ray started")


def open_executor(folder: Path, address: str, workers: int = NODES * CPUS) -> RemoteExecutor:
    """The executor of a run in a folder. Workers are few, and leave soon when nobody asks."""
    config = RayExecutorConfig(address=address, workers=workers, lease_seconds=30)
    return RemoteExecutor(RayEngine(config, folder, RUNS), config, folder / "logs")


class Tally:
    """What became of jobs: none may be unequal, lost or trained after it was done."""

    def __init__(self) -> None:
        self.jobs = self.unequal = self.failed = self.late = self.attempts = 0

    def add(self, order: Order) -> None:
        """Look at a job's folder once it is over."""
        work, out = Path(order.place.work), Path(order.place.out)
        self.jobs += 1
        if not (out / WEIGHTS).exists():
            self.failed += 1
            return
        self.unequal += (out / WEIGHTS).read_text() != standin.expected(order.job)
        done = (work / files.DONE).stat().st_mtime_ns
        winner = files.read_done(work, order.job.content_digest)
        # An attempt that no worker ever had, has none of these.
        for events in (work / files.ATTEMPTS).glob(f"*/{files.EVENTS}"):
            self.attempts += 1
            if winner and events.parent.name != winner.attempt:
                self.late += events.stat().st_mtime_ns > done

    def rows(self, what: str) -> Rows:
        return [
            figure(f"{what}: jobs without a result", self.failed, "jobs", at_most=0),
            figure(f"{what}: jobs with other bytes", self.unequal, "jobs", at_most=0),
            figure(f"{what}: trained after the job was done", self.late, "attempts", at_most=0),
            figure(f"{what}: attempts that began, for {self.jobs} jobs", self.attempts, "attempts"),
        ]


# -- what Ray costs -------------------------------------------------------------------------------


def warm_jobs(folder: Path, address: str, count: int) -> Rows:
    """Seconds of a job that does nothing, on a worker that is there, less those in this process."""
    executor = open_executor(folder, address, workers=1)
    seconds = []
    for number in range(count + 1):
        order = standin.order(folder, f"warm-{number}")
        started = time.monotonic()
        executor.wait([executor.submit(order.job, order.place)], never)
        seconds.append(time.monotonic() - started)
    here = []
    for number in range(count):
        order = standin.order(folder, f"here-{number}")
        started = time.monotonic()
        standin.train(order.job, order.place, lambda event: None, never)
        here.append(time.monotonic() - started)
    own = statistics.median(seconds[1:]) - statistics.median(here)
    return [
        figure("Ray's own share of a warm job, median", own, "s", at_most=0.2),
        figure("the first job, which starts client and worker", seconds[0], "s"),
    ]


def side_by_side(folder: Path, address: str, count: int) -> Rows:
    """How much longer so many sleeping jobs take on as many workers than one."""
    executor = open_executor(folder, address)

    def seconds(name: str, jobs: int) -> float:
        orders = [standin.order(folder, f"{name}-{n}", seconds=4.0) for n in range(jobs)]
        started = time.monotonic()
        executor.wait([executor.submit(o.job, o.place) for o in orders], never)
        return time.monotonic() - started

    seconds("starting", count)
    one = seconds("one", 1)
    ratio = seconds("all", count) / one
    return [figure(f"{count} jobs on {count} workers to one job", ratio, "x", at_most=1.15)]


# -- what is killed -------------------------------------------------------------------------------


def worker_kills(folder: Path, address: str, count: int) -> Rows:
    """Kill the worker of each of so many jobs once, at a step drawn by a seed."""
    dice, tally = random.Random(1), Tally()
    executor, killed = open_executor(folder, address), []

    def kill(process: int) -> None:
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    for batch in batches(count, NODES * CPUS):
        orders = [job(folder, number) for number in batch]
        handles = [
            executor.submit(o.job, o.place, AtStep(dice.randrange(1, STEPS - 5), kill))
            for o in orders
        ]
        finish(executor, handles)
        for order in orders:
            tally.add(order)
    return [figure("workers killed at work", len(killed), "workers"), *tally.rows("worker killed")]


def node_losses(folder: Path, nodes: Any, count: int) -> Rows:
    """Kill the raylet of a node that trains, so many times, and then start another in its place.

    Two jobs are at work each time, on this node or on two.
    """
    dice, tally = random.Random(2), Tally()
    executor, lost = open_executor(folder, nodes.address), []

    def lose(process: int) -> None:
        node = node_of(nodes, process)
        if node is None:
            return
        workers = children_of(parent_of(process))
        nodes.remove_node(node, allow_graceful=False)
        # A machine that is gone takes all its processes with it; here they would go on for a while.
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        lost.append(process)

    for round_ in range(count):
        add_nodes(nodes)
        orders = [job(folder, round_ * 2 + number, LONG) for number in range(2)]
        watch = AtStep(dice.randrange(1, LONG // 2), lose)
        handles = [
            executor.submit(order.job, order.place, progress)
            for order, progress in zip(orders, (watch, None), strict=True)
        ]
        finish(executor, handles)
        for order in orders:
            tally.add(order)
    return [figure("nodes lost at work", len(lost), "nodes"), *tally.rows("node lost")]


class AtStep:
    """Progress of a job that does something to its first worker when that has taken a step."""

    def __init__(self, step: int, act: Callable[[int], None]) -> None:
        self.step, self.act = step, act
        self.processes: list[int] = []

    def __call__(self, event: Event) -> None:
        if "process" in event:
            self.processes.append(int(str(event["process"])))
        if event.get("step") == self.step and len(self.processes) == 1:
            with suppress(ProcessLookupError):  # it was quicker
                self.act(self.processes[0])


def node_of(nodes: Any, process: int) -> Any:
    """The node whose raylet started a worker, None if the worker has ended."""
    parent = parent_of(process)
    for node in nodes.worker_nodes:
        raylets = node.all_processes.get("raylet", [])
        if any(raylet.process.pid == parent for raylet in raylets):
            return node
    return None


def parent_of(process: int) -> int:
    """The process that started another; 0 if that has ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def children_of(process: int) -> list[int]:
    """What a process has started."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [number for number in numbers if parent_of(number) == process]


def controller_kills(folder: Path, address: str, count: int) -> Rows:
    """Kill a controller of two jobs so many times, at moments drawn by a seed; then let one end."""
    dice, tally, killed, unattended = random.Random(3), Tally(), 0, 0
    while killed < count:
        orders = [job(folder, killed * 2 + number) for number in range(2)]
        for last in (False, True):
            controller = start_controller(folder, address, orders)
            if last:
                os.waitpid(controller, 0)
                break
            begun = Path(orders[0].place.work) / files.ATTEMPTS / "1" / files.EVENTS
            while not begun.exists() and not has_ended(controller):
                time.sleep(0.05)
            time.sleep(dice.random() * STEPS * SECONDS)
            os.kill(controller, signal.SIGKILL)
            os.waitpid(controller, 0)
            killed += 1
            if dice.random() < 0.3:  # the jobs end while nobody is there
                time.sleep(2 * STEPS * SECONDS)
                unattended += 1
        for order in orders:
            tally.add(order)
    second = tally.attempts - tally.jobs
    return [
        figure("controllers killed", killed, "controllers"),
        figure("of these, jobs ended before the next came", unattended, "controllers"),
        *tally.rows("controller killed"),
        figure("controller killed: jobs started a second time", second, "jobs", at_most=0),
    ]


def start_controller(folder: Path, address: str, orders: Sequence[Order]) -> int:
    """Fork what is killed: it submits jobs, or finds what became of them. Its process.

    A fork has imported everything: a new interpreter would take seconds to come to the first job.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        executor = open_executor(folder, address)
        finish(executor, [executor.submit(order.job, order.place) for order in orders])
        del executor  # it says goodbye to its workers
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def has_ended(process: int) -> bool:
    """Whether a child has ended; it still has to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


# -- small things ---------------------------------------------------------------------------------


def job(folder: Path, name: object, steps: int = STEPS) -> Order:
    return standin.order(folder, str(name), steps=steps, seconds=SECONDS, save_every=1)


def finish(executor: RemoteExecutor, handles: Sequence[Any], stopping: Any = never) -> None:
    """Wait for jobs; one that failed has no result, and is counted by that."""
    try:
        executor.wait(handles, stopping)
    except MosaicError as error:
        print(f"failed: {error}", file=sys.stderr)


def batches(count: int, size: int) -> Iterator[range]:
    for first in range(0, count, size):
        yield range(first, min(count, first + size))


def _memory() -> str | None:
    """A folder in memory, if this machine has one: no figure here is about the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
