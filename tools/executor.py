"""Where training runs: in this process, or in a child with its own process group, log and time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field

from mosaic.errors import BoundaryError
from mosaic.types import Noun
from training.trainer import Progress, TrainJob, TrainResult


class InlineExecutorConfig(Noun):
    """Train in the controller's process: no start-up cost, shared memory."""

    kind: Literal["inline"] = "inline"


class SubprocessExecutorConfig(Noun):
    """Train in a child process; `max_seconds` ends one that hangs."""

    kind: Literal["subprocess"] = "subprocess"
    max_seconds: float | None = Field(default=None, gt=0)


ExecutorConfig = Annotated[InlineExecutorConfig | SubprocessExecutorConfig, Field(discriminator="kind")]


class Executor(Protocol):
    """Runs training jobs; what comes back has passed `check_adapter`."""

    def run(self, job: TrainJob, progress: Progress | None = None) -> TrainResult: ...


class InlineExecutor:
    """Runs the trainer here."""

    def run(self, job: TrainJob, progress: Progress | None = None) -> TrainResult:
        from training.adapter import check_adapter
        from training.sft import train

        result = train(job, progress)
        check_adapter(Path(result.adapter), Path(job.base_model))
        return result


class SubprocessExecutor:
    """Runs the trainer in a child. Its stderr goes to `<logs>/train.log`; its whole group ends with it."""

    def __init__(self, config: SubprocessExecutorConfig, logs: Path) -> None:
        self.config = config
        self.logs = logs

    def run(self, job: TrainJob, progress: Progress | None = None) -> TrainResult:
        from training.adapter import check_adapter

        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / "train.log"
        with tempfile.TemporaryDirectory() as folder:
            job_path, result_path = Path(folder) / "job.json", Path(folder) / "result.json"
            job_path.write_text(job.model_dump_json())
            with log.open("ab") as stderr:
                child = subprocess.Popen(
                    [sys.executable, "-m", "training.job", str(job_path), str(result_path)],
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd=Path(__file__).resolve().parents[1],
                    text=True,
                )
                late = threading.Event()
                timer = self._timer(child, late)
                try:
                    assert child.stdout is not None
                    for line in child.stdout:
                        if progress and line.startswith("{"):
                            progress(json.loads(line))
                    code = child.wait()
                finally:
                    if timer:
                        timer.cancel()
                    _end(child)
            if late.is_set():
                raise BoundaryError(
                    f"training ran longer than executor.max_seconds = {self.config.max_seconds:g}; log: {log}"
                )
            if code != 0:
                raise BoundaryError(f"training {_death(code)}: {_last_line(log)} (log: {log})")
            if not result_path.is_file():
                raise BoundaryError(f"training ended well but left no result (log: {log})")
            result = TrainResult.model_validate_json(result_path.read_text())
            check_adapter(Path(result.adapter), Path(job.base_model))
            return result

    def _timer(self, child: subprocess.Popen[str], late: threading.Event) -> threading.Timer | None:
        if self.config.max_seconds is None:
            return None

        def end() -> None:
            late.set()
            _end(child)

        timer = threading.Timer(self.config.max_seconds, end)
        timer.daemon = True
        timer.start()
        return timer


def _end(child: subprocess.Popen[str]) -> None:
    """Kill the child's whole process group, if any of it is left."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (signal 9; often the machine ran out of memory)"
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"
