"""The family of failures, sorted by who must act.

::

    MosaicError
    ├── UsageError        the user: bad config, plan, pool, suite, refused decision   exit 2
    ├── BudgetError       the user: the budget cannot pay the first planned round     exit 4
    ├── HeldError         another controller holds the run                            exit 5
    ├── PausedError       the operator: an endpoint is down, a disk is full           exit 6
    ├── WaitingError      a person must decide                                        exit 3
    ├── StopRequested     the operator asked for it (Ctrl-C, SIGTERM)                exit 130
    ├── BoundaryError     the operator: a part behind a seam broke (trainer, server)  exit 1
    │   └── TrainingError a training failed, and how                                  exit 1
    └── DamageError       stored data does not match its digest                       exit 1

A bad item (an unparsable answer, an unscored prompt) is data and has no class here. Anything that is
not a `MosaicError` is a programmer's mistake and keeps its traceback.
"""

from typing import Any


class MosaicError(Exception):
    """Base of all expected failures; `exit_code` is what the command line returns. `details` go into the trace where an
    effect ends with this failure: plain JSON, empty for nothing to tell."""

    exit_code = 1

    def __init__(self, *words: object) -> None:
        super().__init__(*words)
        self.details: dict[str, Any] = {}


class UsageError(MosaicError):
    """Input that cannot be used. The message names file, line or field path, value, what is allowed, what next."""

    exit_code = 2


class WaitingError(MosaicError):
    """The run waits for a person's decision."""

    exit_code = 3


class BudgetError(MosaicError):
    """The token budget cannot pay what was asked for."""

    exit_code = 4


class HeldError(MosaicError):
    """Another controller holds the run directory."""

    exit_code = 5


class PausedError(MosaicError):
    """The run stopped at a safe point; `resume` continues when the cause is gone."""

    exit_code = 6


class StopRequested(MosaicError):
    """A person or the system asked the run to stop; it stood at a safe point."""

    exit_code = 130


class BoundaryError(MosaicError):
    """A part behind a seam failed: trainer, generator, judge, planner endpoint."""


class TrainingError(BoundaryError):
    """A training failed.

    `failure` is one word for how: out_of_memory, nan_loss, wrong_adapter, hang, no_adapter,
    no_heads, killed or error. Input that cannot be trained on is a UsageError instead.
    """

    # What follows from the job itself: the same job on the same machine would end the same way.
    REPEATING = frozenset({"out_of_memory", "nan_loss", "wrong_adapter", "no_heads"})

    def __init__(self, message: str, failure: str = "error") -> None:
        super().__init__(message)
        self.failure = failure
        self.details = {"failure": failure}

    @property
    def repeats(self) -> bool:
        """Whether the same job would fail again, so that trying it unchanged is a waste.

        >>> TrainingError("the loss is nan", "nan_loss").repeats
        True
        >>> TrainingError("signal 9", "killed").repeats
        False
        """
        return self.failure in self.REPEATING


class DamageError(MosaicError):
    """Stored bytes do not match the digest they are filed under."""
