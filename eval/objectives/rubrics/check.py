"""Whether a rubric gives every combination of items one outcome: decided by trying them all.

Only items that conditions mention are tried, each with all its values, and numbers of turns between
which no condition tells a difference are tried once. Every combination is one element of an array,
so that a condition is decided for all of them at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eval.objectives.rubrics.conditions import OTHERWISE, TURNS, Condition, holds, sums
from eval.objectives.rubrics.nodes import Place
from mosaic.core.errors import UsageError

MAX_COMBINATIONS = 2**20


class Entry(Protocol):
    """A level or a slice. Entries with the same outcome do not contradict each other."""

    @property
    def when(self) -> Condition: ...
    @property
    def place(self) -> Place: ...
    @property
    def outcome(self) -> tuple[object, ...]: ...
    @property
    def gives(self) -> str: ...


@dataclass(frozen=True)
class Combinations:
    """All combinations of the values of some paths, one axis for each path."""

    axes: Mapping[str, tuple[int, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes.values()))

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Path -> its values along its own axis."""
        values = {}
        for axis, (path, along) in enumerate(self.axes.items()):
            shape = [1] * len(self.axes)
            shape[axis] = len(along)
            values[path] = np.array(along, np.int16).reshape(shape)
        return values

    def truth(self, condition: Condition) -> np.ndarray:
        """For which combinations a condition holds."""
        return np.broadcast_to(np.asarray(holds(condition, self.values)), self.shape)

    def one_of(self, truth: np.ndarray) -> dict[str, int]:
        """The first combination for which this is true."""
        places = np.unravel_index(int(np.argmax(truth)), truth.shape)
        combination = {}
        for (path, along), at in zip(self.axes.items(), places, strict=True):
            combination[path] = along[int(at)]
        return combination


def combinations_of(
    conditions: Iterable[Condition], ranges: Mapping[str, int], place: Place
) -> Combinations:
    """All combinations that these conditions can tell apart. Raises UsageError for too many."""
    mentioned: set[str] = set()
    turns = {1}
    for condition in conditions:
        for one in sums(condition):
            mentioned.update(one.paths)
            if TURNS in one.paths:
                turns.add(one.low)
                turns.add(1 if one.high is None else one.high + 1)
    axes: dict[str, tuple[int, ...]] = {}
    for path, most in ranges.items():
        if path in mentioned:
            axes[path] = tuple(range(most + 1))
    if TURNS in mentioned:
        axes[TURNS] = tuple(sorted(turns))
    count = math.prod(map(len, axes.values()))
    if count > MAX_COMBINATIONS:
        raise place.error(
            f"its conditions mention {len(axes)} items, which makes {count:,} combinations; at "
            f"most {MAX_COMBINATIONS:,} can be checked: mention fewer items, or ask one question "
            "with the values none_some_most in place of several"
        )
    return Combinations(axes)


def check_entries(
    entries: Sequence[Entry], ranges: Mapping[str, int], exclusive: bool, place: Place
) -> list[str]:
    """Notes on entries that are not needed.

    Raises UsageError, with the combination in the message and in `details`, if a combination has no
    entry, or if an entry contradicts an earlier one that always comes before it. Under `exclusive`,
    entries with different outcomes may not hold together at all.
    """
    combinations = combinations_of([entry.when for entry in entries], ranges, place)
    covered = _Covered(combinations, exclusive)
    notes = []
    for entry in entries:
        note = covered.add(entry)
        if note:
            notes.append(note)
    free = covered.first < 0
    if free.any():
        raise _refused(
            place,
            "no entry covers {}; add one that does, or end with `otherwise: true`",
            combinations.one_of(free),
        )
    return notes


class _Covered:
    """Which entry comes first for each combination, as entries are added in their order."""

    def __init__(self, combinations: Combinations, exclusive: bool) -> None:
        self.first = np.full(combinations.shape, -1, np.int16)
        self._combinations = combinations
        self._exclusive = exclusive
        self._entries: list[Entry] = []
        self._same: dict[bytes, Entry] = {}

    def add(self, entry: Entry) -> str | None:
        """Add an entry. A note if it is never needed; UsageError if it contradicts another one."""
        free = self.first < 0
        is_rest = entry.when == OTHERWISE
        truth = free if is_rest else self._combinations.truth(entry.when)
        taken = truth & ~free
        note = None
        if is_rest and not free.any():
            self._refuse(entry, ~free, "nothing is left for it")
        if not truth.any():
            raise entry.place.error("no combination of items meets this condition")
        same = self._same.setdefault(_digest(truth), entry)
        if same is not entry and not is_rest:
            self._refuse(entry, truth, f"it has the same condition as {same.place.path}", same)
        contradicted = taken & self._differs(entry)
        if self._exclusive and contradicted.any():
            self._refuse(
                entry, contradicted, "the file says exclusive, and two of its entries hold"
            )
        if not (truth & free).any():
            if contradicted.any():
                self._refuse(entry, contradicted, "it can never be reached")
            note = f"{entry.place.path} is never needed: earlier ones give the same"
        self.first[truth & free] = len(self._entries)
        self._entries.append(entry)
        return note

    def _differs(self, entry: Entry) -> np.ndarray:
        """For each combination, whether the entry that comes first has another outcome."""
        differs = [earlier.outcome != entry.outcome for earlier in self._entries]
        return np.array([*differs, False])[self.first]  # the last one is for -1: no entry yet

    def _refuse(
        self, entry: Entry, truth: np.ndarray, why: str, earlier: Entry | None = None
    ) -> None:
        """Raise the error that shows one of these combinations with both entries."""
        if earlier is None:
            differing = truth & self._differs(entry)
            truth = differing if differing.any() else truth
            at = self.first.flat[int(np.argmax(truth))]
            earlier = self._entries[int(at)]
        combination = self._combinations.one_of(truth)
        raise _refused(
            entry.place,
            f"{why}: with {{}}, {earlier.place.path} gives {earlier.gives} and "
            f"{entry.place.path} gives {entry.gives}",
            combination,
        )


def check_invalid(condition: Condition, ranges: Mapping[str, int], place: Place) -> None:
    """UsageError if the condition on invalid requests holds for all of them, or for none."""
    truth = combinations_of([condition], ranges, place).truth(condition)
    if truth.all():
        raise place.error("every request meets this condition, so that none would be valid")
    if not truth.any():
        raise place.error("no combination of items meets this condition")


def _digest(truth: np.ndarray) -> bytes:
    return hashlib.sha256(np.packbits(truth).tobytes()).digest()


def _refused(place: Place, message: str, combination: Mapping[str, int]) -> UsageError:
    error = place.error(message.format(shown(combination)))
    error.details = {"combination": dict(combination)}
    return error


def shown(combination: Mapping[str, int]) -> str:
    """A combination in a message: what is not 0, and what all others are.

    >>> shown({"help.clear": 1, "help.kind": 0, "help.short": 0, "turns": 3})
    'help.clear = 1, turns = 3 and all other items 0'
    """
    set_ = [f"{path} = {value}" for path, value in combination.items() if value]
    if len(set_) == len(combination):
        return ", ".join(set_) or "any items"
    if not set_:
        return "all items 0"
    return f"{', '.join(set_)} and all other items 0"
