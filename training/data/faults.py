"""Bad rows of a build: all are counted, and the first are named in one message."""

from __future__ import annotations

from dataclasses import dataclass, field

from mosaic.core.errors import UsageError

MAX_SHOWN = 20


@dataclass
class Faults:
    """Rows that cannot be trained on, as `file:line: field: what is wrong`."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Count a bad row."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(fault)

    def join(self, others: Faults) -> None:
        """Count the bad rows of others, which were read later."""
        self.count += others.count
        self.shown += others.shown[: MAX_SHOWN - len(self.shown)]

    def refuse(self) -> None:
        """Raise UsageError naming the bad rows, if there are any."""
        if not self.count:
            return
        if self.count == 1:
            raise UsageError(self.shown[0])
        lines = [f"{self.count:,} bad rows:", *(f"  {fault}" for fault in self.shown)]
        if self.count > len(self.shown):
            lines.append(f"  ... and {self.count - len(self.shown):,} more")
        raise UsageError("\n".join(lines))
