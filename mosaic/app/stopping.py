"""Asking a running controller to stop: a small file in the run directory, which it looks for."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from mosaic.app.decisions import user_name
from mosaic.core.errors import UsageError
from mosaic.core.lock import other_holder
from mosaic.core.types.base import FrozenModel

STOP = "stop.json"


class StopOrder(FrozenModel):
    """Somebody asks a running controller to stop at its next safe point."""

    by: str
    reason: str = ""

    @property
    def text(self) -> str:
        """
        >>> StopOrder(by="ann", reason="the pool is wrong").text
        'stopped by ann: the pool is wrong'
        """
        return f"stopped by {self.by}" + (f": {self.reason}" if self.reason else "")


def stop_run(folder: Path, reason: str, by: str | None = None) -> StopOrder:
    """Ask the controller of a run to stop. It looks before each step and between batches.

    Raises UsageError if no other process holds the run.
    """
    if other_holder(folder) is None:
        raise UsageError(f"{folder}: no controller runs it, so that there is nothing to stop")
    order = StopOrder(by=by or user_name(), reason=reason.strip())
    temporary = folder / f".{STOP}.{os.getpid()}"
    temporary.write_text(json.dumps(order.json_data()) + "\n")
    os.replace(temporary, folder / STOP)
    return order


def stop_order(folder: Path) -> StopOrder | None:
    """What somebody asked, if anybody did."""
    try:
        return StopOrder.model_validate_json((folder / STOP).read_text())
    except FileNotFoundError:
        return None
    except ValidationError:
        return StopOrder(by="somebody", reason=f"{STOP} in the run directory")


def withdraw_stop(folder: Path) -> None:
    """What was asked of an earlier controller does not stop the next one."""
    (folder / STOP).unlink(missing_ok=True)
