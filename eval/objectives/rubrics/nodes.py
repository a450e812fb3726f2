"""A YAML file whose every value knows its line and its path, so that messages can name them.

No alias is followed, no tag is obeyed, and size and depth are limited: a rubric may come from a
stranger.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from mosaic.core.errors import UsageError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_SHOWN = 60
MAX_LISTED = 40
MAPPING, SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
TEXT, BOOLEAN, INTEGER = "tag:yaml.org,2002:str", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int"
# Other notations are refused: YAML reads 010 as 8 and 1:30 as 90.
DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Place:
    """Where something stands: file, line from 1, and path of keys and numbers."""

    file: str
    line: int
    path: str

    def error(self, message: str) -> UsageError:
        """The error that names this place."""
        at = f" {self.path}:" if self.path else ""
        return UsageError(f"{self.file}:{self.line}:{at} {message}")


class _Loader(yaml.SafeLoader):
    """Composes nodes only: no alias, and not too deep."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = "an alias (*) is not allowed; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if self.depth >= MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path) -> Value:
    """The value of a YAML file. Raises UsageError with file and line if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a rubric's YAML file") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES:,} bytes, the limit of a rubric")
    try:
        node = _Loader(data.decode("utf-8")).get_single_node()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Place(str(path), line, "").error(f"not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "unreadable")
        raise UsageError(f"{path}: not valid YAML: {reason}") from None
    if node is None:
        raise UsageError(f"{path}: empty; a rubric is a mapping of keys")
    return Value(node, str(path))


@dataclass(frozen=True)
class Value:
    """One value of a YAML file. What it is not, its methods refuse, naming what is allowed."""

    node: yaml.Node
    file: str
    path: str = ""

    @property
    def place(self) -> Place:
        return Place(self.file, self.node.start_mark.line + 1, self.path)

    def error(self, message: str) -> UsageError:
        return self.place.error(message)

    @property
    def shown(self) -> str:
        """The value in a message: a scalar as it was written, anything else by its kind."""
        if isinstance(self.node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        text = str(self.node.value)
        return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")

    @property
    def is_text(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == TEXT

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    def entries(self, what: str) -> dict[str, Value]:
        """Key -> value of a mapping that is not empty; `what` says what it should hold."""
        if not isinstance(self.node, yaml.MappingNode) or self.node.tag != MAPPING:
            raise self.error(f"{self.shown} is not {what}")
        entries: dict[str, Value] = {}
        for key_node, node in self.node.value:
            key = Value(key_node, self.file, self.path)
            if not key.is_text:
                raise key.error(f"the key {key.shown} is not a text; put it in quotes")
            name = str(key_node.value)
            path = f"{self.path}.{name}" if self.path else name
            if name in entries:
                place = Place(self.file, key.place.line, path)
                first = entries[name].place.line
                raise place.error(f"this key stands on line {first} already")
            entries[name] = Value(node, self.file, path)
        if not entries:
            raise self.error(f"empty; give {what}")
        return entries

    def fields(
        self, what: str, needed: Sequence[str], optional: Sequence[str] = ()
    ) -> dict[str, Value]:
        """Key -> value of a mapping with these keys and no others."""
        entries = self.entries(what)
        allowed = [*needed, *optional]
        for name, value in entries.items():
            if name not in allowed:
                raise value.error(f"unknown key; allowed are {', '.join(allowed)}")
        for name in needed:
            if name not in entries:
                raise self.error(f"{name} is missing; {what} has {', '.join(needed)}")
        return entries

    def elements(self, what: str, most: int) -> list[Value]:
        """The elements of a list that is not empty."""
        if not isinstance(self.node, yaml.SequenceNode) or self.node.tag != SEQUENCE:
            raise self.error(f"{self.shown} is not a list of {what}")
        if not 1 <= len(self.node.value) <= most:
            raise self.error(f"{len(self.node.value)} {what}; give 1 to {most}")
        elements = []
        for number, node in enumerate(self.node.value):
            elements.append(Value(node, self.file, f"{self.path}.{number}"))
        return elements

    def text(self, what: str) -> str:
        if not self.is_text:
            raise self.error(f"{self.shown} is not {what}; if it is meant, put it in quotes")
        return str(self.node.value)

    def integer(self, low: int, high: int) -> int:
        written = str(self.node.value)
        if self.node.tag == INTEGER and DECIMAL.fullmatch(written):
            number = int(written)
            if low <= number <= high:
                return number
        raise self.error(f"{self.shown} is not an integer from {low} to {high}")

    def boolean(self) -> bool:
        if self.node.tag == BOOLEAN and isinstance(self.node, yaml.ScalarNode):
            written = self.node.value.lower()
            if written in yaml.SafeLoader.bool_values:
                return bool(yaml.SafeLoader.bool_values[written])
        raise self.error(f"{self.shown} is not true or false")

    def one_of(self, allowed: Collection[str]) -> str:
        if self.is_text and self.node.value in allowed:
            return str(self.node.value)
        raise self.error(f"{self.shown} is not allowed here; allowed are {', '.join(allowed)}")


def there_are(name: str, known: Collection[str]) -> str:
    """What a message says after an unknown name: the name that was probably meant, and all others.

    >>> there_are("help.claer", ["help.clear", "tone.kind"])
    'did you mean help.clear? There are help.clear, tone.kind'
    """
    listed = list(known)
    near = get_close_matches(name, listed, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    more = ", ..." if len(listed) > MAX_LISTED else ""
    return f"{meant}{'T' if meant else 't'}here are {', '.join(listed[:MAX_LISTED])}{more}"
