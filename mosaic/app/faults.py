"""Faults of checks that do not depend on each other: all are told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mosaic.core.errors import BudgetError, MosaicError, UsageError

# What is wrong with the input; anything else ends the checks at once.
TOLD = (UsageError, BudgetError)


class SeveralFaults(UsageError):
    """More than one fault of the input."""

    def __init__(self, faults: Sequence[MosaicError]) -> None:
        lines = [f"{len(faults)} faults:"]
        for number, fault in enumerate(faults, start=1):
            lines.append(f"{number}. " + str(fault).replace("\n", "\n   "))
        super().__init__("\n".join(lines))
        self.faults = list(faults)


class FaultList:
    """Keeps what fails inside `with faults.kept():`, check by check; `tell` raises all of it at once."""

    def __init__(self) -> None:
        self.found: list[MosaicError] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While inside, a fault ends what is inside, and is kept."""
        try:
            yield
        except TOLD as error:
            self.add(error)

    def add(self, fault: MosaicError) -> None:
        """Keep a fault; several told as one are kept one by one. The same words are told once."""
        known = {str(each) for each in self.found}
        for one in fault.faults if isinstance(fault, SeveralFaults) else [fault]:
            if str(one) not in known:
                self.found.append(one)

    def tell(self) -> None:
        """Raise what was kept: a single fault as it was raised, several as one."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise SeveralFaults(self.found)
