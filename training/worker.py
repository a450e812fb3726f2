"""A training job in a process of its own: `python -m training.worker JOB.json RESULT.json`.

Progress goes to stdout as lines of JSON, one per optimiser step: the heartbeat. An expected
failure, or a full disk, is a last line: a `Failure`. SIGTERM asks for a
checkpoint and a stop. The process ends with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from mosaic.core import errors
from mosaic.core.errors import MosaicError, TrainingError
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.runs import BASE, TrainJob, TrainResult, Workplace
from training.methods.base import Event, Progress, Stopping, never
from training.methods.failures import FULL
from training.methods.kinds import METHODS, TRAININGS

os.environ.setdefault("OMP_NUM_THREADS", "1")
PR_SET_PDEATHSIG = 1


class Order(FrozenModel):
    """What JOB.json holds: the job, and where this machine has its inputs."""

    job: TrainJob
    place: Workplace


class Failure(FrozenModel):
    """The last line of a training that failed as expected; `error` is the exception's class.

    `failure` is a TrainingError's own word, `errno` an OSError's number.
    """

    error: str
    message: str
    failure: str | None = None
    errno: int | None = None

    def exception(self) -> MosaicError | OSError:
        """The exception that it was, found by its class name; a full disk is an OSError."""
        if self.error == "OSError":
            return OSError(self.errno, self.message)
        if self.error == "TrainingError":
            return TrainingError(self.message, self.failure or "error")
        kind = getattr(errors, self.error, None)
        if isinstance(kind, type) and issubclass(kind, MosaicError):
            return kind(self.message)
        return TrainingError(self.message)


def train(
    job: TrainJob, place: Workplace, progress: Progress | None = None, stopping: Stopping = never
) -> TrainResult:
    """Train a job in this process by the method that its recipe names, and check an adapter.

    Raises what the method raises, and TrainingError if the adapter is not what was asked for.
    """
    from training.models.adapter import check_adapter

    method = TRAININGS[job.recipe.kind]
    result: TrainResult = method.train(job, place, progress, stopping)
    if job.recipe.kind in METHODS:
        check_adapter(Path(result.adapter), Path(place.paths[BASE]))
    return result


def main(job_path: str, result_path: str) -> int:
    """Train and write the result last; the exit code is the error's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, stop)
    order = Order.model_validate_json(Path(job_path).read_text())
    say({"stage": "loading"})
    try:
        result = train(order.job, order.place, say, lambda: bool(asked))
    except MosaicError as error:
        word = getattr(error, "failure", None)
        failure = Failure(error=type(error).__name__, message=str(error), failure=word)
        say(failure.json_data())
        return error.exit_code
    except OSError as error:
        if error.errno not in FULL:
            raise
        say(Failure(error="OSError", message=error.strerror or "", errno=error.errno).json_data())
        return 1
    temporary = Path(result_path).with_suffix(".tmp")
    temporary.write_text(result.model_dump_json())
    temporary.rename(result_path)
    return 0


def say(event: Event) -> None:
    """Print an event as a line of JSON, at once: a late line would look like a hang."""
    print(json.dumps(dict(event)), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
