"""The command line in processes of its own that need not import torch and TRL again.

Each command is forked from a server that imported them once: what a command does to itself (signals,
exits, threads) stays its own, and the seven seconds of imports are paid once per worker.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

HEAVY = [
    "torch",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "peft",
    "trl.trainer.sft_trainer",
    "langgraph.checkpoint.sqlite",
]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(HEAVY)
_KEPT = tempfile.TemporaryDirectory()


@dataclass(frozen=True)
class Done:
    """How a command ended: `returncode` is negative for a signal."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """A command at work, in the working folder of the tests."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        folder = Path(tempfile.mkdtemp(dir=_KEPT.name))
        self._out, self._err = folder / "stdout", folder / "stderr"
        target = (arguments, dict(environment), os.getcwd(), str(self._out), str(self._err))
        self._process: ForkServerProcess = _SERVER.Process(target=_run, args=target)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> Done:
        """What it said, once it has ended. Raises TimeoutError if it runs longer."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            raise TimeoutError(f"still running after {seconds} s")
        return Done(code, self._out.read_text(), self._err.read_text())


def start(*arguments: object, **environment: str) -> Command:
    """Begin `python -m mosaic` with these arguments."""
    return Command([str(each) for each in arguments], {"COLUMNS": "200", **environment})


def mosaic(*arguments: object, **environment: str) -> Done:
    """`python -m mosaic` with these arguments, from beginning to end."""
    return start(*arguments, **environment).wait()


def _run(
    arguments: list[str], environment: Mapping[str, str], folder: str, out: str, err: str
) -> None:
    """In the child: be `python -m mosaic`."""
    os.chdir(folder)
    os.environ.update(environment)
    for path, number in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["mosaic", *arguments]
    from mosaic.__main__ import main

    main()
