"""Training in a child with a process group, a heartbeat, a log and a time limit of its own."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mosaic.core import errors
from mosaic.core.errors import MosaicError, StopRequested, TrainingError
from mosaic.core.types.base import JsonObject
from mosaic.core.types.runs import TrainJob, TrainResult, Workplace
from tools.executors.base import SubprocessExecutorConfig
from training import worker
from training.methods.base import Progress, Stopping
from training.methods.failures import says_no_memory

POLL = 0.5
GRACE = 60.0
BLOCK = 65536


@dataclass(frozen=True)
class ChildHandle:
    """A child at work: its process, where it writes its result, and where its log began."""

    job: str
    child: subprocess.Popen[bytes]
    scratch: tempfile.TemporaryDirectory[str]
    result: Path
    log: Path
    began: int
    progress: Progress | None


class SubprocessExecutor:
    """Runs each job in a child.

    Its stderr goes to `<logs>/train.log`; its whole process group ends with it.
    """

    def __init__(self, config: SubprocessExecutorConfig, logs: Path) -> None:
        self.config = config
        self.logs = logs

    def submit(
        self, job: TrainJob, place: Workplace, progress: Progress | None = None
    ) -> ChildHandle:
        """Start the child at once."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / "train.log"
        scratch = tempfile.TemporaryDirectory()
        order, result = Path(scratch.name) / "job.json", Path(scratch.name) / "result.json"
        order.write_text(worker.Order(job=job, place=_absolute(place)).model_dump_json())
        search_path = os.pathsep.join([str(_sources()), os.environ.get("PYTHONPATH", "")])
        with log.open("ab") as stderr:
            began = log.stat().st_size
            child = subprocess.Popen(
                [sys.executable, "-m", "training.worker", str(order), str(result)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": search_path},
            )
        return ChildHandle(job.content_digest, child, scratch, result, log, began, progress)

    def wait(self, handles: Sequence[ChildHandle], stopping: Stopping) -> list[TrainResult]:
        """Follow the children one after the other; whatever ends this ends them all."""
        try:
            return [self._result(handle, stopping) for handle in handles]
        finally:
            for handle in handles:
                _end(handle.child)
                handle.scratch.cleanup()

    def _result(self, handle: ChildHandle, stopping: Stopping) -> TrainResult:
        """What one child leaves. Raises its own failure, or TrainingError for how it died."""
        failure = self._follow(handle.child, handle.progress, stopping)
        code = handle.child.wait()
        log, began = handle.log, handle.began
        if failure:
            raise _exception(failure)
        if code != 0:
            what = f"training {_death(code)}: {_last_line(log, began)} (log: {log})"
            raise TrainingError(what, _kind_of_death(code, log, began))
        if not handle.result.is_file():
            what = f"training ended well but left no result (log: {log})"
            raise TrainingError(what, "no_adapter")
        return TrainResult.model_validate_json(handle.result.read_text())

    def _follow(
        self, child: subprocess.Popen[bytes], progress: Progress | None, stopping: Stopping
    ) -> worker.Failure | None:
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
                        elif progress:
                            progress(event)
                elif child.poll() is not None:
                    return failure  # a grandchild may hold the pipe open
                if told is None and stopping():
                    child.send_signal(signal.SIGTERM)
                    told = now
                self._check_limits(now - started, now - beat, None if told is None else now - told)

    def _check_limits(self, running: float, silent: float, told: float | None) -> None:
        """Seconds since the start, since the last line and since the request to stop, if any."""
        limit, heartbeat = self.config.max_seconds, self.config.heartbeat_seconds
        if told is not None and told > GRACE:
            raise StopRequested(
                "training was asked to stop and did not; it continues from its last checkpoint"
            )
        if limit is not None and running > limit:
            what = f"training ran longer than executor.max_seconds = {limit:g}"
            raise TrainingError(what, "hang")
        if heartbeat is not None and silent > heartbeat:
            what = f"training showed no progress for executor.heartbeat_seconds = {heartbeat:g}"
            raise TrainingError(what, "hang")


def _sources() -> Path:
    """Where the packages lie, so that the child finds them whatever the working folder is."""
    return Path(__file__).resolve().parents[2]


def _absolute(place: Workplace) -> Workplace:
    paths = {name: str(Path(path).resolve()) for name, path in place.paths.items()}
    out, work = str(Path(place.out).resolve()), str(Path(place.work).resolve())
    return Workplace(paths=paths, out=out, work=work)


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


def _exception(failure: worker.Failure) -> MosaicError | OSError:
    """The child's own exception, found by its class name; a full disk is an OSError."""
    if failure.error == "OSError":
        return OSError(failure.errno, failure.message)
    if failure.error == "TrainingError":
        return TrainingError(failure.message, failure.failure or "error")
    kind = getattr(errors, failure.error, None)
    if isinstance(kind, type) and issubclass(kind, MosaicError):
        return kind(failure.message)
    return TrainingError(failure.message)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the child's process group."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout:
        child.stdout.close()


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
