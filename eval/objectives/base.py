"""The seam of an objective: what its stored atomic items mean.

One file each; pure, no judge is asked here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from eval.slices import own_slice
from mosaic.core.types.base import LABEL, NAMES, digest_of
from mosaic.core.types.evaluation import Prompt, Response, Scored
from prompts.load import Prompt as PromptFile

Line = Mapping[str, object]
"""A stored item as it was read: `id`, and what the objective's rules need.

Checked where it is read.
"""
Channels = Mapping[str, Mapping[str, int]]
"""channel -> item -> value"""
Constraints = Sequence[Mapping[str, object]]
"""Constraints to verify: `id` of the checker, and its `params`."""


Side = Literal["answers", "request"]
"""What items are about: the assistant's answers, or the user's request."""


@dataclass(frozen=True)
class Item:
    """A yes or no question (values 0 and 1), or one of degree (0 none, 1 some, 2 most)."""

    name: str
    most: Literal[1, 2] = 1


@dataclass(frozen=True)
class Channel:
    """Items that belong together. `turns` says which assistant turns they are read from."""

    name: str
    items: tuple[Item, ...]
    turns: Literal["all", "last"] = "last"

    @property
    def ranges(self) -> dict[str, int]:
        """Item -> its greatest value."""
        return {item.name: item.most for item in self.items}


def channel_of(
    name: str, ranges: Mapping[str, int], turns: Literal["all", "last"] = "last"
) -> Channel:
    """A channel from item -> greatest value."""
    items = [Item(item, 2 if most == 2 else 1) for item, most in ranges.items()]
    return Channel(name, tuple(items), turns)


class Objective(Protocol):
    """L3 -> L2 -> L1 of one objective, and its slices.

    `evidence` says what is measured: answers to prompts, or the likelihood of held-out texts.
    `rules` is the digest of everything that its judgments depend on beside judge and answers.
    `answers` and `request` are the channels that a judge decides, of the assistant's answers and of
    the user's request. An objective without `answers` checks answers by code.
    """

    @property
    def name(self) -> str: ...
    @property
    def evidence(self) -> Literal["answers", "likelihood"]: ...
    @property
    def rules(self) -> str: ...
    @property
    def answers(self) -> tuple[Channel, ...]: ...
    @property
    def request(self) -> tuple[Channel, ...]: ...
    @property
    def fields(self) -> Mapping[str, object]:
        """Fields of a stored line beside `id` and `items`: name -> annotation."""
        ...

    def words(self, side: Side) -> PromptFile:
        """What a judge that is a model is told of the items of one side."""
        ...

    def stored(self, prompt: Prompt, items: Channels) -> dict[str, object]:
        """The L3 that is stored of judged answers, as `score` reads it, less the id."""
        ...

    def check(self, prompt: Prompt, response: Response) -> dict[str, object]:
        """The L3 of answers that code checks, less the id. Raises Unchecked."""
        ...

    def score(self, line: Line) -> Scored:
        """Label and score of one stored item (`mosaic score`).

        A missing or malformed item is `unscored`, never 0.
        """
        ...

    def prompt_side(
        self, prompt_items: Channels, turns: int, constraints: Constraints
    ) -> tuple[str, int, int]:
        """(slice, weight, valid) of a prompt or pool row, from its prompt-side items alone.

        May raise Malformed.
        """
        ...

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        """Counts of label values over scored items, by dimension."""
        ...


@runtime_checkable
class LabelsPrompts(Protocol):
    """An objective that reads more of a prompt than its items: known answers, attributes, texts."""

    def labels(self, prompt: Prompt) -> tuple[str, int, int]:
        """(slice, weight, valid) of a prompt of a suite.

        Raises Malformed for a prompt that the objective cannot use; the text says which field.
        """
        ...


def labels_of(objective: Objective, prompt: Prompt) -> tuple[str, int, int]:
    """(slice, weight, valid) of a prompt, as the objective's rules say. May raise Malformed.

    A prompt may bring a slice of its own (`eval.slices`); weight and validity are the rules'.
    """
    if isinstance(objective, LabelsPrompts):
        derived = objective.labels(prompt)
    else:
        constraints = prompt.constraints
        derived = objective.prompt_side(prompt.prompt_items, len(prompt.turns), constraints)
    try:
        own = own_slice(prompt)
    except ValueError as error:
        raise Malformed(str(error)) from None
    return (own, *derived[1:]) if own else derived


def by_code(objective: Objective) -> bool:
    """Whether code checks the answers, whatever judge is configured."""
    return not objective.answers


class Unchecked(Exception):
    """Code could not check an answer; the text says why. The answer stays unscored."""


class Malformed(ValueError):
    """An L3 item that is missing, of the wrong type or out of range; the text says which."""


def channel(items: object, name: str, ranges: Mapping[str, int]) -> dict[str, int]:
    """The items of one channel, each an integer from 0 to its given maximum.

    Raises Malformed otherwise.

    >>> channel({"help": {"actionable_help": 1}}, "help", {"actionable_help": 1})
    {'actionable_help': 1}
    """
    group = items.get(name) if isinstance(items, Mapping) else None
    if not isinstance(group, Mapping):
        raise Malformed(f"items.{name} is missing")
    for unknown in group:
        if unknown not in ranges:
            raise Malformed(f"items.{name}.{unknown} is not an item of this channel")
    values = {}
    for item, most in ranges.items():
        value = group.get(item)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise Malformed(f"items.{name}.{item} is {value!r}, not an integer from 0 to {most}")
        values[item] = value
    return values


def unscored(line: Line, reason: str) -> Scored:
    """The result for an item that cannot be scored."""
    return Scored(id=str(line.get("id", "")), status="unscored", reason=reason)


def attribute_slice(prompt: Prompt, name: str | None) -> str:
    """The slice that an attribute of a prompt names; `all` if no attribute is asked for.

    A text is its own name, a number or a boolean is written as in JSON. Raises Malformed for an
    attribute that is missing, a list, or not fit for a name.

    >>> prompt = Prompt(id="p", turns=["?"], slice="3", weight=1, attributes={"level": 3})
    >>> attribute_slice(prompt, "level"), attribute_slice(prompt, None)
    ('3', 'all')
    """
    if name is None:
        return "all"
    if name not in prompt.attributes:
        raise Malformed(f"attributes.{name} is missing; slice_from names it")
    value = prompt.attributes[name]
    text = value if isinstance(value, str) else json.dumps(value)
    if not LABEL.fullmatch(text):
        raise Malformed(f"attributes.{name}: {value!r} does not name a slice; a name is {NAMES}")
    return text


def slice_of_line(line: Line) -> str:
    """The slice that a stored line carries. Raises Malformed if it has none."""
    value = line.get("slice")
    if not isinstance(value, str) or not value:
        raise Malformed(f"slice is {value!r}, not a name")
    return value


def count_labels(scored: Sequence[Scored], dimensions: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts of label values by dimension; a label that is a list counts each element."""
    breakdown: dict[str, dict[str, int]] = {}
    for dimension in dimensions:
        counts: Counter[str] = Counter()
        for item in scored:
            value = item.label.get(dimension)
            if isinstance(value, list):
                counts.update(map(str, value))
            elif value is not None:
                counts[str(value)] += 1
        breakdown[dimension] = dict(sorted(counts.items()))
    return breakdown


def need(score: float, weight: int, valid: int) -> float:
    """How much training a prompt calls for: valid x (6 - score) x weight (MOSAIC, score/need.py).

    >>> need(score=2, weight=3, valid=1)
    12
    """
    return valid * (6 - score) * weight


def published_rules(objective: Objective, version: int) -> str:
    """The digest of a published objective: its code's version, items, and words for judges."""
    channels = []
    for channel_ in (*objective.answers, *objective.request):
        channels.append([channel_.name, channel_.ranges, channel_.turns])
    words = [objective.words("answers").digest, objective.words("request").digest]
    return digest_of([objective.name, version, channels, words])
