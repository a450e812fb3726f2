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
from typing import Any

from mosaic.core import errors
from mosaic.core.errors import MosaicError, StopRequested, TrainingError
from mosaic.core.types.runs import TrainJob, TrainResult, Workplace
from tools.executors.base import SubprocessExecutorConfig
from training import worker
from training.methods.base import Progress, Stopping
from training.methods.failures import NO_MEMORY

POLL = 0.5
GRACE = 60.0


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
    """Runs the trainer in a child. Its stderr goes to `<logs>/train.log`; its whole group ends with it."""

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
        error = self._follow(handle.child, handle.progress, stopping)
        code = handle.child.wait()
        log, began = handle.log, handle.began
        if error:
            raise _expected(error)
        if code != 0:
            what = f"training {_death(code)}: {_last_line(log, began)} (log: {log})"
            raise TrainingError(what, _kind(code, log, began))
        if not handle.result.is_file():
            what = f"training ended well but left no result (log: {log})"
            raise TrainingError(what, "no_adapter")
        return TrainResult.model_validate_json(handle.result.read_text())

    def _follow(
        self,
        child: subprocess.Popen[bytes],
        progress: Progress | None,
        stopping: Stopping,
    ) -> dict[str, Any] | None:
        """Pass progress on until the child closes its stdout; its own word on a failure, if it left one."""
        assert child.stdout is not None
        started = beat = time.monotonic()
        told: float | None = None
        error, buffer = None, b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                ready = selector.select(POLL)
                now = time.monotonic()
                if ready:
                    data = os.read(child.stdout.fileno(), 65536)
                    if not data:
                        return error
                    *lines, buffer = (buffer + data).split(b"\n")
                    for event in (_event(line) for line in lines):
                        if event is None:
                            continue
                        beat = now
                        if "error" in event:
                            error = event
                        elif progress:
                            progress(event)
                elif child.poll() is not None:
                    return error  # a grandchild may hold the pipe open
                if told is None and stopping():
                    child.send_signal(signal.SIGTERM)
                    told = now
                self._limits(now - started, now - beat, None if told is None else now - told)

    def _limits(self, running: float, silent: float, told: float | None) -> None:
        limit, heartbeat = self.config.max_seconds, self.config.heartbeat_seconds
        if told is not None and told > GRACE:
            raise StopRequested(
                "training was asked to stop and did not; it continues from its last checkpoint"
            )
        if limit is not None and running > limit:
            raise TrainingError(
                f"training ran longer than executor.max_seconds = {limit:g}", "hang"
            )
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


def _event(line: bytes) -> dict[str, Any] | None:
    """A line of progress, or None for what libraries print."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _expected(error: dict[str, Any]) -> MosaicError | OSError:
    """The child's own exception, by its class name in the family of failures; a full disk is an OSError."""
    if error["error"] == "OSError":
        return OSError(error["errno"], error["message"])
    if error["error"] == "TrainingError":
        return TrainingError(error["message"], error["failure"])
    kind = getattr(errors, str(error["error"]), None)
    if isinstance(kind, type) and issubclass(kind, MosaicError):
        return kind(error["message"])
    return TrainingError(error["message"])


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the child's process group."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout:
        child.stdout.close()


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (signal 9; often the machine ran out of memory)"
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _kind(code: int, log: Path, began: int) -> str:
    if code < 0:
        return "killed"
    text = _tail(log, began)
    return (
        "out_of_memory"
        if "MemoryError" in text or any(sign in text.lower() for sign in NO_MEMORY)
        else "error"
    )


def _tail(log: Path, began: int) -> str:
    with log.open("rb") as stream:
        stream.seek(began)
        return stream.read().decode(errors="replace")


def _last_line(log: Path, began: int) -> str:
    lines = _tail(log, began).strip().splitlines()
    return lines[-1][:300] if lines else "no output"
