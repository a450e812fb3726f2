"""Attempts on a Ray cluster, through a child process that is connected to it (`ray_client`)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from mosaic.core.errors import PausedError, UsageError
from tools.executors.base import RayExecutorConfig, sources
from tools.executors.remote import State

# What decides the bits of a training, or whether it reaches for the network, and is the process's.
HANDED_ON = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
CONNECTING = 120.0
ENDING = 30.0
RUNS = "training.attempt:run"


@dataclass
class Link:
    """What the client said so far; `changed` guards all of it. The client's reader holds only this."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    states: dict[str, tuple[State, str]] = field(default_factory=dict)
    connected: bool = False
    doubt: str = ""
    lost: str = ""

    def read(self, child: subprocess.Popen[str]) -> None:
        """Take the client's events until it ends; its end is the loss of the cluster."""
        assert child.stdout is not None
        lost = "the connection was lost"
        for line in child.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # what libraries print
                continue
            with self.changed:
                if "attempt" in event:
                    self.states[event["attempt"]] = (State(event["state"]), event["why"])
                elif "connected" in event:
                    self.connected = True
                elif "doubt" in event:
                    self.doubt = event["doubt"]
                else:
                    lost = event["lost"]
                self.changed.notify_all()
        child.wait()
        with self.changed:
            self.lost = lost
            self.changed.notify_all()


class RayEngine:
    """Starts attempts on Ray. `folder` is the run's: its controllers share workers, others do not.

    `runs` names the function that a worker runs an attempt with. `notify` is told if the cluster
    has no node for a worker.
    """

    def __init__(
        self,
        config: RayExecutorConfig,
        folder: Path,
        runs: str = RUNS,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        if find_spec("ray") is None:
            raise UsageError(
                "executor.kind: ray is not installed; pip install 'mosaic-curation[ray]'"
            )
        self.config = config
        folder = folder.resolve()
        self.log = folder / "logs" / "ray.log"
        whole = str(folder).encode()
        self.namespace = f"mosaic-{hashlib.sha256(whole).hexdigest()[:16]}"
        self.runs = runs
        self.notify = notify
        self._link = Link()
        self._child: subprocess.Popen[str] | None = None

    def start(self, attempt: Path) -> None:
        """Hand an attempt to the client. Raises PausedError if the cluster cannot be reached."""
        self._command("start", attempt)

    def attach(self, attempt: Path) -> bool:
        """Whether a worker of an earlier controller has the attempt."""
        self._command("attach", attempt)
        with self._link.changed:
            while self.state(attempt)[0] is State.WAITING:
                self._link.changed.wait(1)
            return self.state(attempt)[0] is State.RUNNING

    def state(self, attempt: Path) -> tuple[State, str]:
        """What the client last said. Raises PausedError once it has lost its cluster."""
        with self._link.changed:
            if self._link.lost:
                raise self._paused()
            return self._link.states[str(attempt)]

    def end(self, attempt: Path) -> None:
        """Have an attempt's worker killed, and wait until it has ended."""
        until = time.monotonic() + ENDING
        with suppress(PausedError), self._link.changed:
            if self.state(attempt)[0] is State.ENDED:
                return
            self._command("end", attempt)
            while self.state(attempt)[0] is not State.ENDED and time.monotonic() < until:
                self._link.changed.wait(1)

    def wait(self, seconds: float) -> None:
        """Return at the client's next word, after so long at the latest."""
        with self._link.changed:
            self._link.changed.wait(seconds)

    def _command(self, what: str, attempt: Path) -> None:
        link = self._link
        with link.changed:
            child = self._connect()
            if what != "end":
                link.states[str(attempt)] = (State.WAITING, "")
            assert child.stdin is not None
            try:
                child.stdin.write(json.dumps({what: str(attempt)}) + "\n")
                child.stdin.flush()
            except OSError:  # it has ended; its reader is about to say why
                while not link.lost:
                    link.changed.wait(1)
                raise self._paused() from None

    def _connect(self) -> subprocess.Popen[str]:
        """The client, started if there is none; connected when this returns."""
        link = self._link
        if self._child is None:
            self._child = self._start_client()
        until = time.monotonic() + CONNECTING
        while not link.connected and not link.lost and time.monotonic() < until:
            link.changed.wait(1)
        if link.lost or not link.connected:
            raise self._paused()
        if link.doubt:
            self.notify(f"warning: executor.resources: {link.doubt}")
            link.doubt = ""
        return self._child

    def _start_client(self) -> subprocess.Popen[str]:
        handed_on = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        settings = {
            "config": self.config.json_data(),
            "namespace": self.namespace,
            "runs": self.runs,
            "environment": {"OMP_NUM_THREADS": "1", **handed_on},
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "tools.executors.ray_client", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                # Ray's workers look for packages where the process that asks for them has started.
                cwd=sources(),
            )
        threading.Thread(target=self._link.read, args=(child,), daemon=True).start()
        weakref.finalize(self, _say_goodbye, child)
        return child

    def _paused(self) -> PausedError:
        where = self.config.address or "this machine"
        why = self._link.lost or f"no answer in {CONNECTING:g} s"
        return PausedError(
            f"executor: Ray at {where} does not answer: {why} (log: {self.log}); what its workers "
            "finish is kept; resume when it is back"
        )


def _say_goodbye(child: subprocess.Popen[str]) -> None:
    """Let the client end idle workers: the controller ends as it should."""
    assert child.stdin is not None
    with suppress(OSError, ValueError):
        child.stdin.write(json.dumps({"bye": ""}) + "\n")
        child.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(ENDING)
    if child.poll() is None:
        child.kill()
        child.wait()
