"""Training in children: each has a process group, a heartbeat, a log and a time limit of its own."""

from __future__ import annotations

import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from mosaic.core.errors import StopRequested, TrainingError
from mosaic.core.types.base import JsonObject
from mosaic.core.types.runs import TrainJob, TrainResult, Workplace
from tools.executors.base import SubprocessExecutorConfig, absolute, check_limits, sources
from training import worker
from training.methods.base import Progress, Stopping
from training.methods.failures import says_no_memory

POLL = 0.5
GRACE = 60.0
BLOCK = 65536
DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass
class ChildHandle:
    """A job that a child trains, once a slot is free.

    `result` is read from the thread that follows the child. `asked` asks the child for a checkpoint
    and an end; after `end` it is killed, or never started.
    """

    order: worker.Order
    progress: Progress | None
    asked: threading.Event = field(default_factory=threading.Event)
    scratch: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    result: Future[TrainResult] = field(default_factory=Future)
    child: subprocess.Popen[bytes] | None = None
    ended: bool = False
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def job(self) -> str:
        return self.order.job.content_digest

    def start(self, log: Path, devices: str | None) -> subprocess.Popen[bytes]:
        """Start the child; its stderr is added to the log. Raises StopRequested after `end`."""
        folder = Path(self.scratch.name)
        search_path = os.pathsep.join([str(sources()), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": search_path}
        if devices is not None:
            environment[DEVICES] = devices
        with self._turn, log.open("ab") as stderr:
            if self.ended or self.asked.is_set():
                raise StopRequested("training was asked to stop before it began")
            (folder / "job.json").write_text(self.order.model_dump_json())
            self.child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "training.worker",
                    str(folder / "job.json"),
                    str(folder / "result.json"),
                ],
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        return self.child

    def end(self) -> None:
        """Kill whatever is left of the child's process group."""
        with self._turn:
            self.ended = True
        if self.child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


class SubprocessExecutor:
    """Runs each job in a child, `config.slots` of them at once.

    A child's stderr goes to `<logs>/train.log`, and to a log of each job's own where several train
    at once. Its whole process group ends with it. Each child has a thread that starts and follows
    it: a child ends with the thread that started it, so that thread outlives it.
    """

    def __init__(self, config: SubprocessExecutorConfig, logs: Path) -> None:
        self.config = config
        self.logs = logs
        self._threads = ThreadPoolExecutor(config.slots, thread_name_prefix="training")
        self._devices = _parts_of_devices(config.slots)

    def submit(
        self, job: TrainJob, place: Workplace, progress: Progress | None = None
    ) -> ChildHandle:
        """Start the child at once, or as soon as a slot is free."""
        self.logs.mkdir(parents=True, exist_ok=True)
        handle = ChildHandle(worker.Order(job=job, place=absolute(place)), progress)
        handle.result = self._threads.submit(self._train, handle)
        return handle

    def wait(self, handles: Sequence[ChildHandle], stopping: Stopping) -> list[TrainResult]:
        """Wait for the children one after the other; whatever ends this ends them all."""
        try:
            return [self._result(handle, handles, stopping) for handle in handles]
        finally:
            begun = [handle.result for handle in handles if not handle.result.cancel()]
            if any(handle.asked.is_set() for handle in handles):
                wait_for(begun)  # all were asked: each has its time to write a checkpoint
            for handle in handles:
                handle.end()
            wait_for(begun)
            for handle in handles:
                handle.scratch.cleanup()

    def _result(
        self, handle: ChildHandle, handles: Sequence[ChildHandle], stopping: Stopping
    ) -> TrainResult:
        """What one child leaves; when `stopping` says so, all are asked to stop."""
        while True:
            done, _ = wait_for([handle.result], timeout=POLL)
            if done:
                return handle.result.result()
            if not stopping():
                continue
            for other in handles:
                other.asked.set()
            if handle.result.cancel():
                raise StopRequested("training was asked to stop before it began")

    def _train(self, handle: ChildHandle) -> TrainResult:
        """Run a job's child. Raises its own failure, or TrainingError for how it died."""
        name = "train.log" if self.config.slots == 1 else f"train-{handle.job[:8]}.log"
        log = self.logs / name
        began = log.stat().st_size if log.exists() else 0
        with self._slot() as devices:
            child = handle.start(log, devices)
            try:
                failure = self._follow(child, handle)
                code = child.wait()
            finally:
                handle.end()
                assert child.stdout is not None
                child.stdout.close()
        if failure:
            raise failure.exception()
        if code != 0:
            what = f"training {_death(code)}: {_last_line(log, began)} (log: {log})"
            raise TrainingError(what, _kind_of_death(code, log, began))
        result = Path(handle.scratch.name) / "result.json"
        if not result.is_file():
            what = f"training ended well but left no result (log: {log})"
            raise TrainingError(what, "no_adapter")
        return TrainResult.model_validate_json(result.read_text())

    @contextmanager
    def _slot(self) -> Iterator[str | None]:
        """The devices of a free slot, None for all that this process sees."""
        devices = self._devices.get_nowait()
        try:
            yield devices
        finally:
            self._devices.put(devices)

    def _follow(self, child: subprocess.Popen[bytes], handle: ChildHandle) -> worker.Failure | None:
        """Pass progress on until the child closes its stdout; its own word on a failure, if any.

        Raises TrainingError (`hang`) or StopRequested when a time limit is over.
        """
        assert child.stdout is not None
        started = beat = time.monotonic()
        told: float | None = None
        failure: worker.Failure | None = None
        unfinished = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                ready = selector.select(POLL)
                now = time.monotonic()
                if ready:
                    data = os.read(child.stdout.fileno(), BLOCK)
                    if not data:
                        return failure
                    *lines, unfinished = (unfinished + data).split(b"\n")
                    for line in lines:
                        event = _event(line)
                        if event is None:
                            continue
                        beat = now
                        if "error" in event:
                            failure = _failure(event) or failure
                        elif handle.progress:
                            handle.progress(event)
                elif child.poll() is not None:
                    return failure  # a grandchild may hold the pipe open
                if told is None and handle.asked.is_set():
                    child.send_signal(signal.SIGTERM)
                    told = now
                if told is not None and now - told > GRACE:
                    raise StopRequested(
                        "training was asked to stop and did not; it continues from its last "
                        "checkpoint"
                    )
                check_limits(self.config, now - started, now - beat)


def _parts_of_devices(slots: int) -> queue.SimpleQueue[str | None]:
    """For each slot its part of the devices that this process sees, None for all of them."""
    parts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    devices = [name for name in os.environ.get(DEVICES, "").split(",") if name.strip()]
    each = len(devices) // slots
    for slot in range(slots):
        alone = slots > 1 and each > 0
        parts.put(",".join(devices[slot * each : (slot + 1) * each]) if alone else None)
    return parts


def _event(line: bytes) -> JsonObject | None:
    """A line of progress, or None for what libraries print."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _failure(event: JsonObject) -> worker.Failure | None:
    """The child's word on its failure, or None for a library's own JSON with an `error` in it."""
    try:
        return worker.Failure.model_validate(event)
    except ValidationError:
        return None


def _death(code: int) -> str:
    """How a child with this exit code ended, in words."""
    if code == -signal.SIGKILL:
        return "was killed (signal 9; often the machine ran out of memory)"
    if code < 0:
        return f"was ended by signal {-code}"
    return f"failed with exit code {code}"


def _kind_of_death(code: int, log: Path, began: int) -> str:
    """The one word for how a child ended that could not say so itself."""
    if code < 0:
        return "killed"
    text = _tail(log, began)
    if "MemoryError" in text or says_no_memory(text):
        return "out_of_memory"
    return "error"


def _tail(log: Path, began: int) -> str:
    """What was written to the log since a child began."""
    with log.open("rb") as stream:
        stream.seek(began)
        return stream.read().decode(errors="replace")


def _last_line(log: Path, began: int) -> str:
    lines = _tail(log, began).strip().splitlines()
    return lines[-1][:300] if lines else "no output"
