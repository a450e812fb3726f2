"""Showing how far a run is: bars on a terminal, a line a stage elsewhere, and a file for readers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic.app.shapes import StageProgress
from mosaic.app.stage import EVERY, FILE, duration
from mosaic.app.terminal import safe_lines
from mosaic.app.wiring import Reporting
from training.methods.base import Event

if TYPE_CHECKING:
    from rich.progress import TaskID


class Bars(Reporting):
    """Rich progress bars on a terminal; a line for each finished stage elsewhere."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._live = sys.stderr.isatty()
        self._say = say
        self._folder: Path | None = None
        self._stage: StageProgress | None = None
        self._began = self._written = 0.0
        self.notify = say
        self.evaluating = lambda what, done, total: self._show(what, done, total)
        self.generating = lambda done, total: self._show("generating", done, total)
        self.training = self._train
        if self._live:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.text import Text

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[loss]}"),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._tasks: dict[str, TaskID] = {}
            # As it stands: a model's words may hold what Rich would take for markup or an emoji.
            self.notify = lambda text: self._progress.console.print(Text(safe_lines(text)))

    def into(self, folder: Path) -> None:
        """Write what is done into this run directory as well."""
        self._folder = folder

    def _train(self, event: Event) -> None:
        step, steps, loss = event.get("step"), event.get("steps"), event.get("loss")
        if isinstance(step, int) and isinstance(steps, int):
            self._show("training", step, steps, loss if isinstance(loss, float) else None)

    def _show(self, what: str, done: int, total: int, loss: float | None = None) -> None:
        now, before = time.monotonic(), self._stage
        begins = before is None or before.what != what or done < before.done
        if begins:
            self._began = now
        if loss is None and before is not None and not begins:
            loss = before.loss
        seconds = now - self._began
        self._stage = StageProgress(what=what, done=done, total=total, seconds=seconds, loss=loss)
        if begins or done >= total or now - self._written >= EVERY:
            self._written = now
            self._write(self._stage)
        if self._live:
            self._draw(self._stage, begins)
        elif done >= total:
            took = duration(seconds)
            tail = "" if loss is None else f", loss {loss:.3f}"
            self._say(f"  {what}: {total:,} in {took}{tail}")

    def _write(self, stage: StageProgress) -> None:
        if self._folder is None:
            return
        temporary = self._folder / f".{FILE}.{os.getpid()}"
        with suppress(OSError):  # a full disk is for the journal to notice
            temporary.write_text(json.dumps(stage.json_data()))
            os.replace(temporary, self._folder / FILE)

    def _draw(self, stage: StageProgress, begins: bool) -> None:
        if stage.what not in self._tasks:
            task = self._progress.add_task(stage.what, total=stage.total, loss="")
            self._tasks[stage.what] = task
        task = self._tasks[stage.what]
        if begins:
            self._progress.reset(task, total=stage.total)  # its clock starts again
        loss = "" if stage.loss is None else f"loss {stage.loss:.3f}"
        self._progress.update(
            task,
            completed=stage.done,
            total=stage.total,
            visible=stage.done < stage.total,
            loss=loss,
        )

    def __enter__(self) -> Bars:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._progress.stop()
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / FILE).unlink(missing_ok=True)
