"""Contamination: how much of a suite is in the pool, word for word.

A prompt is contaminated by a pool row that shares half of its words or more, at least 13 in all.
Words are shared in runs of 13, or in whole turns that are too short for such a run. This is the
13-gram overlap of GPT-3's appendix C (arXiv 2005.14165), judged against one training row at a time
as Tulu 3 does (arXiv 2411.15124). A prompt is also contaminated by a row with the same user turns.

Words are letters and digits without case; what stands between them makes no difference. Texts are
compared as Unicode's NFKC and without characters that are not seen (soft hyphens, joiners, marks of
direction, variation selectors): those hide a prompt from nobody but a program. In a script
without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character is a word: else a
whole clause would be one. Only user turns are compared: answers share phrases without giving a
prompt away.

MinHash was the other choice. It estimates the likeness of whole texts, and a prompt that hides in
a long chat is unlike that chat. It also needs a signature per pool row, where this needs one pass
with a table of the suites alone.
"""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mosaic.core.types.base import JsonObject
from mosaic.core.types.evaluation import Prompt
from training.data.pool_format import ROWS
from training.data.texts import every_text

LENGTH = 13
COVERED = 0.5
SHOWN = 20
BATCH = 2048
END, UNKNOWN = 0, -1
TOKEN = re.compile(r"[^\W_]+|\0")
# Control characters that are not white space: nothing is drawn for them either.
CONTROLS = re.compile(r"[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]+")
SPACELESS = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff])"
)
# Beside the format characters (Cf), those that Unicode calls default ignorable: they are not drawn.
IGNORABLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2060-\u206f\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff"
)


@cache
def _unseen() -> re.Pattern[str]:
    """A pattern of runs of characters that are not seen."""
    formats = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cf"]
    return re.compile(f"[{re.escape(''.join(formats))}{IGNORABLE}]+")


Ids = npt.NDArray[np.int64]
Asked = tuple[str, Sequence[str]]
"""A pool row as it is compared: its id and its user turns."""


@dataclass(frozen=True)
class Overlap:
    """The pool row that covers most of a prompt.

    `covered` is the share of the prompt's words that are in it, 0-1.
    """

    prompt: str
    row: str
    covered: float


@dataclass
class SuiteOverlap:
    """One suite: how many prompts it has, and those contaminated, worst first."""

    objective: str
    role: str
    prompts: int
    hits: list[Overlap] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Contaminated prompts over prompts."""
        return len(self.hits) / self.prompts if self.prompts else 0.0

    def joined(self, other: SuiteOverlap | None) -> SuiteOverlap:
        """The same suite held against other rows too: of each prompt the row that covers most."""
        worst: dict[str, Overlap] = {}
        for hit in [*self.hits, *(other.hits if other else [])]:
            if hit.prompt not in worst or hit.covered > worst[hit.prompt].covered:
                worst[hit.prompt] = hit
        hits = sorted(worst.values(), key=lambda hit: (-hit.covered, hit.prompt))
        return SuiteOverlap(self.objective, self.role, self.prompts, hits)

    def data(self) -> JsonObject:
        """Plain JSON data with the worst prompts, for a report."""
        worst: list[JsonObject] = []
        for hit in self.hits[:SHOWN]:
            worst.append({"prompt": hit.prompt, "row": hit.row, "covered": round(hit.covered, 3)})
        return {
            "objective": self.objective,
            "role": self.role,
            "prompts": self.prompts,
            "contaminated": len(self.hits),
            "share": round(self.share, 4),
            "worst": list(worst),
        }


class _Table:
    """What is looked up in the pool: everything the suites' prompts say.

    `runs` are all runs of 13 words, word for word, and `hashes` the same by hash; `whole` are
    whole requests; `turns` are turns too short for a run.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.vocabulary: dict[str, int] = {"\0": END}
        self.sizes: list[int] = []
        self.runs: dict[bytes, list[tuple[int, int]]] = {}
        self.whole: dict[bytes, list[int]] = {}
        turns: dict[bytes, Counter[int]] = {}
        hashes = [np.zeros(0, np.uint64)]
        for number, prompt in enumerate(prompts):
            ids = self._learn(_tokens(prompt.turns))
            self.sizes.append(int((ids > END).sum()))
            starts = _whole_runs(ids)
            for start in starts:
                run = ids[start : start + LENGTH].tobytes()
                self.runs.setdefault(run, []).append((number, int(start)))
            if len(starts):
                hashes.append(_hashes(ids)[starts])
            self.whole.setdefault(ids.tobytes(), []).append(number)
            for start, end in _short_turns(np.flatnonzero(ids == END) + 1):
                counts = turns.setdefault(ids[start:end].tobytes(), Counter())
                counts[number] += end - start - 1
        self.turns: dict[bytes, tuple[Ids, npt.NDArray[np.uint16]]] = {}
        for key, counts in turns.items():
            self.turns[key] = (np.array([*counts]), np.array([*counts.values()], np.uint16))
        self.enough = np.array([max(LENGTH, COVERED * size) for size in self.sizes])
        self.hashes = np.unique(np.concatenate(hashes))

    def _learn(self, tokens: Sequence[str]) -> Ids:
        """Tokens as numbers; new ones get the next."""
        vocabulary = self.vocabulary
        return np.array([vocabulary.setdefault(t, len(vocabulary)) for t in tokens], np.int64)

    def look_up(self, tokens: Sequence[str]) -> Ids:
        """Tokens as numbers, -1 for those in no prompt."""
        get = self.vocabulary.get
        return np.array([get(token, UNKNOWN) for token in tokens], np.int64)


def _tokens(turns: Iterable[str]) -> list[str]:
    """Words of all turns, each turn closed by a NUL, which no word has.

    >>> _tokens(["How are you?", "Well."])
    ['how', 'are', 'you', '\\x00', 'well', '\\x00']
    """
    closed = [_comparable(CONTROLS.sub("", turn)) + "\0" for turn in turns]
    return TOKEN.findall("".join(closed))


def _comparable(turn: str) -> str:
    """The turn without case or invisible differences, with spaces around characters that are words.

    >>> _comparable("ﬁre\u00adWORK")
    'firework'
    """
    if turn.isascii():
        return turn.lower()
    # Folding can leave what NFKC would compose, and NFKC what is folded further: twice is enough.
    folded = unicodedata.normalize("NFKC", _unseen().sub("", turn)).casefold()
    plain = unicodedata.normalize("NFKC", folded).casefold()
    return SPACELESS.sub(r" \1 ", _unseen().sub("", plain))


def _whole_runs(ids: Ids) -> npt.NDArray[np.int64]:
    """Where a run of 13 known words of one turn begins."""
    if len(ids) < LENGTH:
        return np.zeros(0, np.int64)
    broken = np.concatenate([[0], np.cumsum(ids <= END)])
    return np.flatnonzero(broken[LENGTH:] == broken[:-LENGTH])


def _short_turns(ends: Ids) -> Iterator[tuple[int, int]]:
    """(start, end) of each turn that has words, but fewer than a run.

    `ends` are the places behind the closing NULs.
    """
    lengths = np.diff(ends, prepend=0)
    for place in np.flatnonzero((lengths > 1) & (lengths <= LENGTH)).tolist():
        yield int(ends[place] - lengths[place]), int(ends[place])


_POWERS = np.array([pow(0x9E3779B97F4A7C15, k + 1, 2**64) for k in range(LENGTH)], np.uint64)


def _hashes(ids: Ids) -> npt.NDArray[np.uint64]:
    """A hash of every run. Equal runs have equal hashes; what a hash finds is compared by words."""
    size = len(ids) - LENGTH + 1
    values = ids.astype(np.uint64)
    total = np.zeros(max(size, 0), np.uint64)
    for k in range(LENGTH if size > 0 else 0):
        total += values[k : k + size] * _POWERS[k]
    return total


def contamination(
    suites: Mapping[str, Mapping[str, Sequence[Prompt]]], rows: Iterable[Asked]
) -> list[SuiteOverlap]:
    """What of each suite (objective -> role -> prompts) is in pool rows, in the order given."""
    overlaps: list[SuiteOverlap] = []
    owners: list[int] = []
    prompts: list[Prompt] = []
    for objective, roles in suites.items():
        for role, some in roles.items():
            owners += [len(overlaps)] * len(some)
            prompts += list(some)
            overlaps.append(SuiteOverlap(objective, role, len(some)))
    table = _Table(prompts)
    best: dict[int, Overlap] = {}
    for batch in _batched(rows):
        for number, row, covered in _search(table, batch):
            if covered >= COVERED and (number not in best or covered > best[number].covered):
                best[number] = Overlap(prompts[number].id, row, covered)
    for number, hit in best.items():
        overlaps[owners[number]].hits.append(hit)
    for suite in overlaps:
        suite.hits.sort(key=lambda hit: (-hit.covered, hit.prompt))
    return overlaps


def _batched(rows: Iterable[Asked]) -> Iterator[list[Asked]]:
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch


def _search(table: _Table, batch: Sequence[Asked]) -> Iterator[tuple[int, str, float]]:
    """(prompt, row id, share of the prompt's words covered) for each prompt that a row touches."""
    texts: list[str] = []
    ends_of_rows = [0]
    for _, turns in batch:
        texts += turns
        ends_of_rows.append(len(texts))
    ids = table.look_up(_tokens(texts))
    ends = np.flatnonzero(ids == END) + 1
    bounds = np.concatenate([[0], ends])[ends_of_rows]
    for place, (row, _) in enumerate(batch):
        key = ids[bounds[place] : bounds[place + 1]].tobytes()
        for number in table.whole.get(key, ()) if key else ():
            yield number, row, 1.0
    short = _short_words(table, ids, ends, bounds)
    covered = _covered_by_runs(table, ids, bounds)
    for owner, number in np.argwhere(short >= table.enough).tolist():
        covered.setdefault((owner, number), set())
    for (owner, number), words in covered.items():
        shared = len(words) + int(short[owner, number])
        yield number, batch[owner][0], shared / table.sizes[number]


def _covered_by_runs(table: _Table, ids: Ids, bounds: Ids) -> dict[tuple[int, int], set[int]]:
    """(row, prompt) -> places of the prompt's words in runs of 13 that the row has too."""
    covered: dict[tuple[int, int], set[int]] = {}
    starts = _whole_runs(ids)
    if not len(starts) or not len(table.hashes):
        return covered
    hashes = _hashes(ids)[starts]
    at = np.minimum(np.searchsorted(table.hashes, hashes), len(table.hashes) - 1)
    hits = starts[table.hashes[at] == hashes]
    owners = np.searchsorted(bounds, hits, side="right") - 1
    for start, owner in zip(hits.tolist(), owners.tolist(), strict=True):
        run = ids[start : start + LENGTH].tobytes()
        for number, position in table.runs.get(run, ()):
            words = covered.setdefault((owner, number), set())
            words.update(range(position, position + LENGTH))
    return covered


def _short_words(table: _Table, ids: Ids, ends: Ids, bounds: Ids) -> npt.NDArray[np.uint16]:
    """Rows x prompts: words of the prompt in those of its short turns that the row has too.

    A matrix, since greetings are in most rows and most prompts: a pair at a time would take
    minutes.
    """
    words = np.zeros((len(bounds) - 1, len(table.sizes)), np.uint16)
    rows: dict[bytes, set[int]] = {}
    for start, end in _short_turns(ends):
        key = ids[start:end].tobytes()
        if key in table.turns:
            rows.setdefault(key, set()).add(int(np.searchsorted(bounds, start, side="right")) - 1)
    for key, owners in rows.items():
        numbers, counts = table.turns[key]
        words[np.ix_(np.array(sorted(owners)), numbers)] += counts
    return words


def touched(prompts: Sequence[Prompt]) -> Callable[[Sequence[Asked]], set[str]]:
    """A function from pool rows to the ids of those that contaminate one of the prompts."""
    table = _Table(prompts)
    return lambda batch: {row for _, row, covered in _search(table, batch) if covered >= COVERED}


def pool_requests(pool: Path) -> Iterator[tuple[str, list[str]]]:
    """(id, user turns) of every row of a pool folder, a block in memory at a time."""
    for block in every_text(pool / ROWS):
        for identifier, messages in zip(
            block["id"].to_pylist(), block["messages"].to_pylist(), strict=True
        ):
            yield identifier, [m["content"] for m in messages if m["role"] == "user"]
