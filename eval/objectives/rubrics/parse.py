"""A rubric's file, read into a `Rubric` and checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from eval.objectives.base import Channel, Item, Side
from eval.objectives.rubrics.check import check_entries, check_invalid
from eval.objectives.rubrics.conditions import OTHERWISE, Condition
from eval.objectives.rubrics.model import Level, Rubric, Slice, ranges_of
from eval.objectives.rubrics.nodes import Value, read_yaml
from eval.objectives.rubrics.parse_conditions import Known, condition_of
from mosaic.core.types.base import LABEL, NAMES

VERSION = 1
NEEDED = ("version", "about", "answers", "levels")
OPTIONAL = ("request", "slices", "invalid", "hints", "exclusive")
SIDES: tuple[Side, Side] = ("answers", "request")
VALUES: Mapping[str, Literal[1, 2]] = {"yes_no": 1, "none_some_most": 2}
TURNS: tuple[Literal["all"], Literal["last"]] = ("all", "last")
MAX_TEXT = 600
MAX_WEIGHT = 100
MAX_ENTRIES = 256
BEST = 5
# Words of a channel or an item stand in a path, `channel.item`, and in the schema of a reply.
PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
PARTS = "1 to 40 letters, digits, _ and -, a letter or digit first"
RESERVED = frozenset(dir(BaseModel))
RESERVED_CHANNELS = frozenset({"reason", "level", "turns", "id"})


def read_rubric(path: Path) -> Rubric:
    """The rubric of a file.

    Raises UsageError with file, line, path, value and what is allowed; if combinations of items
    have no outcome or two, with one of them, which is in `details` too.
    """
    root = read_yaml(path)
    fields = root.fields("a rubric", NEEDED, OPTIONAL)
    version = fields["version"]
    version.integer(VERSION, VERSION)
    about = _sentence(fields["about"])
    asks: dict[str, str] = {}
    answers = _channels(fields["answers"], "answers", asks)
    request: tuple[Channel, ...] = ()
    if "request" in fields:
        request = _channels(fields["request"], "request", asks)
        _check_sides_differ(fields["request"], answers, request)
    exclusive = fields["exclusive"].boolean() if "exclusive" in fields else False

    of_request = Known(request, hidden=ranges_of(*answers))
    slices = _slices(root, fields, of_request)
    notes = check_entries(slices, of_request.ranges, exclusive, fields.get("slices", root).place)
    invalid = None
    if "invalid" in fields:
        invalid = condition_of(fields["invalid"], of_request)
        check_invalid(invalid, of_request.ranges, fields["invalid"].place)

    of_all = Known((*answers, *request), count=of_request.count)
    levels = _levels(fields["levels"], of_all)
    notes += check_entries(levels, of_all.ranges, exclusive, fields["levels"].place)
    _check_scale(fields["levels"], levels)
    notes += _unused(of_all.ranges, of_all.used | of_request.used)
    return Rubric(
        about=about,
        request=request,
        answers=answers,
        asks=asks,
        hints=_hints(fields.get("hints"), bool(request)),
        slices=slices,
        invalid=invalid,
        levels=levels,
        exclusive=exclusive,
        notes=tuple(notes),
    )


def _sentence(value: Value) -> str:
    """A text for a judge: one line, without what a prompt file would read as a placeholder."""
    text = " ".join(value.text("a text").split())
    if not text or len(text) > MAX_TEXT:
        raise value.error(f"a text of {len(text)} characters; give 1 to {MAX_TEXT}")
    if "{{" in text or "}}" in text or not text.isprintable():
        raise value.error(f"{value.shown} holds {{{{, }}}} or signs that cannot be printed")
    return text if text[-1] in ".!?" else text + "."


# Channels and items


def _channels(value: Value, side: Side, asks: dict[str, str]) -> tuple[Channel, ...]:
    """The channels of one side, by name. The words for each item are added to `asks`."""
    channels = []
    for name, inner in value.entries("channels: a name and its items").items():
        _check_name(inner, name)
        if name in RESERVED_CHANNELS or name.startswith("items_"):
            raise inner.error(f"{name!r} means something else in a verdict; choose another name")
        optional = ("turns",) if side == "answers" else ()
        fields = inner.fields("a channel", ("items",), optional)
        turns: Literal["all", "last"] = "last"
        if "turns" in fields and fields["turns"].one_of(TURNS) == "all":
            turns = "all"
        items = []
        for item, described in fields["items"].entries("items: a name and what is asked").items():
            _check_name(described, item)
            most, asks[f"{name}.{item}"] = _item(described)
            items.append(Item(item, most))
        items.sort(key=lambda one: one.name)
        channels.append(Channel(name, tuple(items), turns))
    return tuple(sorted(channels, key=lambda one: one.name))


def _item(value: Value) -> tuple[Literal[1, 2], str]:
    """(greatest value, words) of an item: the words alone, or a mapping."""
    if value.is_text:
        return 1, _sentence(value)
    fields = value.fields("an item: a text, or a mapping", ("ask",), ("values",))
    most: Literal[1, 2] = 1
    if "values" in fields:
        most = VALUES[fields["values"].one_of(VALUES)]
    return most, _sentence(fields["ask"])


def _check_name(value: Value, name: str) -> None:
    if not PART.fullmatch(name):
        raise value.error(f"{name!r} is not a name here: {PARTS}")
    if name in RESERVED or name.startswith("model_"):
        raise value.error(f"{name!r} is reserved; choose another name")


def _check_sides_differ(
    value: Value, answers: Iterable[Channel], request: Iterable[Channel]
) -> None:
    names = {channel.name for channel in answers}
    for channel in request:
        if channel.name in names:
            raise value.error(f"{channel.name!r} is a channel of the answers too; rename one")


def _hints(value: Value | None, has_request: bool) -> dict[Side, str]:
    hints: dict[Side, str] = {}
    if value is None:
        return hints
    fields = value.fields("a mapping of hints", (), SIDES if has_request else SIDES[:1])
    for side in SIDES:
        if side in fields:
            hints[side] = _sentence(fields[side])
    return hints


# Slices and levels


def _slices(root: Value, fields: Mapping[str, Value], known: Known) -> tuple[Slice, ...]:
    """The slices of a file; without any, all prompts are in one."""
    if "slices" not in fields:
        return (Slice("all", 1, True, OTHERWISE, root.place),)
    slices = []
    entries = fields["slices"].elements("slices", MAX_ENTRIES)
    for value in entries:
        given = value.fields("a slice", ("slice", "weight"), ("valid", "when", "otherwise"))
        valid = given["valid"].boolean() if "valid" in given else True
        name = _label(given["slice"])
        weight = given["weight"].integer(1, MAX_WEIGHT)
        when = _when(value, given, known, value is entries[-1])
        slices.append(Slice(name, weight, valid, when, value.place))
    return tuple(slices)


def _levels(value: Value, known: Known) -> tuple[Level, ...]:
    levels = []
    labels: dict[str, str] = {}
    entries = value.elements("levels", MAX_ENTRIES)
    for entry in entries:
        given = entry.fields("a level", ("score", "failed"), ("label", "when", "otherwise"))
        score = given["score"].integer(1, BEST)
        failed = given["failed"].boolean()
        label = _label(given["label"]) if "label" in given else f"score_{score}"
        first = labels.setdefault(label, entry.path)
        if first != entry.path:
            raise entry.error(f"{label!r} is the label of {first} too; give each its own label")
        when = _when(entry, given, known, entry is entries[-1])
        levels.append(Level(label, score, failed, when, entry.place))
    return tuple(levels)


def _label(value: Value) -> str:
    label = value.text("a name")
    if not LABEL.fullmatch(label):
        raise value.error(f"{value.shown} is not a name: {NAMES}")
    return label


def _when(entry: Value, given: Mapping[str, Value], known: Known, is_last: bool) -> Condition:
    """The condition of an entry: `when`, or `otherwise: true` for the last one."""
    if ("when" in given) == ("otherwise" in given):
        raise entry.error("give either when, a condition, or otherwise: true")
    if "when" in given:
        return condition_of(given["when"], known)
    if not given["otherwise"].boolean():
        raise given["otherwise"].error("otherwise is true or left out")
    if not is_last:
        raise given["otherwise"].error("otherwise takes all that is left; it can only stand last")
    return OTHERWISE


def _check_scale(value: Value, levels: Sequence[Level]) -> None:
    """UsageError unless an answer can be best, and can fail: known answers are checked by both."""
    if all(level.score != BEST for level in levels):
        raise value.error(f"no level gives {BEST}; a good answer must be able to")
    if not any(level.failed for level in levels):
        raise value.error("no level counts as failed; one must have failed: true")


def _unused(ranges: Mapping[str, int], used: set[str]) -> list[str]:
    """A note on each item that no condition uses."""
    notes = []
    for path in ranges:
        if path not in used:
            notes.append(f"{path} is asked for, but no condition uses it")
    return notes
