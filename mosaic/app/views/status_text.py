"""Where a run stands, as plain text."""

from __future__ import annotations

import time

from mosaic.app.shapes import Standing, Status
from mosaic.app.stage import duration, stage_text
from mosaic.app.views.spending import spending_lines


def status_text(status: Status, folder: str) -> str:
    """What `status` prints: the state first, then how far the run is and what is left."""
    standing = status.standing
    lines = [f"{folder}: {standing_text(standing)}"]
    if standing.stage is not None:
        lines.append(f"  now       {stage_text(standing.stage)}")
    lines.append(
        f"  rounds    {status.rounds}{'' if status.calibrated else ', not calibrated yet'}"
    )
    if status.archive:
        names = ["base" if number == 0 else str(number) for number in status.archive]
        lines.append(f"  archive   {', '.join(names)}")
    if status.begun and standing.state != "finished":
        lines.append(f"  begun     {status.begun}")
    lines.append(f"  tokens    {status.tokens_spent:,} spent, {status.tokens_left:,} left")
    lines += [f"  {line}" for line in spending_lines(status.spending)]
    return "\n".join(lines)


def standing_text(standing: Standing, now: float | None = None) -> str:
    """A state in a line: by whom, for how long, why.

    >>> standing_text(Standing(state="paused", since=100, why="the disk is full"), now=160)
    'paused 60 s ago: the disk is full'
    """
    text: str = standing.state
    if standing.by and standing.state == "running":
        text += f" by {standing.by}"
    if standing.since is not None:
        passed = duration(max(0.0, (time.time() if now is None else now) - standing.since))
        text += f", begun {passed} ago" if standing.state == "running" else f" {passed} ago"
    return f"{text}: {standing.why}" if standing.why else text
