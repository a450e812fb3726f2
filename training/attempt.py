"""A job in a folder on storage that its worker shares with whoever asked for it: a training, or
answers to a shard of prompts.

::

    work/                 of the job, on the shared storage
      DONE.json           how it ended well: published once, last, by `link()`
      checkpoint-*/       the newest checkpoint of attempts that are over
      attempts/2/         an attempt, written by one worker
        order.json        the job, and where it finds its inputs
        events.jsonl      the heartbeat: a line per optimiser step, from the first moment on
        checkpoint-*/
        adapter/ (or answers/)
        stop              somebody asked it to stop
        failure.json      how it failed

Nothing in it depends on what started the worker. A worker that was cut off and one that took its
place write to different attempts; who links `DONE.json` first has made the job's result, and the
other one's is the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from mosaic.core.errors import DamageError, MosaicError, UsageError
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.runs import TrainJob, TrainResult, Workplace
from training import answering, worker
from training.answering import AnswerJob, AnswerResult
from training.methods.base import Event, Progress, Stopping
from training.methods.failures import FULL

ATTEMPTS = "attempts"
ORDER, EVENTS, STOP, FAILURE, DONE = (
    "order.json",
    "events.jsonl",
    "stop",
    "failure.json",
    "DONE.json",
)
TRACEBACK = "traceback.txt"


Job = TrainJob | AnswerJob
Result = TrainResult | AnswerResult


class Order(FrozenModel):
    """What `order.json` holds: the job, and where its worker finds its inputs."""

    job: Job
    place: Workplace


class Done(FrozenModel):
    """What `DONE.json` holds: the job's digest, who made the result, and its files by digest.

    `attempt` is the name of the attempt's folder; `files` is name -> SHA-256 of what lies in the
    folder that its job wrote.
    """

    job: str
    attempt: str
    result: Result
    files: dict[str, str]


def product(made: Job | Result) -> str:
    """The folder of an attempt that holds what its job yields."""
    return "adapter" if isinstance(made, TrainJob | TrainResult) else "answers"


def activity(job: Job) -> str:
    """What a job does, in the words of its messages."""
    return "training" if isinstance(job, TrainJob) else "answering"


Train = Callable[[TrainJob, Workplace, Progress, Stopping], TrainResult]


def run(folder: Path, train: Train = worker.train) -> bool:
    """Do the job of an attempt; whether it ended well. Failures are written, not raised.

    An attempt that was interrupted may be run again by a worker that is sure to be its only one: it
    continues from its own checkpoints. OSError is raised if its folder cannot be read or written.
    """
    order = Order.model_validate_json((folder / ORDER).read_text())
    job = folder.parent.parent
    if (job / DONE).exists():
        return True
    with (folder / EVENTS).open("a") as events:
        _say(events, {"stage": "loading", "host": socket.gethostname(), "process": os.getpid()})
        shutil.rmtree(order.place.out, ignore_errors=True)
        try:
            result = _do(
                order,
                train,
                lambda event: _say(events, event),
                lambda: (folder / STOP).exists(),
            )
            _publish(job, folder, order, result)
        except Exception as error:
            _write(folder / TRACEBACK, traceback.format_exc())
            failure = failure_of(error, activity(order.job))
            _write(folder / FAILURE, failure.model_dump_json())
            return False
    return True


def _do(order: Order, train: Train, progress: Progress, stopping: Stopping) -> Result:
    """What the job of an order comes to, in this process."""
    if isinstance(order.job, AnswerJob):
        return answering.answer(order.job, order.place, progress, stopping)
    answering.release()
    return train(order.job, order.place, progress, stopping)


def failure_of(error: Exception, what: str) -> worker.Failure:
    """What a controller is told of an exception; it raises the same class again."""
    if isinstance(error, MosaicError):
        word = getattr(error, "failure", None)
        return worker.Failure(error=type(error).__name__, message=str(error), failure=word)
    if isinstance(error, OSError) and error.errno in FULL:
        return worker.Failure(error="OSError", message=error.strerror or "", errno=error.errno)
    said = f"{what} failed with {type(error).__name__}: {error}"
    return worker.Failure(error="TrainingError", message=said, failure="error")


def _publish(job: Path, folder: Path, order: Order, result: Result) -> None:
    """Make the result the job's, unless another attempt was first."""
    out = Path(order.place.out)
    files = file_digests(out)
    for name in files:
        _flush(out / name)
    _flush(out)
    job_digest = order.job.content_digest
    done = Done(job=job_digest, attempt=folder.name, result=result, files=files)
    ready = folder / DONE
    _write(ready, done.model_dump_json())
    with suppress(FileExistsError):
        os.link(ready, job / DONE)
    _flush(job)


def file_digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def read_done(work: Path, job: str) -> Done | None:
    """How a job ended well, if it did.

    Raises UsageError if the folder is another job's, DamageError if the file is not whole.
    """
    try:
        done = Done.model_validate_json((work / DONE).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise DamageError(
            f"{work / DONE}: does not hold a result; remove {work} to begin anew"
        ) from None
    if done.job != job:
        raise UsageError(f"{work}: holds the result of job {done.job[:12]}, not of {job[:12]}")
    return done


def adopt(done: Done, work: Path, out: Path) -> Result:
    """The result of a job that has ended, its files linked to `out`, whoever asks for it.

    The attempt keeps its own: whoever is interrupted before they are filed asks again. Raises
    DamageError if they are not those that were published.
    """
    made = work / ATTEMPTS / done.attempt / product(done.result)
    if file_digests(made) != done.files:
        raise DamageError(f"{made}: is not what {work / DONE} says; remove {work} to begin anew")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(made, out, copy_function=os.link)
    if isinstance(done.result, TrainResult):
        return done.result.model_copy(update={"adapter": str(out)})
    return done.result


def _say(events: TextIO, event: Event) -> None:
    events.write(json.dumps(dict(event)) + "\n")
    events.flush()


def _write(path: Path, text: str) -> None:
    """A whole file or none: readers of the shared storage may look at any moment."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
