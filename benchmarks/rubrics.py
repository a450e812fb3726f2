"""Rubrics: the published objectives written as data score the same, and bent ones are refused.

What is right is decided a second time here, on the plain data of the files and one combination
after the other, without anything that `eval.objectives.rubrics` does.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.figures import Rows, figure, not_measured
from eval.objectives import rubrics as published_rubrics
from eval.objectives.base import Channel, Objective
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.rubric import open_rubric
from eval.objectives.safety import Safety
from mosaic.core.errors import UsageError

FOLDER = Path(published_rubrics.__file__).parent
TURNS = range(1, 8)
# With --quick, one combination in so many: a prime, so that every value of every item is met.
QUICK_STEP = 101
MIN_BENT = 50
SMALL = """
version: 1
about: The assistant is asked to keep a recipe short.
request: {asked: {items: {limit: the user gives a limit}}}
answers:
  length: {items: {padded: it is padded, short: {ask: how short it is, values: none_some_most}}}
slices:
  - {slice: open, weight: 1, when: {none: [asked.limit]}}
  - {slice: limited, weight: 2, when: asked.limit}
levels:
  - {score: 5, failed: false, when: {all: [length.short == 2], none: [length.padded]}}
  - {score: 1, failed: true, when: {all: [length.padded, asked.limit]}}
  - {score: 3, failed: false, when: {any: [length.short, length.padded]}}
  - {score: 2, failed: true, otherwise: true}
"""
TWELVE = """
version: 1
about: Twelve items.
answers: {c: {items: {ITEMS}}}
levels:
  - {score: 5, failed: false, when: {count: c, max: 4}}
  - {score: 3, failed: false, when: {count: c, max: 8}}
  - {score: 1, failed: true, otherwise: true}
"""

Combination = dict[str, int]


def rubrics(quick: bool) -> Rows:
    """Differences from the published objectives, and bent rubrics that are accepted."""
    rows = []
    for objective in (Safety(), OverRefusal()):
        tried, differences = compared(objective, QUICK_STEP if quick else 1)
        what = f"{objective.name}: other results than the published rules in {tried:,} combinations"
        rows.append(figure(what, differences, "combinations", at_most=0))
    why = "it verifies by code a number of constraints that differs from prompt to prompt"
    rows.append(not_measured(f"instruction_following cannot be a rubric: {why}"))
    published = [(FOLDER / f"{name}.yaml").read_text() for name in ("safety", "over_refusal")]
    outcome = bent_and_opened([*published, SMALL])
    what = "bent rubrics that are ambiguous or incomplete, by brute force"
    rows.append(figure(what, outcome.bad, "rubrics", at_least=MIN_BENT))
    rows.append(figure("accepted of these", outcome.accepted, "rubrics", at_most=0))
    what = "refused without a combination that shows the flaw"
    rows.append(figure(what, outcome.not_shown, "rubrics", at_most=0))
    what = f"refused of {outcome.good} bent ones that are still sound"
    rows.append(figure(what, outcome.good_refused, "rubrics", at_most=0))
    rows.append(figure("opening a rubric with 12 items", seconds_of_twelve(), "s", at_most=0.5))
    return rows


# The published objectives


def compared(published: Objective, step: int) -> tuple[int, int]:
    """(combinations tried, combinations with another result) of items and 1 to 7 turns."""
    rubric = open_rubric(published.name, FOLDER / f"{published.name}.yaml")
    requests = list(all_items(published.request))
    answers = list(all_items(published.answers))
    tried = differences = 0
    combinations = itertools.product(requests, TURNS, answers)
    for request, turns, answer in itertools.islice(combinations, 0, None, step):
        line = {"id": "x", "turns": turns, "items": {**request, **answer}}
        tried += 1
        differences += result(published, line) != result(rubric, line)
    return tried, differences


def result(objective: Objective, line: Mapping[str, object]) -> tuple[object, ...]:
    """What a score of a line is made of, less its label."""
    scored = objective.score(line)
    return (
        scored.status,
        scored.slice,
        scored.weight,
        scored.valid,
        scored.score,
        scored.failed,
        scored.need,
    )


def all_items(channels: Sequence[Channel]) -> Iterator[dict[str, dict[str, int]]]:
    """Every combination of the items of some channels."""
    ranges = []
    for channel in channels:
        ranges += [range(item.most + 1) for item in channel.items]
    for values in itertools.product(*ranges):
        rest = iter(values)
        combination = {}
        for channel in channels:
            combination[channel.name] = dict(zip(channel.ranges, rest, strict=False))
        yield combination


# Bent rubrics


@dataclass
class Outcome:
    """What became of bent rubrics."""

    bad: int = 0
    good: int = 0
    accepted: int = 0
    not_shown: int = 0
    good_refused: int = 0


def bent_and_opened(texts: Sequence[str]) -> Outcome:
    """Bend rubrics in every way, decide each by brute force, and open it."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bent.yaml"
        for text in texts:
            for bent, part in bent_from(yaml.safe_load(text)):
                path.write_text(json.dumps(bent, indent=1))  # JSON is YAML too
                _open_and_count(path, bent, part, outcome)
    return outcome


def _open_and_count(path: Path, bent: dict, part: str, outcome: Outcome) -> None:
    truth = Truth(bent, part)
    if truth.exclusive and not truth.flawed():  # it is said of both lists
        truth = Truth(bent, "levels")
    if truth.other_fault():
        return
    flawed = truth.flawed()
    outcome.bad += flawed
    outcome.good += not flawed
    try:
        open_rubric("bent", path)
    except UsageError as error:
        outcome.good_refused += not flawed
        combination = error.details.get("combination")
        if flawed and not truth.shows(combination):
            outcome.not_shown += 1
    else:
        outcome.accepted += flawed


def bent_from(whole: dict) -> Iterator[tuple[dict, str]]:
    """(a bent copy, the list that was bent) in every way that is known here."""
    yield {**whole, "exclusive": True}, "slices"
    for part in ("slices", "levels"):
        entries = whole[part]
        for number, entry in enumerate(entries):
            yield _with(whole, part, entries[:number] + entries[number + 1 :]), part
            if "when" not in entry:
                continue
            follows = number + 1
            if follows < len(entries) and "when" in entries[follows]:
                swapped = [*entries]
                swapped[number], swapped[follows] = entries[follows], entry
                yield _with(whole, part, swapped), part
            twin = _other_outcome(entry)
            yield _with(whole, part, [*entries[:follows], twin, *entries[follows:]]), part
            for when in [{"none": [entry["when"]]}, *_smaller(entry["when"])]:
                changed = {**entry, "when": when}
                yield _with(whole, part, [*entries[:number], changed, *entries[follows:]]), part


def _with(whole: dict, part: str, entries: list) -> dict:
    return {**whole, part: entries}


def _other_outcome(entry: dict) -> dict:
    """The same condition with another score or weight."""
    if "slice" in entry:
        return {**entry, "weight": entry["weight"] + 1}
    return {**entry, "score": 4 if entry["score"] == 3 else 3, "label": "twin"}


def _smaller(when: object) -> Iterator[object]:
    """The condition less one of its parts, with a bound moved by one, or with another word."""
    if not isinstance(when, dict):
        return
    for word in ("min", "max"):
        for moved in (-1, 1):
            if word in when:
                yield {**when, word: when[word] + moved}
    for word in ("any", "all", "none"):
        parts = when.get(word, [])
        for number, part in enumerate(parts):
            less = parts[:number] + parts[number + 1 :]
            if less:
                yield {**when, word: less}
            for smaller in _smaller(part):
                yield {**when, word: [*parts[:number], smaller, *parts[number + 1 :]]}
    if "all" in when and "any" not in when:
        yield {("any" if key == "all" else key): value for key, value in when.items()}
    if "any" in when and "all" not in when:
        yield {("all" if key == "any" else key): value for key, value in when.items()}


class Truth:
    """One list of a rubric's plain data, decided combination by combination."""

    def __init__(self, rubric: dict, part: str) -> None:
        self.part = part
        self.entries = rubric[part]
        self.exclusive = rubric.get("exclusive", False)
        self.channels: dict[str, dict[str, int]] = {}
        sides = ("request",) if part == "slices" else ("answers", "request")
        for side in sides:
            for name, channel in rubric.get(side, {}).items():
                self.channels[name] = {}
                for item, asked in channel["items"].items():
                    degrees = isinstance(asked, dict) and "values" in asked
                    self.channels[name][item] = 2 if degrees else 1
        self.combinations = list(self._combinations())
        self.holders = [self._holding(combination) for combination in self.combinations]

    def _combinations(self) -> Iterator[Combination]:
        text = str(self.entries)
        names, ranges = [], []
        for channel, items in self.channels.items():
            counted = re.search(rf"'{channel}'", text)
            for item, most in items.items():
                if counted or f"{channel}.{item}" in text:
                    names.append(f"{channel}.{item}")
                    ranges.append(range(most + 1))
        if "turns" in text:
            names.append("turns")
            ranges.append(TURNS)
        for values in itertools.product(*ranges):
            yield dict(zip(names, values, strict=True))

    def _holding(self, combination: Combination) -> list[int]:
        """Numbers of the entries that hold; one that says otherwise holds if no other does."""
        holding = []
        for number, entry in enumerate(self.entries):
            if "when" in entry and self._met(entry["when"], combination):
                holding.append(number)
        if not holding and "otherwise" in self.entries[-1]:
            holding.append(len(self.entries) - 1)
        return holding

    def _met(self, when: object, combination: Combination) -> bool:
        if isinstance(when, str):
            path, *bound = when.split()
            value = combination[path]
            return value == int(bound[1]) if bound else value >= 1
        assert isinstance(when, dict)
        met = []
        if "any" in when:
            met.append(any(self._met(part, combination) for part in when["any"]))
        if "all" in when:
            met.append(all(self._met(part, combination) for part in when["all"]))
        if "none" in when:
            met.append(not any(self._met(part, combination) for part in when["none"]))
        if "turns" in when:
            met.append(_between(combination["turns"], when["turns"]))
        if "count" in when:
            met.append(_between(self._count(when["count"], combination), when))
        return all(met)

    def _count(self, named: str | list[str], combination: Combination) -> int:
        total = 0
        for name in [named] if isinstance(named, str) else named:
            for path, value in combination.items():
                if path == name or path.startswith(f"{name}."):
                    total += value
        return total

    def _outcome(self, number: int) -> tuple[object, ...]:
        entry = self.entries[number]
        if self.part == "slices":
            return entry["slice"], entry["weight"]
        return entry["score"], entry["failed"]

    def _where(self, number: int) -> list[int]:
        """The combinations for which an entry holds."""
        return [at for at, holders in enumerate(self.holders) if number in holders]

    def other_fault(self) -> bool:
        """Whether it is refused for another reason, which is not counted here.

        That is: a bound that its values never or always meet, no score of 5, nothing that fails.
        """
        if any(self._trivial(entry.get("when")) for entry in self.entries):
            return True
        if self.part == "slices":
            return False
        best = any(entry["score"] == 5 for entry in self.entries)
        return not (best and any(entry["failed"] for entry in self.entries))

    def _trivial(self, when: object) -> bool:
        if not isinstance(when, dict):
            return False
        if "count" in when:
            met = []
            for combination in self.combinations:
                met.append(_between(self._count(when["count"], combination), when))
            below = min(when.get("min", 0), when.get("max", 0)) < 0
            if below or all(met) or not any(met):
                return True
        parts = itertools.chain.from_iterable(when.get(word, []) for word in ("any", "all", "none"))
        return any(map(self._trivial, parts))

    def flawed(self) -> bool:
        """Whether it can give two outcomes, or none, or has an entry for nothing."""
        if not all(self.holders):
            return True
        where = [self._where(number) for number in range(len(self.entries))]
        if not all(where) or len(set(map(tuple, where))) < len(where):
            return True
        if self.exclusive and any(self._contradicting(holders) for holders in self.holders):
            return True
        for number in range(len(self.entries)):
            firsts = [self.holders[at][0] for at in where[number]]
            if number not in firsts and self._contradicting([number, *firsts]):
                return True
        return False

    def _contradicting(self, numbers: Sequence[int]) -> bool:
        return len({self._outcome(number) for number in numbers}) > 1

    def shows(self, combination: object) -> bool:
        """Whether a combination shows the flaw: no entry holds, or two that should not.

        An entry for nothing cannot be shown, unless it says otherwise and all is taken.
        """
        where = [self._where(number) for number in range(len(self.entries))]
        if not isinstance(combination, dict):
            never = [n for n, found in enumerate(where) if not found]
            return any("when" in self.entries[number] for number in never)
        if not set(self.combinations[0]) <= set(combination):
            return False
        known = {path: combination[path] for path in self.combinations[0]}
        holders = self._holding(known)
        if not holders:
            return True
        if "otherwise" in self.entries[-1] and not where[-1]:
            return len(holders) > 0
        same = any(where[a] == where[b] for a, b in itertools.combinations(holders, 2))
        return same or self._contradicting(holders)


def _between(value: int, bounds: Mapping[str, int]) -> bool:
    """Within min and max; without either, at least 1."""
    low = bounds.get("min", 0 if "max" in bounds else 1)
    return low <= value <= bounds.get("max", math.inf)


def seconds_of_twelve() -> float:
    """How long opening a rubric with twelve items of yes and no takes."""
    items = ", ".join(f"i{number}: it holds" for number in range(12))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "twelve.yaml"
        path.write_text(TWELVE.replace("ITEMS", items))
        started = time.monotonic()
        open_rubric("twelve", path)
        return time.monotonic() - started
