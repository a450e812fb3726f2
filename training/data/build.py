"""From files of chats to a pool folder: rows checked, tokens counted, long chats windowed.

Rows are stored by data set, bucket and hash of the id, so that a bucket is one slice of every
column and equal keys are ordered by id. The same rows in other files or another order make the
same pool.

Rows are read in groups (`training.data.counting`), by as many processes as one likes, and sorted on
disk (`training.data.runs`): memory grows with the pool by some bytes a row only.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from mosaic.core.errors import UsageError
from mosaic.core.types.base import canonical_json
from training.data.counting import Group, counted
from training.data.examples import PlacedRow, read_rows
from training.data.faults import MAX_SHOWN, Faults
from training.data.merge import TOO_LONG, Shard, merge, write_shard
from training.data.outputs import check_place
from training.data.pool_format import INDEX, MANIFEST, ROWS, Manifest, joined_kind
from training.data.provenance import origins, read_cards
from training.data.runs import RunWriter
from training.data.shards import WHOLE, Part
from training.models.tokenizer import TokenCounter

# Rows whose tokens are counted together.
GROUP = 512
# New objects after which Python looks for unreachable ones while rows are counted; 700 is its default.
ALLOCATIONS = 50_000


@dataclass(frozen=True)
class BuildOptions:
    """How rows become a pool.

    Rows are at most `max_length` tokens long, as the tokenizer of `model` counts them; `template`
    is a file that replaces its chat template. Without a model, or with `trust_token_counts`, counts
    are taken as they came. `licences` (by data set) override what cards say; `processes` count
    tokens.
    """

    max_length: int
    model: Path | None = None
    trust_token_counts: bool = False
    licences: Mapping[str, str] = field(default_factory=dict)
    template: Path | None = None
    processes: int = 1

    def counter(self) -> TokenCounter | None:
        """The counter of tokens. Raises UsageError for a template that cannot be trained with."""
        if self.model is None or self.trust_token_counts:
            return None
        return TokenCounter(self.model, self.template)


def build(sources: Sequence[Path], out: Path, options: BuildOptions) -> Manifest:
    """Write the pool folder `out`; its manifest, which is written last.

    Turns above `max_length` tokens are left out, and chats without a turn that fits: the manifest
    counts both (`too_long` chats, `turns_left_out` of the others), `too-long.jsonl` names them.
    Turns behind a chat's last answer that is learnt are cut off and counted (`turns_cut`).
    Cards beside the sources (`training.data.provenance`) go into the manifest. Raises UsageError
    with file:line for every fault.
    """
    _check_request(sources, out, options)
    work = out.with_name(f".{out.name}.building")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _write_shard(sources, work, options, WHOLE)
        return merge([work], out)
    finally:
        shutil.rmtree(work)


def build_shard(sources: Sequence[Path], out: Path, options: BuildOptions, part: Part) -> None:
    """Write what `build` would make of one part of the rows as a shard, for `merge`."""
    _check_request(sources, out, options)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; name a new folder for the shard")
    out.mkdir(parents=True, exist_ok=True)
    _write_shard(sources, out, options, part)


def _write_shard(sources: Sequence[Path], folder: Path, options: BuildOptions, part: Part) -> None:
    """Write the runs of a part of the rows, and what is known of them."""
    counter = options.counter()
    tally = _Tally()
    runs = RunWriter(folder)
    for group in _groups(sources, options, counter, part):
        tally.add(group)
        # Once a row is refused nothing will come of the pool: the others are only checked.
        if not tally.is_refused:
            runs.add(group.table)
    tally.refuse()
    runs.flush()
    if not runs.runs and part.of == 1:
        detail = ""
        if tally.too_long:
            detail = (
                f"; none of {len(tally.too_long):,} has a turn that fits in --max-length "
                f"{options.max_length}"
            )
        raise UsageError(f"{', '.join(map(str, sources))}: no row in them{detail}")
    cards = read_cards(sources)
    if part.of == 1:
        origins(cards, dict(tally.chats), dict(options.licences))
    if tally.too_long:
        (folder / TOO_LONG).write_text("".join(tally.too_long), encoding="utf-8")
    shard = Shard(
        number=part.number,
        of=part.of,
        sources=[source.name for source in sources],
        max_length=options.max_length,
        tokenizer=counter.digest if counter else None,
        template_day=counter.day if counter else None,
        licences=dict(options.licences),
        cards=cards,
        kinds=tally.kinds,
        chats=dict(tally.chats),
        marked=tally.marked,
        turns_cut=tally.turns_cut,
    )
    write_shard(shard, folder)


def _check_request(sources: Sequence[Path], out: Path, options: BuildOptions) -> None:
    """Raise UsageError if nothing can be written at `out`, or tokens cannot be counted."""
    if (out / MANIFEST).exists():
        raise UsageError(f"--out {out} holds a pool already; name a new folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    check_place(out)
    written = [(out / name).resolve() for name in (INDEX, ROWS, TOO_LONG)]
    for source in sources:
        if source.resolve() in written:
            raise UsageError(
                f"--out {out}: the pool's {source.name} would replace the source {source}; "
                "name another folder"
            )
    if options.model is None and not options.trust_token_counts:
        raise UsageError(
            "tokens cannot be counted: give --model DIR, or --trust-token-counts to take n_tokens "
            "as given"
        )


@dataclass
class _Tally:
    """What is known of all groups together. `too_long` are lines of `too-long.jsonl`."""

    faults: Faults = field(default_factory=Faults)
    forged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    turns_cut: int = 0
    kinds: dict[str, str] = field(default_factory=dict)
    chats: Counter[str] = field(default_factory=Counter)
    marked: bool = False

    def add(self, group: Group) -> None:
        """Count a group."""
        self.faults.join(group.faults)
        self.forged += group.forged
        self.refused += group.refused
        self.too_long += [canonical_json(entry) + "\n" for entry in group.too_long]
        self.turns_cut += group.turns_cut
        for name, kind in group.kinds.items():
            self.kinds[name] = joined_kind(self.kinds.get(name, kind), kind)
        self.chats.update(group.chats)
        self.marked = self.marked or group.marked

    @property
    def is_refused(self) -> bool:
        """Whether a row cannot be in a pool."""
        return bool(self.faults.count or self.forged or self.refused)

    def refuse(self) -> None:
        """Raise UsageError with the rows that cannot be in a pool, if there are any."""
        self.faults.refuse()
        _refuse_rows(self.forged, self.refused)


def _refuse_rows(forged: Sequence[str], refused: Sequence[str]) -> None:
    """Raise UsageError with all rows that hold control tokens or that the template refuses."""
    complaints = []
    if forged:
        complaints.append(
            "rows hold control tokens of the model, which would end a turn or begin another's; "
            f"write them otherwise, or leave these rows out:\n  {_some_of(forged)}"
        )
    if refused:
        complaints.append(
            f"the model's chat template refuses {len(refused):,} rows, or their answers cannot be "
            "told apart exactly in what it makes of them; change these rows or leave them out:\n  "
            + _some_of(refused)
        )
    if complaints:
        raise UsageError("\n".join(complaints))


def _some_of(lines: Sequence[str]) -> str:
    """The first lines, and how many more there are."""
    shown = "\n  ".join(lines[:MAX_SHOWN])
    if len(lines) > MAX_SHOWN:
        shown += f"\n  and {len(lines) - MAX_SHOWN:,} more"
    return shown


def _groups(
    sources: Sequence[Path], options: BuildOptions, counter: TokenCounter | None, part: Part
) -> Iterator[Group]:
    """The groups of a part of the rows, checked and counted, in the order of the rows."""
    processes = options.processes
    if processes == 1:
        before, frozen = gc.get_threshold(), gc.get_freeze_count()
        _collect_rarely()
        try:
            for numbers, rows in _read_groups(sources, part):
                yield counted(rows, numbers, counter, options.max_length)
        finally:
            gc.set_threshold(*before)
            if not frozen:
                gc.unfreeze()
        return
    # A process that starts anew has no threads of ours in it, as one that is forked would.
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(options,)
    ) as pool:
        waiting: deque[Future[Group]] = deque()
        for numbers, rows in _read_groups(sources, part):
            waiting.append(pool.submit(_count, rows, numbers))
            if len(waiting) > 3 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _collect_rarely() -> None:
    """Let Python look for unreachable objects rarely, and not among what stands already.

    The objects of the libraries are many, and rows are freed without it: it took a fifth of the
    time.
    """
    gc.freeze()
    gc.set_threshold(ALLOCATIONS)


def _read_groups(sources: Sequence[Path], part: Part) -> Iterator[tuple[range, list[PlacedRow]]]:
    """(numbers of the rows among those of all parts, rows) of each group of a part."""
    rows = part.of_rows(itertools.chain.from_iterable(read_rows(source) for source in sources))
    first = part.number - 1
    while group := list(itertools.islice(rows, GROUP)):
        numbers = range(first, first + len(group) * part.of, part.of)
        yield numbers, group
        first = numbers.stop


_work: Callable[[Sequence[PlacedRow], range], Group]


def _begin(options: BuildOptions) -> None:
    """Prepare a process that counts. It is one of several, so the tokenizer gets one core."""
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _work = partial(counted, counter=options.counter(), max_length=options.max_length)
    _collect_rarely()


def _count(rows: Sequence[PlacedRow], numbers: range) -> Group:
    return _work(rows, numbers)
