"""What a controller does just now, in a file that `status` and the page read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from mosaic.app.shapes import StageProgress

FILE = "progress.json"
EVERY = 1.0  # seconds between two writes of the file


def read_stage(folder: Path) -> StageProgress | None:
    """What the controller of a run does just now, as it wrote it down last."""
    with suppress(OSError, ValidationError):
        return StageProgress.model_validate_json((folder / FILE).read_text())
    return None


def stage_text(stage: StageProgress) -> str:
    """A stage in words.

    >>> stage_text(StageProgress(what="training", done=50, total=200, seconds=10, loss=0.5))
    'training 50 of 200, 5.0/s, 30 s left, loss 0.500'
    """
    parts = [f"{stage.what} {stage.done:,} of {stage.total:,}"]
    if stage.rate is not None:
        parts.append(f"{stage.rate:,.1f}/s")
    if stage.left is not None:
        parts.append(f"{duration(stage.left)} left")
    if stage.loss is not None:
        parts.append(f"loss {stage.loss:.3f}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """
    >>> duration(42.3), duration(200), duration(8000)
    ('42 s', '3 min', '2.2 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
