"""Telling people what became of a run: a command, a webhook. Bounded, and never in a run's way.

A notice says where a run stands and which command comes next. It carries no text of a model or a
data set.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from pydantic import Field, model_validator

from mosaic.app.endings import Ending, ending_of
from mosaic.core.errors import HeldError, UsageError
from mosaic.core.types.base import FrozenModel

SECONDS = 10.0  # that a command or a webhook may take
GRACE = 2.0  # seconds more for a thread that is about to end
SCHEMES = ("http://", "https://")
NEXT = {"waiting": "pending", "finished": "report"}


def _is_none(value: object) -> bool:
    return value is None


class NotifyConfig(FrozenModel):
    """Whom to tell when a run waits, is paused, stopped or failed, or has finished.

    `command` gets the notice as JSON on its standard input. `webhook` is an address that the notice
    is posted to; an address that is a secret is given by `webhook_env`, the name of an environment
    variable.
    """

    command: list[str] | None = Field(default=None, min_length=1, exclude_if=_is_none)
    webhook: str | None = Field(default=None, exclude_if=_is_none)
    webhook_env: str | None = Field(default=None, min_length=1, exclude_if=_is_none)

    @model_validator(mode="after")
    def _sensible(self) -> NotifyConfig:
        if self.webhook is not None and self.webhook_env is not None:
            raise ValueError("webhook and webhook_env name the same thing; leave one out")
        if self.webhook is not None and not self.webhook.startswith(SCHEMES):
            raise ValueError("webhook: begins with http:// or https://")
        if self.command is None and self.webhook is None and self.webhook_env is None:
            raise ValueError("names neither a command nor a webhook")
        return self

    def address(self) -> str | None:
        """Where the notice is posted to. Raises UsageError if the variable is not set."""
        if self.webhook_env is None:
            return self.webhook
        address = os.environ.get(self.webhook_env, "")
        if not address.startswith(SCHEMES):
            raise UsageError(
                f"notify.webhook_env: the variable {self.webhook_env} holds no http address; set it"
            )
        return address


class Notice(FrozenModel):
    """What is told. `at` is in seconds since 1970, `next` the command that goes on from here."""

    run: str
    folder: str
    host: str
    state: Ending
    why: str
    at: float
    next: str


class Tell(Protocol):
    """Tells how a run ended. `begun` says that its rounds had begun: bad input ends it then."""

    def __call__(self, error: BaseException | None, begun: bool = False) -> None: ...


@contextmanager
def told(folder: Path, config: NotifyConfig | None, say: Callable[[str], None]) -> Iterator[Tell]:
    """While inside, whatever ends the run is told; also by a call of what this yields.

    A start that was refused (bad input, a run that another process holds) is not a run's end.
    """
    if config is not None:
        config.address()  # a variable that is missing is said before anything is spent

    def tell(error: BaseException | None, begun: bool = False) -> None:
        refused = isinstance(error, UsageError | HeldError) and not begun
        if config is not None and not refused:
            send(config, notice_of(folder, error), say)

    try:
        yield tell
    except BaseException as error:
        tell(error)
        raise
    tell(None)


def notice_of(folder: Path, error: BaseException | None) -> Notice:
    """What an end of a run means."""
    state, why = ending_of(error)
    command = NEXT.get(state, "resume")
    return Notice(
        run=folder.name,
        folder=str(folder.resolve()),
        host=platform.node(),
        state=state,
        why=why,
        at=time.time(),
        next=f"python -m mosaic {command} {folder}",
    )


def send(config: NotifyConfig, notice: Notice, say: Callable[[str], None]) -> None:
    """Tell both at once, and go on after a bounded time. What failed is said, and nothing raised."""
    text = json.dumps(notice.json_data())
    faults: list[str] = []
    tasks: list[Callable[[], None]] = []
    command, address = config.command, config.address()
    if command is not None:
        tasks.append(lambda: _command(command, text, faults))
    if address is not None:
        tasks.append(lambda: _post(address, text, faults))
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + GRACE)
        if thread.is_alive():
            faults.append("did not end in time")
    for fault in faults:
        say(f"notify: {fault}; the run is not affected")


def _command(command: list[str], text: str, faults: list[str]) -> None:
    try:
        started = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        faults.append(f"{command[0]}: {error.strerror}")
        return
    try:
        started.communicate(text.encode(), timeout=SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        faults.append(f"{command[0]}: did not end within {SECONDS:.0f} s")
        return
    if started.returncode:
        faults.append(f"{command[0]}: ended with {started.returncode}")


def _post(address: str, text: str, faults: list[str]) -> None:
    """The address is not told: it may be a secret."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, text.encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except urllib.error.HTTPError as error:
        faults.append(f"the webhook answered {error.code}")
    except (OSError, ValueError, HTTPException) as error:
        faults.append(f"the webhook did not answer: {type(error).__name__}")
