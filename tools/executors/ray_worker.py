"""A worker on a Ray cluster: a detached actor that trains one attempt after the other.

It stays warm: importing torch, transformers and trl costs 6 to 10 s, the next attempt 0.1 s. It
frees its slot by itself once no controller has asked for it for the time of its lease.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import threading
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from training.attempt import EVENTS

# A worker that has had no job for so many seconds gives the model back that answered.
IDLE = 5.0


class RayWorker:
    """Methods are called by threads of Ray's; one attempt is trained at a time.

    `runs` is the `module:function` that runs an attempt, `environment` what must be set before
    torch is imported. Seconds of `lease` as in `RayExecutorConfig`; an abandoned training that was
    silent for `heartbeat` ends with its worker.
    """

    def __init__(
        self, runs: str, environment: dict[str, str], lease: float, heartbeat: float | None
    ) -> None:
        os.environ.update(environment)
        self._runs = runs
        self._lease, self._heartbeat = lease, heartbeat
        self._changed = threading.Condition()
        self._attempt: str | None = None
        self._ended: dict[str, bool] = {}
        self._renewed = self._busy = time.monotonic()
        threading.Thread(target=self._watch_lease, daemon=True).start()

    def hello(self) -> dict[str, str]:
        """Who this is. A controller of another version must not use it."""
        self.renew()
        return {"version": installed_version(), "host": platform.node()}

    def renew(self) -> None:
        """Begin the lease anew."""
        self._renewed = time.monotonic()

    def doing(self) -> str | None:
        """The attempt that is trained just now."""
        return self._attempt

    def train(self, attempt: str) -> bool:
        """Train an attempt; whether it ended well. Asking again gives the same answer, later."""
        with self._changed:
            while self._attempt == attempt:
                self._changed.wait()
            if attempt in self._ended:
                return self._ended[attempt]
            if self._attempt is not None:
                raise RuntimeError(f"this worker trains {self._attempt}")
            self._attempt = attempt
        well = False
        try:
            module, _, function = self._runs.partition(":")
            well = getattr(import_module(module), function)(Path(attempt))
        finally:
            _free_memory()
            with self._changed:
                self._attempt = None
                self._busy = time.monotonic()
                self._ended[attempt] = well
                self._changed.notify_all()
        return well

    def _watch_lease(self) -> None:
        while True:
            time.sleep(min(self._lease / 4, IDLE))
            self._give_back()
            if time.monotonic() - self._renewed > self._lease and not self._at_work():
                # Ray frees what the actor holds as soon as its process has ended.
                os._exit(0)

    def _give_back(self) -> None:
        """Let go of the model that answered, if nobody has asked for a while: it holds the device."""
        answering = sys.modules.get("training.answering")  # it imports torch
        with self._changed:
            idle = self._attempt is None and time.monotonic() - self._busy > IDLE
            if answering is not None and idle:
                answering.release()

    def _at_work(self) -> bool:
        """Whether an attempt is trained that has shown progress within the heartbeat."""
        attempt = self._attempt
        if attempt is None:
            return False
        if self._heartbeat is None:
            return True
        try:
            silent = time.time() - (Path(attempt) / EVENTS).stat().st_mtime
        except OSError:  # the storage is gone, or the job is
            return False
        return silent < self._heartbeat


def installed_version() -> str:
    """The release that this machine has installed."""
    try:
        return version("mosaic-curation")
    except PackageNotFoundError:
        return "sources alone"


def _free_memory() -> None:
    """Give the GPU memory of a training back: others of the machine may want it meanwhile."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
