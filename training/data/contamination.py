"""Contamination: how much of a suite stands in the pool, word for word.

A prompt is contaminated by a pool row that shares half of its words or more, in runs of 13 words (the 13-gram overlap
of GPT-3's appendix C, arXiv 2005.14165, judged against one training row at a time as Tulu 3 does, arXiv 2411.15124) or
in whole turns that are too short for such a run, 13 words at least in all; or whose user turns are the prompt's. Words
are lower-case letters and digits; what stands between them is no difference. A character of a script without spaces
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) is a word of its own: else a whole clause would be one. Only user turns
are compared: answers share phrases without giving a prompt away.

MinHash was the other choice. It estimates the likeness of whole texts, and a prompt that hides in a long chat is unlike
that chat; it also needs a signature per pool row, where this needs one pass with a table of the suites alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from mosaic.core.types.evaluation import Prompt
from training.data.pool_format import ROWS

LENGTH = 13
COVERED = 0.5
SHOWN = 20
END, UNKNOWN = 0, -1
TOKEN = re.compile(r"\w+|\0")
SPACELESS = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hit:
    """The pool row that covers most of a prompt; `covered` is the share of the prompt's words in it."""

    prompt: str
    row: str
    covered: float


@dataclass
class Found:
    """One suite: its prompts, those contaminated, worst first."""

    objective: str
    role: str
    prompts: int
    hits: list[Hit] = field(default_factory=list)

    @property
    def share(self) -> float:
        return len(self.hits) / self.prompts if self.prompts else 0.0

    def data(self) -> dict[str, Any]:
        shown = [
            {"prompt": h.prompt, "row": h.row, "covered": round(h.covered, 3)}
            for h in self.hits[:SHOWN]
        ]
        return {"objective": self.objective, "role": self.role, "prompts": self.prompts,
                "contaminated": len(self.hits), "share": round(self.share, 4), "worst": shown}  # fmt: skip


class _Table:
    """All runs of 13 words of the suites, by hash and word for word; their whole requests; their turns that are too
    short for a run."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.vocabulary: dict[str, int] = {"\0": END}
        self.sizes: list[int] = []
        self.runs: dict[bytes, list[tuple[int, int]]] = {}
        self.whole: dict[bytes, list[int]] = {}
        turns: dict[bytes, Counter[int]] = {}
        hashes = [np.zeros(0, np.uint64)]
        for number, prompt in enumerate(prompts):
            tokens = _tokens(prompt.turns)
            ids = np.array(
                [self.vocabulary.setdefault(t, len(self.vocabulary)) for t in tokens], np.int64
            )
            self.sizes.append(int((ids > END).sum()))
            starts = _whole_runs(ids)
            for start in starts:
                self.runs.setdefault(ids[start : start + LENGTH].tobytes(), []).append(
                    (number, int(start))
                )
            if len(starts):
                hashes.append(_hashes(ids)[starts])
            self.whole.setdefault(ids.tobytes(), []).append(number)
            for start, end in _short_turns(np.flatnonzero(ids == END) + 1):
                turns.setdefault(ids[start:end].tobytes(), Counter())[number] += end - start - 1
        self.turns = {
            key: (np.array([*found]), np.array([*found.values()], np.uint16))
            for key, found in turns.items()
        }
        self.enough = np.array([max(LENGTH, COVERED * size) for size in self.sizes])
        self.hashes = np.unique(np.concatenate(hashes))


def _tokens(turns: Sequence[str]) -> list[str]:
    """Words of all turns, each turn closed by a NUL, which no word has."""
    return TOKEN.findall("".join(_spaced(turn.replace("\0", " ")) + "\0" for turn in turns).lower())


def _spaced(turn: str) -> str:
    """The turn with spaces around characters that are words; most turns are ASCII and need no look."""
    return turn if turn.isascii() else SPACELESS.sub(r" \1 ", turn)


def _whole_runs(ids: Ids) -> npt.NDArray[np.int64]:
    """Where a run of 13 known words of one turn begins."""
    if len(ids) < LENGTH:
        return np.zeros(0, np.int64)
    broken = np.concatenate([[0], np.cumsum(ids <= END)])
    return np.flatnonzero(broken[LENGTH:] == broken[:-LENGTH])


def _short_turns(ends: Ids) -> Iterator[tuple[int, int]]:
    """(start, end) of each turn that has words, but fewer than a run; `end` is behind its closing NUL."""
    lengths = np.diff(ends, prepend=0)
    for place in np.flatnonzero((lengths > 1) & (lengths <= LENGTH)).tolist():
        yield int(ends[place] - lengths[place]), int(ends[place])


_POWERS = np.array([pow(0x9E3779B97F4A7C15, k + 1, 2**64) for k in range(LENGTH)], np.uint64)


def _hashes(ids: Ids) -> npt.NDArray[np.uint64]:
    """A hash of every run; equal runs have equal hashes, and what a hash finds is compared word for word."""
    size = len(ids) - LENGTH + 1
    values = ids.astype(np.uint64)
    total = np.zeros(max(size, 0), np.uint64)
    for k in range(LENGTH if size > 0 else 0):
        total += values[k : k + size] * _POWERS[k]
    return total


def contamination(
    suites: Mapping[str, Mapping[str, Sequence[Prompt]]], rows: Iterable[tuple[str, Sequence[str]]]
) -> list[Found]:
    """What of each suite (objective -> role -> prompts) stands in pool rows, given as (id, user turns)."""
    found: list[Found] = []
    owners: list[int] = []
    prompts: list[Prompt] = []
    for objective, roles in suites.items():
        for role, some in roles.items():
            owners += [len(found)] * len(some)
            prompts += list(some)
            found.append(Found(objective, role, len(some)))
    table = _Table(prompts)
    best: dict[int, Hit] = {}
    for batch in _batched(rows):
        for number, row, covered in _search(table, batch):
            if covered >= COVERED and (number not in best or covered > best[number].covered):
                best[number] = Hit(prompts[number].id, row, covered)
    for number, hit in best.items():
        found[owners[number]].hits.append(hit)
    for one in found:
        one.hits.sort(key=lambda h: (-h.covered, h.prompt))
    return found


def _batched(
    rows: Iterable[tuple[str, Sequence[str]]], size: int = 2048
) -> Iterator[list[tuple[str, Sequence[str]]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _search(
    table: _Table, batch: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[tuple[int, str, float]]:
    """(prompt, row id, share of the prompt's words covered) for every prompt that a row of the batch touches."""
    get = table.vocabulary.get
    ids = np.array(
        [get(t, UNKNOWN) for t in _tokens([turn for _, turns in batch for turn in turns])], np.int64
    )
    ends = np.flatnonzero(ids == END) + 1
    bounds = np.concatenate([[0], ends])[np.cumsum([0] + [len(turns) for _, turns in batch])]
    for place, (row, _) in enumerate(batch):
        key = ids[bounds[place] : bounds[place + 1]].tobytes()
        for number in table.whole.get(key, ()) if key else ():
            yield number, row, 1.0
    short = _short_words(table, ids, ends, bounds)
    covered: dict[tuple[int, int], set[int]] = {}
    starts = _whole_runs(ids)
    if len(starts) and len(table.hashes):
        hashes = _hashes(ids)[starts]
        at = np.minimum(np.searchsorted(table.hashes, hashes), len(table.hashes) - 1)
        hits = starts[table.hashes[at] == hashes]
        owners = np.searchsorted(bounds, hits, side="right") - 1
        for start, owner in zip(hits.tolist(), owners.tolist(), strict=True):
            for number, position in table.runs.get(ids[start : start + LENGTH].tobytes(), ()):
                covered.setdefault((owner, number), set()).update(
                    range(position, position + LENGTH)
                )
    for owner, number in np.argwhere(short >= table.enough).tolist():
        covered.setdefault((owner, number), set())
    for (owner, number), seen in covered.items():
        yield number, batch[owner][0], (len(seen) + int(short[owner, number])) / table.sizes[number]


def _short_words(table: _Table, ids: Ids, ends: Ids, bounds: Ids) -> npt.NDArray[np.uint16]:
    """Rows x prompts: words of the prompt in those of its short turns that the row has too.

    A matrix, since greetings stand in most rows and most prompts: a pair at a time would take minutes.
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


def touched(prompts: Sequence[Prompt]) -> Callable[[Sequence[tuple[str, Sequence[str]]]], set[str]]:
    """A function from pool rows, as (id, user turns), to the ids of those that contaminate one of the prompts."""
    table = _Table(prompts)
    return lambda batch: {row for _, row, covered in _search(table, batch) if covered >= COVERED}


def pool_requests(pool: Path) -> Iterator[tuple[str, list[str]]]:
    """(id, user turns) of every row of a pool folder, a batch in memory at a time."""
    file = pq.ParquetFile(pool / ROWS)
    for batch in file.iter_batches(batch_size=2048, columns=["id", "messages"], use_threads=False):
        for identifier, messages in zip(
            batch["id"].to_pylist(), batch["messages"].to_pylist(), strict=True
        ):
            yield identifier, [m["content"] for m in messages if m["role"] == "user"]
