"""One row of a benchmark."""

from __future__ import annotations

from typing import Any


def figure(
    what: str, value: float, unit: str, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """A measured figure with its goal, if it has one."""
    goal = (
        f"at most {at_most:g}"
        if at_most is not None
        else f"at least {at_least:g}"
        if at_least is not None
        else None
    )
    met = (
        None
        if goal is None
        else value <= at_most
        if at_most is not None
        else value >= (at_least or 0.0)
    )
    return {"what": what, "figure": round(value, 4), "unit": unit, "goal": goal, "met": met}
