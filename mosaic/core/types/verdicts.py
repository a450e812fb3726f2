"""What is said of a trial once it is measured."""

from __future__ import annotations

from mosaic.core.types.base import FrozenModel
from mosaic.core.types.plans import Forecast


class TrialVerdict(FrozenModel):
    """What a round says of a trial that does not count, as it does itself of the one that does."""

    accepted: bool = False
    reason: str = ""
    dominated: bool = False
    forecast: list[Forecast] = []
