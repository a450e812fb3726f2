"""Ids of imported rows: unique in a pool, and the same whenever the same files are imported.

Ids of one file must differ. Those of several files may begin anew in each (0, 1, 2, ...): an id
that an earlier file has used gets the file's name before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.data.importers.fields import Unusable

NEW_NAME = "ids that an earlier file has used: the file's name stands before them"
REPEATED = "repeats another row word for word"


def file_prefixes(sources: Sequence[str]) -> dict[str, str]:
    """Source -> a short name that no other of the sources has.

    >>> file_prefixes(["a/part.jsonl", "b/part.jsonl", "b/rest.csv.gz"])
    {'a/part.jsonl': 'part', 'b/part.jsonl': 'b-part', 'b/rest.csv.gz': 'rest'}
    """
    prefixes: dict[str, str] = {}
    for number, source in enumerate(sources, start=1):
        path = Path(source)
        stem = path.name.split(".")[0] or path.name
        for name in (stem, f"{path.parent.name}-{stem}", f"{number}-{stem}"):
            if name not in prefixes.values():
                prefixes[source] = name
                break
    return prefixes


@dataclass
class Identifiers:
    """The ids given so far, each with its place and, of several files, the digest of its chat."""

    dataset: str
    sources: Sequence[str]
    prefix: str | None = None
    places: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._prefixes = file_prefixes(self.sources)

    def new(self, own: str | None, said: str, place: str) -> tuple[str | None, str | None]:
        """(the id of a chat, None for a repetition; what to count about it).

        `own` is the id that the row has, `said` the digest of its chat, `place` is file:line.
        Raises Unusable for an id that the same file has used.
        """
        identifier, note = self._named(own or said), None
        if identifier in self.places:
            if own is None:
                return None, REPEATED
            source = _source(place)
            if _source(self.places[identifier]) != source:
                if self.digests[identifier] == said:
                    return None, REPEATED
                identifier, note = self._named(f"{self._prefix(source)}-{own}"), NEW_NAME
            if identifier in self.places:
                raise Unusable(f"id: {own!r} was used at {self.places[identifier]} already")
        identifier.encode()
        self.places[identifier] = place
        if len(self.sources) > 1:
            self.digests[identifier] = said
        return identifier, note

    def _prefix(self, source: str) -> str:
        # A `datasets` folder or the hub has its split behind the name: path[train].
        return self._prefixes.get(source) or self._prefixes[source.rpartition("[")[0]]

    def _named(self, own: str) -> str:
        if self.prefix:
            return f"{self.dataset}-{self.prefix}-{own}"
        return f"{self.dataset}-{own}"


def _source(place: str) -> str:
    """The source of a row that is at `source:line`."""
    return place.rpartition(":")[0]
